"""The causal diffusion transformer in the Wan block form, one backbone for training and streaming.

The reference tokens stand at t = 0 and see only each other, so their keys and values do not depend on the video:
`prefill` computes them once. The noisy tokens then run two ways over the same weights:

* `apply` takes a whole sequence, one timestep a latent frame, under a block-causal mask with a window;
* `apply_block` takes one block and a key/value memory, and returns the memory with the block in it.

Shapes: B batch, F latent frames, f tokens of a frame, S = F f, D width, N heads, K head size, C latent channels.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import DitConfig
from avatar_jax.core.spec import Leaf, stack
from avatar_jax.models import audio
from avatar_jax.nn import attention, dense, embed, kv, norm
from avatar_jax.nn.rope import Phase, rotate

NOISY, REFERENCE, MOTION = range(3)  # token types
TIMESTEPS = 1000.0  # t = 1000 sigma


def _block_spec(cfg: DitConfig) -> dict:
    width = cfg.width
    spec = {
        "modulation": Leaf((6, width), (None, None), "normal", width**-0.5),
        "self": attention.spec(width),
        "ffn": {
            "in": dense.spec(width, cfg.ffn, ("embed", "mlp")),
            "out": dense.spec(cfg.ffn, width, ("mlp", "embed")),
        },
    }
    if cfg.text_width:
        affine = {"scale": Leaf((width,), (None,), "ones"), "bias": Leaf((width,), (None,), "zeros")}
        spec |= {"norm3": affine, "cross": attention.spec(width)}
    return spec


def spec(cfg: DitConfig) -> dict:
    """Every weight of the transformer, blocks stacked."""
    width, cell = cfg.width, cfg.latent_channels * cfg.patch**2
    tree = {
        "patch": dense.spec(cell, width, (None, "embed")),
        "type": Leaf((3, width), (None, None), "normal", width**-0.5),
        "time": {
            "in": dense.spec(cfg.freq, width, (None, "embed")),
            "out": dense.spec(width, width, ("embed", "embed")),
            "projection": dense.spec(width, 6 * width, ("embed", None)),
        },
        "blocks": stack(_block_spec(cfg), cfg.layers),
        "audio": {"encoder": audio.encoder_spec(cfg), "injectors": audio.injector_spec(cfg)},
        "head": {
            "modulation": Leaf((2, width), (None, None), "normal", width**-0.5),
            "out": dense.spec(width, cell, ("embed", None), "zeros"),
        },
    }
    if cfg.text_width:
        tree["text"] = {
            "in": dense.spec(cfg.text_width, width, (None, "embed")),
            "out": dense.spec(width, width, ("embed", "embed")),
        }
    return tree


def lay_out(p: dict, cfg: DitConfig) -> dict:
    """Checkpoint weights in the layout `cfg.layer_loop` runs: stacked for "scan", a tuple of layers for "unroll"."""
    if cfg.layer_loop == "scan":
        return p
    injectors = kv.unstack(p["audio"]["injectors"], len(cfg.audio_inject))
    return p | {"blocks": kv.unstack(p["blocks"], cfg.layers), "audio": p["audio"] | {"injectors": injectors}}


def gather(p: dict) -> dict:
    """The inverse of `lay_out`: blocks stacked, as checkpoints hold them."""
    if not isinstance(p["blocks"], tuple):
        return p
    injectors = kv.stack(p["audio"]["injectors"])
    return p | {"blocks": kv.stack(p["blocks"]), "audio": p["audio"] | {"injectors": injectors}}


def _time(p: dict, sigma: jax.Array, cfg: DitConfig) -> tuple[jax.Array, jax.Array]:
    """Embedding e [B, G, D] and block modulation e0 [B, G, 6, D] of sigma [B, G], float32."""
    e = dense.apply(p["in"], embed.sinusoid(sigma * TIMESTEPS, cfg.freq))
    e = dense.apply(p["out"], jax.nn.silu(e))
    e0 = dense.apply(p["projection"], jax.nn.silu(e))
    return e, e0.reshape(*e.shape[:-1], 6, cfg.width)


def embed_text(p: dict, text: jax.Array) -> jax.Array:
    """Encoder rows, zero-padded to text_tokens, to text tokens. [B, text_tokens, text_width] -> [.., D]."""
    return dense.apply(p["text"]["out"], jax.nn.gelu(dense.apply(p["text"]["in"], text)))


def _block(p: dict, x: jax.Array, e0: jax.Array, text: jax.Array | None, attend, state, cfg: DitConfig):
    """One block over groups of tokens that share a timestep (section 1.4). x: [B, G, f, D]; e0: [B, G, 6, D]."""
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.moveaxis(p["modulation"] + e0, -2, 0)[..., None, :].astype(
        jnp.float32
    )  # each [B, G, 1, D]
    batch, groups, tokens, width = x.shape

    def flat(h: jax.Array) -> jax.Array:
        return h.astype(x.dtype).reshape(batch, groups * tokens, width)

    h = flat(norm.layer_norm(x, cfg.eps) * (1.0 + scale1) + shift1)
    q = attention.queries(p["self"], h, heads=cfg.heads, eps=cfg.eps)
    k, v = attention.keys_values(p["self"], h, heads=cfg.heads, eps=cfg.eps)
    mixed, state = attend(q, k, v, state)
    y = x + gate1 * attention.output(p["self"], mixed).reshape(x.shape)
    if text is not None:
        h = flat(norm.layer_norm(y, cfg.eps) * p["norm3"]["scale"] + p["norm3"]["bias"])
        k, v = attention.keys_values(p["cross"], text, heads=cfg.heads, eps=cfg.eps)
        y = y + attention.cross(p["cross"], h, k, v, heads=cfg.heads, eps=cfg.eps, kernel=cfg.attention).reshape(
            x.shape
        )
    h = flat(norm.layer_norm(y, cfg.eps) * (1.0 + scale2) + shift2)
    h = dense.apply(p["ffn"]["out"], jax.nn.gelu(dense.apply(p["ffn"]["in"], h)))
    return (y + gate2 * h.reshape(x.shape)).astype(x.dtype), state


def _segments(cfg: DitConfig) -> list[tuple[int, int, int | None]]:
    """Runs of blocks (start, stop, injector after the run or None)."""
    stops = [layer + 1 for layer in cfg.audio_inject]
    starts = [0, *stops]
    parts: list[tuple[int, int, int | None]] = list(zip(starts, stops, range(len(stops)), strict=False))
    return [*parts, (starts[-1], cfg.layers, None)] if starts[-1] < cfg.layers else parts


def _denoise(p: dict, x: jax.Array, sigma: jax.Array, sound, text, attend, states, cfg: DitConfig):
    """Patchified latents [B, F, f, C p p] at sigma [B, F] to the head's tokens, and the layers' new states."""
    dtype = jnp.dtype(cfg.compute_dtype)
    e, e0 = _time(p["time"], sigma, cfg)
    x = (dense.apply(p["patch"], x) + p["type"][NOISY]).astype(dtype)

    def body(x, weights, state):
        return _block(weights, x, e0, text, attend, state, cfg)

    parts = []
    for start, stop, injector in _segments(cfg):
        x, new = kv.loop(body, x, p["blocks"], states, start=start, stop=stop)
        parts.append(new)
        if injector is not None:
            x = audio.inject(kv.layer(p["audio"]["injectors"], injector), x, *sound, cfg=cfg)
    shift, scale = jnp.moveaxis(p["head"]["modulation"] + e[..., None, :], -2, 0)[..., None, :]
    y = norm.layer_norm(x, cfg.eps) * (1.0 + scale) + shift
    return dense.apply(p["head"]["out"], y), kv.join(parts)


def prefill(
    p: dict, reference: jax.Array, phase: Phase, text: jax.Array | None = None, *, cfg: DitConfig
) -> tuple[jax.Array, jax.Array]:
    """Keys and values of the reference in every layer (section 1.9).

    Args:
      p: weights.
      reference: latent of the portrait, [B, 1, h, w, C].
      phase: its phases, [R, K/2] or [B, R, K/2], for attention among the reference tokens.
      text: text tokens [B, text_tokens, D] or None.
      cfg: transformer configuration.

    Returns:
      keys before rotation and values, each [L, B, R, N, K] (a tuple of L when the layers are unrolled).
    """
    chex.assert_shape(reference, (None, 1, None, None, cfg.latent_channels))
    tokens = dense.apply(p["patch"], embed.patchify(reference, cfg.patch)) + p["type"][REFERENCE]
    _, e0 = _time(p["time"], jnp.zeros(reference.shape[:2]), cfg)

    def attend(q, k, v, _):
        return attention.attend(rotate(q, phase), rotate(k, phase), v, None, kernel=cfg.attention), (k, v)

    def body(x, weights, state):
        return _block(weights, x, e0, text, attend, state, cfg)

    x = tokens.astype(cfg.compute_dtype)
    nothing = () if not isinstance(p["blocks"], tuple) else ((),) * cfg.layers
    return kv.loop(body, x, p["blocks"], nothing, start=0, stop=cfg.layers)[1]


def block_mask(blocks: int, window: int, tokens: int, reference: int) -> np.ndarray:
    """Who may look where when whole: bool [S, blocks R + S] over `blocks` copies of the reference, then the video.

    A query of block b sees its own copy of the reference and blocks b - window + 1 .. b.
    """
    block = np.arange(blocks)
    own = block[:, None] == block[None, :]
    recent = (block[:, None] >= block[None, :]) & (block[:, None] - block[None, :] < window)
    mask = np.concatenate([np.repeat(own, reference, 1), np.repeat(recent, tokens, 1)], 1)
    return np.repeat(mask, tokens, 0)


def apply(
    p: dict,
    latent: jax.Array,
    sigma: jax.Array,
    features: jax.Array,
    reference: tuple[Any, Any],
    *,
    phase: Phase,
    reference_phases: Phase,
    mask: np.ndarray,
    context: int,
    text: jax.Array | None = None,
    cfg: DitConfig,
) -> jax.Array:
    """Velocity of a whole sequence under the block-causal mask: what training runs.

    Args:
      p: weights.
      latent: noisy latents [B, F, h, w, C].
      sigma: noise level of each latent frame in 0..1, [B, F].
      features: sound [B, context + 4F, layers, audio_width].
      reference: keys and values from `prefill`.
      phase: phases of the video tokens, [S, K/2] or [B, S, K/2].
      reference_phases: phases of one copy of the reference a block, [blocks R, K/2] or with a batch axis.
      mask: `block_mask`.
      context: left context frames in `features`.
      text: text tokens or None.
      cfg: transformer configuration.

    Returns:
      v = noise - x0, [B, F, h, w, C], float32.
    """
    chex.assert_rank([latent, sigma, features], [5, 2, 4])
    chex.assert_equal_shape_prefix([latent, sigma], 2)
    chex.assert_axis_dimension(features, 1, context + 4 * latent.shape[1])
    copies = mask.shape[1] - mask.shape[0]
    sound = audio.encode(p["audio"]["encoder"], features, context=context, cfg=cfg)

    def attend(q, k, v, state):
        held_k, held_v = state
        repeat = copies // held_k.shape[1]
        keys = jnp.concatenate([rotate(jnp.tile(held_k, (1, repeat, 1, 1)), reference_phases), rotate(k, phase)], 1)
        values = jnp.concatenate([jnp.tile(held_v, (1, repeat, 1, 1)), v], 1)
        return attention.attend(rotate(q, phase), keys, values, jnp.asarray(mask)[None, None], kernel=cfg.attention), ()

    tokens = embed.patchify(latent, cfg.patch)
    y, _ = _denoise(p, tokens, sigma, sound, text, attend, reference, cfg)
    grid = (latent.shape[2] // cfg.patch, latent.shape[3] // cfg.patch)
    return embed.unpatchify(y.astype(jnp.float32), grid, cfg.patch)


def encode_sound(p: dict, features: jax.Array, *, context: int, cfg: DitConfig) -> tuple[jax.Array, jax.Array]:
    """The sound tokens of a block, computed once for all of its steps; see `audio.encode`."""
    return audio.encode(p["audio"]["encoder"], features, context=context, cfg=cfg)


def apply_block(
    p: dict,
    cache: Any,
    latent: jax.Array,
    sigma: jax.Array,
    sound: tuple[jax.Array, jax.Array],
    *,
    phase: Phase,
    reference_phase: Phase,
    slot: jax.Array,
    blocks: jax.Array,
    text: jax.Array | None = None,
    cfg: DitConfig,
) -> tuple[Any, jax.Array]:
    """Velocity of one block over the memory: what streaming runs.

    Args:
      p: weights from `lay_out`.
      cache: one `KVCache` a layer.
      latent: noisy latents of the block [B, F, h, w, C].
      sigma: its noise level, float32 [].
      sound: from `encode_sound`.
      phase: phases of the block's tokens, [S, K/2].
      reference_phase: phases of the reference at its rolled position, [R, K/2].
      slot: int32 [], ring slot of this block.
      blocks: int32 [], filled ring slots, this block included.
      text: text tokens or None.
      cfg: transformer configuration.

    Returns:
      the memory with this block's keys and values at this noise level, and v [B, F, h, w, C], float32.
    """

    chex.assert_rank([latent, sigma, slot, blocks], [5, 0, 0, 0])

    def attend(q, k, v, layer: kv.KVCache):
        layer = kv.commit(layer, rotate(k, phase), v, slot=slot, reference=reference_phase)
        seen = kv.readable(layer, blocks * k.shape[1])
        return attention.attend(rotate(q, phase), layer.k, layer.v, seen, kernel=cfg.attention), layer

    sigmas = jnp.broadcast_to(sigma, latent.shape[:2])
    y, cache = _denoise(p, embed.patchify(latent, cfg.patch), sigmas, sound, text, attend, cache, cfg)
    grid = (latent.shape[2] // cfg.patch, latent.shape[3] // cfg.patch)
    return cache, embed.unpatchify(y.astype(jnp.float32), grid, cfg.patch)
