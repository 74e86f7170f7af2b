"""The causal video VAE in the Wan 2.1 form, sized by config, streaming by construction.

Stride 4 x 8 x 8: 1 + 4k video frames <-> 1 + k latent frames. The first frame and the rest take different paths
through the temporal resampling (the first is neither halved nor doubled), so there are two functions each way,
`*_first` for one frame and `*_step` for any number more; a whole clip is one of each, and a stream is the same calls
with the clip cut elsewhere. The *tail* they hand on holds the last input frames of every temporal convolution in
traversal order (live_avatar.md section 4).
"""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from avatar_jax.core.config import VaeConfig
from avatar_jax.core.spec import Leaf
from avatar_jax.nn import conv, norm

Tail = tuple[jax.Array, ...]  # each [B, 1 or 2, H, W, C]


class _Tape:
    """Histories in traversal order: read from the last call, written for the next."""

    def __init__(self, tail: Tail | None):
        self._old: Iterator[jax.Array] | None = None if tail is None else iter(tail)
        self.new: list[jax.Array] = []

    @property
    def first(self) -> bool:
        return self._old is None

    def read(self) -> jax.Array | None:
        return None if self._old is None else next(self._old)

    def causal(self, p: dict, x: jax.Array) -> jax.Array:
        if conv.frames_of(p) == 1:  # no time, no history
            return conv.spatial(p, x)
        y, history = conv.causal(p, x, self.read())
        self.new.append(history)
        return y


def _scale(channels: int) -> dict[str, Leaf]:
    return {"scale": Leaf((channels,), (None,), "ones")}


def _res_spec(inputs: int, outputs: int, cfg: VaeConfig) -> dict:
    spec = {
        "norm1": _scale(inputs),
        "conv1": conv.spec((cfg.res_frames, 3, 3), inputs, outputs),
        "norm2": _scale(outputs),
        "conv2": conv.spec((cfg.res_frames, 3, 3), outputs, outputs),
    }
    if inputs != outputs:
        spec["shortcut"] = conv.spec((1, 1, 1), inputs, outputs)
    return spec


def _res(p: dict, x: jax.Array, tape: _Tape) -> jax.Array:
    h = tape.causal(p["conv1"], jax.nn.silu(norm.channel_norm(p["norm1"], x)))
    h = tape.causal(p["conv2"], jax.nn.silu(norm.channel_norm(p["norm2"], h)))
    return h + (conv.spatial(p["shortcut"], x) if "shortcut" in p else x)


def _attention_spec(channels: int) -> dict:
    return {
        "norm": _scale(channels),
        "qkv": conv.spec((1, 1, 1), channels, 3 * channels),
        "proj": conv.spec((1, 1, 1), channels, channels, "zeros"),
    }


def _attention(p: dict, x: jax.Array) -> jax.Array:
    """One-head attention over the pixels of each frame. x: [B, T, H, W, C]."""
    qkv = conv.spatial(p["qkv"], norm.channel_norm(p["norm"], x))
    q, k, v = jnp.split(rearrange(qkv, "B T H W C -> (B T) (H W) C"), 3, -1)
    scores = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32) * x.shape[-1] ** -0.5
    mixed = jnp.einsum("bqk,bkc->bqc", jax.nn.softmax(scores, -1).astype(x.dtype), v)
    return x + conv.spatial(p["proj"], mixed.reshape(x.shape))


def _middle_spec(channels: int, cfg: VaeConfig) -> dict:
    return {
        "res1": _res_spec(channels, channels, cfg),
        "attention": _attention_spec(channels),
        "res2": _res_spec(channels, channels, cfg),
    }


def _middle(p: dict, x: jax.Array, tape: _Tape) -> jax.Array:
    return _res(p["res2"], _attention(p["attention"], _res(p["res1"], x, tape)), tape)


def _down(p: dict, x: jax.Array, tape: _Tape) -> jax.Array:
    """Half the size, and half the frames but the first when the stage has a temporal kernel."""
    x = conv.spatial(p["conv"], x, 2, ((0, 1), (0, 1)))
    if "time" not in p:
        return x
    last = tape.read()
    tape.new.append(x[:, -1:])
    if last is None:
        return x
    return conv.valid(p["time"], jnp.concatenate([last, x], 1), 2)


def _up(p: dict, x: jax.Array, tape: _Tape) -> jax.Array:
    """Twice the size, and twice the frames but the first when the stage has a temporal kernel."""
    if "time" in p and tape.first:
        # the first frame never enters the temporal kernel's history
        tape.new.append(jnp.zeros((x.shape[0], 2, *x.shape[2:]), x.dtype))
    elif "time" in p:
        # even frames' channels come first
        x = rearrange(tape.causal(p["time"], x), "B T H W (two C) -> B (T two) H W C", two=2)
    return conv.spatial(p["conv"], repeat(x, "B T H W C -> B T (H two) (W again) C", two=2, again=2))


def _head_spec(inputs: int, outputs: int) -> dict:
    return {"norm": _scale(inputs), "conv": conv.spec((3, 3, 3), inputs, outputs)}


def _head(p: dict, x: jax.Array, tape: _Tape) -> jax.Array:
    return tape.causal(p["conv"], jax.nn.silu(norm.channel_norm(p["norm"], x)))


def _encoder_spec(cfg: VaeConfig) -> dict:
    widths = [cfg.width * m for m in (1, *cfg.mult)]
    spec: dict = {"conv": conv.spec((3, 3, 3), 3 * cfg.pixel_patch**2, widths[0])}
    for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        blocks = {f"res{i}": _res_spec(inputs if i == 0 else outputs, outputs, cfg) for i in range(cfg.res_blocks)}
        if stage < len(cfg.temporal):
            blocks["down"] = {"conv": conv.spec((1, 3, 3), outputs, outputs)}
            if cfg.temporal[stage]:
                blocks["down"]["time"] = conv.spec((3, 1, 1), outputs, outputs, "hold")
        spec[f"stage{stage}"] = blocks
    return spec | {
        "middle": _middle_spec(widths[-1], cfg),
        "head": _head_spec(widths[-1], 2 * cfg.latent_channels),
    }


def _decoder_spec(cfg: VaeConfig) -> dict:
    widths = [cfg.width * m for m in (cfg.mult[-1], *cfg.mult[::-1])]
    spec: dict = {
        "conv": conv.spec((3, 3, 3), cfg.latent_channels, widths[0]),
        "middle": _middle_spec(widths[0], cfg),
    }
    for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        inputs = inputs // 2 if stage > 0 else inputs  # each upsampling halves the channels
        blocks = {f"res{i}": _res_spec(inputs if i == 0 else outputs, outputs, cfg) for i in range(cfg.res_blocks + 1)}
        if stage < len(cfg.temporal):
            blocks["up"] = {"conv": conv.spec((1, 3, 3), outputs, outputs // 2)}
            if cfg.temporal[::-1][stage]:
                blocks["up"]["time"] = conv.spec((3, 1, 1), outputs, 2 * outputs, "hold")
        spec[f"stage{stage}"] = blocks
    return spec | {"head": _head_spec(widths[-1], 3 * cfg.pixel_patch**2)}


def spec(cfg: VaeConfig) -> dict:
    """Every weight of the VAE; "stats" holds the latents' mean and standard deviation, [C] each."""
    z = cfg.latent_channels
    return {
        "encoder": _encoder_spec(cfg),
        "decoder": _decoder_spec(cfg),
        "moments": conv.spec((1, 1, 1), 2 * z, 2 * z),
        "latent": conv.spec((1, 1, 1), z, z),
        "stats": {"mean": Leaf((z,), (None,), "zeros"), "std": Leaf((z,), (None,), "ones")},
    }


def lay_out(p: dict, platform: str) -> dict:
    """Checkpoint weights in the form that a platform runs fastest, see `nn/conv.py`."""
    return conv.lay_out(p, platform)


def _stages(p: dict, x: jax.Array, tape: _Tape, resample, name: str) -> jax.Array:
    stage = 0
    while f"stage{stage}" in p:
        blocks = p[f"stage{stage}"]
        for i in range(len(blocks) - (name in blocks)):
            x = _res(blocks[f"res{i}"], x, tape)
        x = resample(blocks[name], x, tape) if name in blocks else x
        stage += 1
    return x


def from_uint8(frames: jax.Array | np.ndarray) -> jax.Array:
    """Frames 0..255 of any shape to the networks' [-1, 1], float32."""
    return jnp.asarray(frames, jnp.float32) / 127.5 - 1.0


def to_uint8(x: jax.Array) -> jax.Array:
    """Inverse of `from_uint8`, rounded. x: in [-1, 1]."""
    return jnp.round((x + 1.0) * 127.5).astype(jnp.uint8)


def fold_pixels(x: jax.Array, patch: int) -> jax.Array:
    """Pixels into channels: [B, T, H, W, 3] -> [B, T, H/patch, W/patch, 3 patch^2]."""
    return rearrange(x, "B T (h p) (w q) C -> B T h w (p q C)", p=patch, q=patch)


def unfold_pixels(x: jax.Array, patch: int) -> jax.Array:
    """Inverse of `fold_pixels`."""
    return rearrange(x, "B T h w (p q C) -> B T (h p) (w q) C", p=patch, q=patch)


def _moments(p: dict, x: jax.Array, tail: Tail | None, cfg: VaeConfig) -> tuple[jax.Array, jax.Array, Tail]:
    tape, q = _Tape(tail), p["encoder"]
    h = _stages(q, tape.causal(q["conv"], fold_pixels(x, cfg.pixel_patch)), tape, _down, "down")
    h = _head(q["head"], _middle(q["middle"], h, tape), tape)
    mean, log_variance = jnp.split(conv.spatial(p["moments"], h), 2, -1)
    return mean, log_variance, tuple(tape.new)


def _pixels(p: dict, z: jax.Array, tail: Tail | None, cfg: VaeConfig) -> tuple[jax.Array, Tail]:
    tape, q = _Tape(tail), p["decoder"]
    h = _middle(q["middle"], tape.causal(q["conv"], conv.spatial(p["latent"], z)), tape)
    h = _head(q["head"], _stages(q, h, tape, _up, "up"), tape)
    return unfold_pixels(h, cfg.pixel_patch), tuple(tape.new)


def posterior(p: dict, x: jax.Array, tail: Tail | None, *, cfg: VaeConfig) -> tuple[jax.Array, jax.Array, Tail]:
    """Posterior mean and log variance before normalisation, for training.

    Args:
      p: weights.
      x: [B, 1 + 4k, H, W, 3] in [-1, 1] to open a clip, [B, 4k, H, W, 3] to go on from `tail`.
      tail: the encoder's history, or None.
      cfg: the VAE.

    Returns:
      mean and log variance [B, 1 + k or k, h, w, C], and the new tail.
    """
    if tail is not None:
        return _moments(p, x, tail, cfg)
    mean, log_variance, tail = _moments(p, x[:, :1], None, cfg)
    if x.shape[1] == 1:
        return mean, log_variance, tail
    more_mean, more_log_variance, tail = _moments(p, x[:, 1:], tail, cfg)
    return (
        jnp.concatenate([mean, more_mean], 1),
        jnp.concatenate([log_variance, more_log_variance], 1),
        tail,
    )


def pixels(p: dict, z: jax.Array, tail: Tail | None, *, cfg: VaeConfig) -> tuple[jax.Array, Tail]:
    """Decodes unnormalised latents without clipping, for training.

    z: [B, 1 + k, h, w, C] to open a clip, [B, k, h, w, C] to go on from `tail`.
    """
    if tail is not None:
        return _pixels(p, z, tail, cfg)
    x, tail = _pixels(p, z[:, :1], None, cfg)
    if z.shape[1] == 1:
        return x, tail
    more, tail = _pixels(p, z[:, 1:], tail, cfg)
    return jnp.concatenate([x, more], 1), tail


def _normalise(p: dict, mean: jax.Array) -> jax.Array:
    return (mean - p["stats"]["mean"]) / p["stats"]["std"]


def _denormalise(p: dict, z: jax.Array) -> jax.Array:
    return (z * p["stats"]["std"] + p["stats"]["mean"]).astype(z.dtype)


def encode_first(p: dict, x: jax.Array, *, cfg: VaeConfig) -> tuple[jax.Array, Tail]:
    """First frame [B, 1, H, W, 3] in [-1, 1] -> its latent [B, 1, h, w, C], normalised, and the tail."""
    mean, _, tail = _moments(p, x, None, cfg)
    return _normalise(p, mean), tail


def encode_step(p: dict, tail: Tail, x: jax.Array, *, cfg: VaeConfig) -> tuple[jax.Array, Tail]:
    """Next 4k frames [B, 4k, H, W, 3] -> k latents [B, k, h, w, C] and the tail."""
    mean, _, tail = _moments(p, x, tail, cfg)
    return _normalise(p, mean), tail


def decode_first(p: dict, z: jax.Array, *, cfg: VaeConfig) -> tuple[jax.Array, Tail]:
    """First latent [B, 1, h, w, C] -> one frame [B, 1, H, W, 3] in [-1, 1] and the tail."""
    x, tail = _pixels(p, _denormalise(p, z), None, cfg)
    return jnp.clip(x, -1.0, 1.0), tail


def decode_step(p: dict, tail: Tail, z: jax.Array, *, cfg: VaeConfig) -> tuple[jax.Array, Tail]:
    """Next k latents [B, k, h, w, C] -> 4k frames [B, 4k, H, W, 3] in [-1, 1] and the tail."""
    x, tail = _pixels(p, _denormalise(p, z), tail, cfg)
    return jnp.clip(x, -1.0, 1.0), tail


def encode(p: dict, x: jax.Array, *, cfg: VaeConfig) -> jax.Array:
    """A whole clip [B, 1 + 4k, H, W, 3] -> [B, 1 + k, h, w, C], normalised."""
    return _normalise(p, posterior(p, x, None, cfg=cfg)[0])


def decode(p: dict, z: jax.Array, *, cfg: VaeConfig) -> jax.Array:
    """A whole clip of latents [B, 1 + k, h, w, C] -> [B, 1 + 4k, H, W, 3] in [-1, 1]."""
    x, _ = pixels(p, _denormalise(p, z), None, cfg=cfg)
    return jnp.clip(x, -1.0, 1.0)
