"""The causal diffusion transformer in the Wan block form: one backbone for every published variant and every engine.

Condition tokens (a reference image, motion) stand at t = 0 and, in the causal form, see only each other, so their keys
and values do not depend on the video: `prefill` computes them once. The noisy tokens run three ways over one set of
weights:

* `apply` takes a whole sequence, one timestep a latent frame, under a mask (training);
* `apply_block` takes one block and a key/value memory, and returns the memory with the block in it (streaming);
* `apply_joint` lets noisy and condition tokens all see each other (the published bidirectional models, the teacher).

Shapes: B batch, F latent frames, f tokens of a frame, S tokens, D width, N heads, K head size, C latent channels,
G groups of tokens that share a timestep.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import axes
from avatar_jax.core.config import DitConfig
from avatar_jax.core.spec import Leaf, stack
from avatar_jax.models import audio, condition, segment, signal
from avatar_jax.models import level as levels
from avatar_jax.models.level import TIMESTEPS as TIMESTEPS
from avatar_jax.models.level import Level, level
from avatar_jax.nn import attention, bands, dense, embed, kv, norm, remat
from avatar_jax.nn.rope import Phase, join, rotate

NOWHERE = Phase(np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32))  # of no tokens
Counts = tuple[int, ...]  # tokens of each group
Heard = tuple[tuple[audio.Heard, ...], ...]  # each injector's side of every voice; () for silence


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
        spec |= {"norm3": norm.affine_spec(width), "cross": attention.spec(width)}
        if cfg.image_width:
            spec["cross"]["image"] = {name: spec["cross"][name] for name in ("k", "v", "norm_k")}
    return spec


def spec(cfg: DitConfig) -> dict:
    """Every weight of the transformer, blocks stacked."""
    width, cell = cfg.width, cfg.latent_channels * cfg.patch**2
    tree = {
        "patch": dense.spec(cell + cfg.condition_channels * cfg.patch**2, width, (None, "embed")),
        "time": levels.spec(cfg),
        "blocks": stack(_block_spec(cfg), cfg.layers),
        "head": {
            "modulation": Leaf((2, width), (None, None), "normal", width**-0.5),
            "out": dense.spec(width, cell, ("embed", None), "zeros"),
        },
    }
    if cfg.audio_width:
        tree["audio"] = {"encoder": audio.encoder_spec(cfg), "injectors": audio.injector_spec(cfg)}
    if cfg.signals:
        tree["signals"] = signal.spec(cfg)
    return tree | condition.spec(cfg)


def lay_out(p: dict, cfg: DitConfig) -> dict:
    """Checkpoint weights in the layout `cfg.layer_loop` runs: a tuple of layers for "unroll", else stacked."""
    if cfg.layer_loop != "unroll":
        return p
    laid = p | {"blocks": kv.unstack(p["blocks"], cfg.layers)}
    if "audio" in p:
        laid["audio"] = p["audio"] | {"injectors": kv.unstack(p["audio"]["injectors"], len(cfg.audio_inject))}
    return laid


def gather(p: dict) -> dict:
    """The inverse of `lay_out`: blocks stacked, as checkpoints hold them."""
    if not isinstance(p["blocks"], tuple):
        return p
    stacked = p | {"blocks": kv.stack(p["blocks"])}
    if "audio" in p:
        stacked["audio"] = p["audio"] | {"injectors": kv.stack(p["audio"]["injectors"])}
    return stacked


def _spread(rows: jax.Array, counts: Counts) -> jax.Array:
    """One row a group to one row a token: [B, G, D] -> [B, S, D], or [B, 1, D] where one group has all tokens."""
    if len(counts) == 1:
        return rows
    if len(set(counts)) == 1:
        return jnp.repeat(rows, counts[0], 1)
    return rows.at[:, np.repeat(np.arange(len(counts)), counts)].get(mode="promise_in_bounds")


def _block(
    p: dict, x: jax.Array, e0: jax.Array, counts: Counts, memories: Any, attend: Callable, state: Any, cfg: DitConfig
):
    """One block (section 1.4). x: [B, S, D]; e0: [B, G, 6, D]; memories: text and image, if any.

    Gated sums are float32 and rounded to x's dtype, so that between the three parts one array is alive, not three.
    """
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        _spread(row, counts) for row in jnp.moveaxis((p["modulation"] + e0).astype(jnp.float32), -2, 0)
    )
    h = (norm.layer_norm(x, cfg.eps) * (1.0 + scale1) + shift1).astype(x.dtype)
    q = attention.queries(p["self"], h, heads=cfg.heads, eps=cfg.eps)
    k, v = attention.keys_values(p["self"], h, heads=cfg.heads, eps=cfg.eps)
    mixed, state = attend(q, k, v, state)
    y = (x + gate1 * attention.output(p["self"], remat.attended(mixed))).astype(x.dtype)
    if memories:
        h = norm.affine(p["norm3"], norm.layer_norm(y, cfg.eps)).astype(x.dtype)
        y += attention.cross(p["cross"], h, memories, heads=cfg.heads, eps=cfg.eps, kernel=cfg.attention)
    h = (norm.layer_norm(y, cfg.eps) * (1.0 + scale2) + shift2).astype(x.dtype)
    h = dense.apply(p["ffn"]["out"], jax.nn.gelu(dense.apply(p["ffn"]["in"], h)))
    return (y + gate2 * h).astype(x.dtype), state


def _run(
    p: dict,
    x: jax.Array,
    at: Level,
    counts: Counts,
    *,
    grid: tuple[int, int, int],
    heard: Heard,
    cross: Any,
    attend: Callable,
    states: Any,
    rewrite: bool = False,
    cfg: DitConfig,
) -> tuple[jax.Array, Any]:
    """Tokens [B, S, D], the noisy ones (`grid` frames, rows, columns) first, to velocity and the layers' states.

    The states are read, or with `rewrite` replaced by what `attend` returns.
    """
    frames, rows, columns = grid
    noisy = frames * rows * columns
    x = x.astype(cfg.compute_dtype)

    def body(x, weights, memories, state):
        x, state = _block(weights, x, at.modulation, counts, memories, attend, state, cfg)
        return axes.spread_tokens(x), state

    def listen(x, weights, voices):
        spoken = x[:, :noisy].reshape(len(x), frames, rows * columns, -1)
        spoken = audio.inject(weights, spoken, voices, cfg=cfg)
        return jax.lax.dynamic_update_slice(x, spoken.reshape(len(x), noisy, -1), (0, 0, 0))

    cross, segments = kv.nothing(p["blocks"]) if cross is None else cross, segment.runs(cfg)
    if cfg.layer_loop == "fold" and heard:
        body, which = segment.fold(body, listen, p["audio"]["injectors"], heard, cfg)
        cross, segments = (cross, which), [(0, cfg.layers, None)]
    body, listen, x = remat.wrap(body, cfg.remat), remat.wrap(listen, cfg.remat), axes.spread_tokens(x)
    for start, stop, injector in segments:
        if rewrite:
            x, states = kv.rewrite(body, x, p["blocks"], cross, states, start=start, stop=stop)
        else:
            x, _ = kv.loop(body, x, p["blocks"], cross, states, start=start, stop=stop)
        if injector is not None and heard:
            with jax.named_scope(f"injector{injector}"):
                x = listen(x, kv.layer(p["audio"]["injectors"], injector), heard[injector])
    shift, scale = (
        _spread(row, counts) for row in jnp.moveaxis(p["head"]["modulation"] + at.embedding[..., None, :], -2, 0)
    )
    y = (norm.layer_norm(x, cfg.eps) * (1.0 + scale) + shift)[:, :noisy]
    y = dense.apply(p["head"]["out"], y).astype(jnp.float32).reshape(len(y), frames, rows * columns, -1)
    return embed.unpatchify(y, (rows, columns), cfg.patch), states


def remember(p: dict, text: jax.Array, image: jax.Array | None = None, *, cfg: DitConfig) -> Any:
    """Cross-attention keys and values of every layer, computed once a prompt.

    Args:
      p: weights in the layout that will run.
      text: encoder rows of the prompt [B, n, text_width], n at most `text_tokens`; padded with zeros and attended
        without a mask, as published (section 1.3).
      image: CLIP rows [B, n, image_width], if the model has them.
      cfg: transformer configuration.
    """
    rows = condition.embed_text(p, text, cfg).astype(cfg.compute_dtype)
    seen = None if image is None else condition.embed_image(p, image).astype(cfg.compute_dtype)

    def body(x, weights, _):
        memories = (attention.keys_values(weights["cross"], rows, heads=cfg.heads, eps=cfg.eps),)
        if seen is not None:
            memories += (attention.keys_values(weights["cross"]["image"], seen, heads=cfg.heads, eps=cfg.eps),)
        return x, memories

    return kv.loop(body, (), p["blocks"], kv.nothing(p["blocks"]), start=0, stop=cfg.layers)[1]


def hear(p: dict, voices: tuple[audio.Voice, ...], *, cfg: DitConfig) -> Heard:
    """Every injector's side of the voices, computed once a block: the steps share it. Empty without voices."""
    if not voices:
        return ()
    weights = [kv.layer(p["audio"]["injectors"], injector) for injector in range(len(cfg.audio_inject))]
    return tuple(tuple(audio.hear(injector, voice, cfg=cfg) for voice in voices) for injector in weights)


def prefill(p: dict, tokens: jax.Array, phase: Phase, cross: Any = None, *, cfg: DitConfig) -> Any:
    """Keys and values of the condition tokens in every layer (section 1.9).

    Args:
      p: weights.
      tokens: from `condition.embed_reference` or `condition.embed_all`, [B, R, D].
      phase: their phases, [R, K/2] or [B, R, K/2], for attention among themselves.
      cross: from `remember`, or None.
      cfg: transformer configuration.

    Returns:
      keys before rotation and values, each [L, B, R, N, K] (a tuple of L when the layers are unrolled).
    """
    e0 = level(p, np.zeros(()), cfg=cfg).modulation

    def attend(q, k, v, _):
        return attention.attend(rotate(q, phase), rotate(k, phase), v, kernel=cfg.attention), (k, v)

    def body(x, weights, memories, state):
        return _block(weights, x, e0, (tokens.shape[1],), memories, attend, state, cfg)

    nothing = kv.nothing(p["blocks"])
    cross = nothing if cross is None else cross
    return kv.loop(body, tokens.astype(cfg.compute_dtype), p["blocks"], cross, nothing, start=0, stop=cfg.layers)[1]


def _grid(latent: jax.Array, cfg: DitConfig) -> tuple[int, int, int]:
    return latent.shape[1], latent.shape[2] // cfg.patch, latent.shape[3] // cfg.patch


def apply(
    p: dict,
    latent: jax.Array,
    sigma: jax.Array,
    reference: Any = None,
    *,
    phase: Phase,
    reference_phases: Phase = NOWHERE,
    mask: np.ndarray | jax.Array | None,
    voices: tuple[audio.Voice, ...] = (),
    cross: Any = None,
    given: condition.Given | None = None,
    cfg: DitConfig,
) -> jax.Array:
    """Velocity of a whole sequence under a mask: what training runs.

    Args:
      p: weights.
      latent: noisy latents [B, F, h, w, C].
      sigma: noise level of each latent frame in 0..1, [B, F].
      reference: keys and values from `prefill`, or None.
      phase: phases of the video tokens, [S, K/2] or [B, S, K/2].
      reference_phases: phases of one copy of the reference a block, [blocks R, K/2] or with a batch axis.
      mask: bool [S, blocks R + S], from `mask`; None where every token sees all there is.
      voices: from `audio.encode`.
      cross: from `remember`, or None.
      given: what joins the noisy latents, or None.
      cfg: transformer configuration.

    Returns:
      v = noise - x0, [B, F, h, w, C], float32.
    """
    chex.assert_rank([latent, sigma], [5, 2])
    chex.assert_equal_shape_prefix([latent, sigma], 2)
    copies = reference_phases.cos.shape[-2]
    seen = None if mask is None else jnp.asarray(mask)[None, None]

    def attend(q, k, v, state):
        keys, values = rotate(k, phase), v
        if copies:
            held_k, held_v = (jnp.tile(held, (1, copies // held.shape[1], 1, 1)) for held in state)
            keys = jnp.concatenate([rotate(held_k, reference_phases), keys], 1)
            values = jnp.concatenate([held_v, values], 1)
        return attention.attend(rotate(q, phase), keys, values, mask=seen, kernel=cfg.attention), ()

    grid = _grid(latent, cfg)
    counts = (grid[1] * grid[2],) * grid[0]
    states = kv.nothing(p["blocks"]) if reference is None else reference
    x = condition.embed_noisy(p, latent, given, cfg)
    at, heard = level(p, sigma, cfg=cfg), hear(p, voices, cfg=cfg)
    return _run(p, x, at, counts, grid=grid, heard=heard, cross=cross, attend=attend, states=states, cfg=cfg)[0]


def apply_joint(
    p: dict,
    latent: jax.Array,
    sigma: jax.Array,
    tokens: jax.Array | None = None,
    *,
    phase: Phase,
    tokens_phase: Phase | None = None,
    voices: tuple[audio.Voice, ...] = (),
    cross: Any = None,
    given: condition.Given | None = None,
    cfg: DitConfig,
) -> jax.Array:
    """Velocity where every token sees every other: Wan's bidirectional models and the teacher (section 16).

    Args:
      p: weights.
      latent: noisy latents [B, F, h, w, C].
      sigma: noise level of each latent frame, [B, F]; condition tokens stand at 0.
      tokens: condition tokens [B, R, D], or None.
      phase: phases of the video tokens, [S, K/2].
      tokens_phase: phases of the condition tokens, [R, K/2].
      voices, cross, given, cfg: as in `apply`.

    Returns:
      v = noise - x0, [B, F, h, w, C], float32.
    """
    chex.assert_rank([latent, sigma], [5, 2])
    x, grid = condition.embed_noisy(p, latent, given, cfg), _grid(latent, cfg)
    counts = (grid[1] * grid[2],) * grid[0]
    if tokens is not None and tokens_phase is not None:
        x, counts = jnp.concatenate([x, tokens], 1), (*counts, tokens.shape[1])
        sigma = jnp.concatenate([sigma, jnp.zeros_like(sigma[:, :1])], 1)
        phase = join(phase, tokens_phase)

    def attend(q, k, v, _):
        return attention.attend(rotate(q, phase), rotate(k, phase), v, kernel=cfg.attention), ()

    nothing = kv.nothing(p["blocks"])
    at, heard = level(p, sigma, cfg=cfg), hear(p, voices, cfg=cfg)
    return _run(p, x, at, counts, grid=grid, heard=heard, cross=cross, attend=attend, states=nothing, cfg=cfg)[0]


def apply_block(
    p: dict,
    cache: Any,
    latent: jax.Array,
    at: Level,
    *,
    phase: Phase,
    reference_phase: Phase,
    slots: jax.Array | np.ndarray,
    filled: jax.Array | np.ndarray | None,
    heard: Heard = (),
    cross: Any = None,
    given: condition.Given | None = None,
    band: bands.Axes = None,
    cfg: DitConfig,
) -> tuple[Any, jax.Array]:
    """Velocity of one block over the memory: what streaming runs.

    Args:
      p: weights from `lay_out`.
      cache: one `KVCache` a layer; or all of them in a `kv.Read`, and they stay as they are.
      latent: noisy latents of the block [B, F, h, w, C].
      at: its noise level, from `level`.
      phase: phases of the block's tokens, [S, K/2] or [B, S, K/2].
      reference_phase: phases of the condition tokens, the reference at its rolled position, [R, K/2] or [B, R, K/2].
      slots: int32 [B, n] or [1, n], ring places of this block, see `kv.commit`.
      filled: int32 [] or [B], ring tokens that hold something, this block included; None for all, which needs no mask.
      heard: from `hear`, once a block.
      cross, given, cfg: as in `apply`.
      band: mesh axes whose devices share the rows of every latent frame; each takes and returns whole arrays.

    Returns:
      the memory with this block's keys and values at this noise level, and v [B, F, h, w, C], float32.
    """
    chex.assert_rank([latent, slots], [5, 2])
    frames = latent.shape[1]
    phase, (latent, given) = bands.cut(phase, band, -2, frames), bands.cut((latent, given), band, 2)
    heard = tuple(tuple(one._replace(mask=bands.cut(one.mask, band, 2)) for one in voices) for voices in heard)

    def attend(q, k, v, layer: kv.Memory):
        keys, values = (bands.join(side, band, 1, frames) for side in (rotate(k, phase), v))
        layer = kv.commit(layer, keys, values, slots=slots, reference=reference_phase)
        count = None if filled is None else kv.readable(layer, filled)
        mixed = attention.attend(rotate(q, phase), layer.k, layer.v, count=count, kernel=cfg.attention)
        return mixed, layer if rewrite else ()

    rewrite = not isinstance(cache, kv.Read)
    x, grid, states = (
        condition.embed_noisy(p, latent, given, cfg),
        _grid(latent, cfg),
        cache if rewrite else cache.every,
    )
    sides = {"grid": grid, "heard": heard, "cross": cross, "attend": attend, "states": states}
    v, states = _run(p, x, at, (x.shape[1],), **sides, rewrite=rewrite, cfg=cfg)
    return states if rewrite else cache, bands.join(v, band, 2)
