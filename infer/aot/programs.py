"""The full-size programs as functions of abstract arrays: nothing is allocated, everything has its final shape."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from avatar_jax.core import axes
from avatar_jax.core.config import DitConfig, VaeConfig
from avatar_jax.core.spec import Spec
from avatar_jax.models import audio, condition, dit, vae
from avatar_jax.nn import conv, kv, rope
from infer.aot import counts

HEADS = (None, None, axes.TENSOR, None)  # [B, W, N, K] over devices


@dataclasses.dataclass(frozen=True)
class Size:
    """Pixels and latent frames of the stream (live_avatar.md sections 1.1 and 11.1)."""

    height: int = 704
    width: int = 384
    block_latents: int = 3
    window_blocks: int = 4
    audio_context: int = 5  # video frames of sound before the block
    teacher_latents: int = 20  # of an 80-frame clip (section 16)

    @property
    def latent(self) -> tuple[int, int]:
        """Latent rows and columns."""
        return self.height // 8, self.width // 8

    @property
    def frame(self) -> int:
        """Tokens of a latent frame."""
        return (self.latent[0] // 2) * (self.latent[1] // 2)

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.block_latents * self.frame

    @property
    def ring(self) -> int:
        """Tokens of the memory's ring."""
        return self.window_blocks * self.block

    def motion(self, cfg: DitConfig) -> dict[int, int]:
        """Motion tokens by the latent numbers of one (section 1.6)."""
        rows, columns = self.latent
        return {
            cfg.latent_channels * frames * (2 * shrink) ** 2: length
            // frames
            * (rows // (2 * shrink))
            * (columns // (2 * shrink))
            for _, length, frames, shrink, _ in (condition.BUCKETS if cfg.motion_latents else ())
        }

    def held(self, cfg: DitConfig) -> int:
        """Condition tokens: the reference and the motion."""
        return self.frame + sum(self.motion(cfg).values())


@dataclasses.dataclass(frozen=True)
class Place:
    """Where arrays lie: on a mesh, or nowhere (to count operations)."""

    mesh: Mesh | None
    dtype: str = "bfloat16"

    def __call__(self, *shape: int, dtype: Any = None, over: tuple = ()) -> Any:
        """An array of the place's dtype (or `dtype`), split over mesh axes as `over` says."""
        sharding = None
        if self.mesh is not None:
            known = (name if name in self.mesh.shape else None for name in over)
            sharding = NamedSharding(self.mesh, PartitionSpec(*known))
        return jax.ShapeDtypeStruct(shape, dtype or self.dtype, sharding=sharding)

    def weights(self, spec: Spec) -> dict:
        """Every weight of a spec, sharded by its logical axes."""

        def leaf(leaf: Any) -> jax.ShapeDtypeStruct:
            mesh = self.mesh
            over = (
                ()
                if mesh is None or axes.TENSOR not in mesh.shape
                else axes.partition(leaf, axes.TENSOR_PARALLEL, mesh)
            )
            return self(*leaf.shape, over=tuple(over))

        return jax.tree.map(leaf, dict(spec))

    def like(self, tree: Any) -> Any:
        """Whole copies of a tree of shapes on every device."""
        return jax.tree.map(lambda leaf: self(*leaf.shape, dtype=leaf.dtype), tree)

    def unstack(self, tree: Any, layers: int) -> tuple:
        """Stacked arrays as a tuple of layers."""

        def one(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            over = () if self.mesh is None else leaf.sharding.spec[1:]
            return self(*leaf.shape[1:], dtype=leaf.dtype, over=tuple(over))

        return (jax.tree.map(one, tree),) * layers


@dataclasses.dataclass(frozen=True)
class Program:
    """What to compile, and what is known of it beforehand."""

    name: str
    fn: Callable
    args: tuple
    flops: int
    layers: int = 0
    donated: int | None = None  # which argument is the state
    heads: int = 0
    queries: int = 0
    keys: frozenset[int] = frozenset()  # lengths of what the queries see
    loop: str = ""
    jitted: bool = False  # `fn` is compiled as its run compiles it

    @property
    def argument_bytes(self) -> int:
        """Of all arguments, on one device."""
        return _bytes(self.args)

    @property
    def state_bytes(self) -> int:
        """Of the donated argument, on one device."""
        return 0 if self.donated is None else _bytes(self.args[self.donated])


def _bytes(tree: Any) -> int:
    """Bytes of abstract arrays on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def weights(cfg: DitConfig, place: Place) -> dict:
    """The transformer's weights in the layout of `cfg.layer_loop`."""
    p = place.weights(dit.spec(cfg))
    if cfg.layer_loop == "unroll":
        p["blocks"] = place.unstack(p["blocks"], cfg.layers)
        if "audio" in p:
            p["audio"] = p["audio"] | {"injectors": place.unstack(p["audio"]["injectors"], len(cfg.audio_inject))}
    return p


def layered(cfg: DitConfig, place: Place, tree: Any) -> Any:
    """A layer's state for all layers, in the layout of `cfg.layer_loop`."""
    if cfg.layer_loop == "unroll":
        return (tree,) * cfg.layers
    return jax.tree.map(
        lambda leaf: place(
            cfg.layers, *leaf.shape, dtype=leaf.dtype, over=(None, *(leaf.sharding.spec if place.mesh else ()))
        ),
        tree,
    )


def text(cfg: DitConfig, place: Place) -> Any:
    """Keys and values of the prompt, or None."""
    if not cfg.text_width:
        return None
    one = place(1, cfg.text_tokens, cfg.heads, cfg.head_size, over=HEADS)
    return layered(cfg, place, ((one, one),))


def _phase(cfg: DitConfig, place: Place, tokens: int) -> rope.Phase:
    half = place(tokens, cfg.head_size // 2, dtype="float32")
    return rope.Phase(half, half)


def _voice(cfg: DitConfig, place: Place, frames: int) -> audio.Voice:
    local = place(1, frames, cfg.audio_tokens + 1, cfg.width, dtype="float32")
    return audio.Voice(local, place(1, frames, cfg.width, dtype="float32"))


def _heard(cfg: DitConfig, place: Place, frames: int) -> dit.Heard:
    level = place(1, frames, 1, cfg.width)
    memory = place(frames, cfg.audio_tokens + 1, cfg.heads, cfg.head_size, over=HEADS)
    return ((audio.Heard(level, level, memory, memory, None),),) * len(cfg.audio_inject)


def block(cfg: DitConfig, size: Size, place: Place) -> Program:
    """One denoising step of one block in a full ring: what a stream spends its time in."""
    held = size.held(cfg)
    buffer = place(1, held + size.ring, cfg.heads, cfg.head_size, over=HEADS)
    reference = place(1, held, cfg.heads, cfg.head_size, over=HEADS)
    args = (
        weights(cfg, place),
        layered(cfg, place, kv.KVCache(buffer, buffer, reference)),
        place(1, size.block_latents, *size.latent, cfg.latent_channels, dtype="float32"),
        dit.Level(place(1, 1, cfg.width, dtype="float32"), place(1, 1, 6, cfg.width, dtype="float32")),
        _phase(cfg, place, size.block),
        _phase(cfg, place, held),
        place(1, 1, dtype="int32"),
        _heard(cfg, place, size.block_latents) if cfg.audio_width else (),
        text(cfg, place),
    )

    def step(p, cache, latent, at, phase, ahead, slots, heard, cross):
        return dit.apply_block(
            p,
            cache,
            latent,
            at,
            phase=phase,
            reference_phase=ahead,
            slots=slots,
            filled=None,
            heard=heard,
            cross=cross,
            cfg=cfg,
        )

    flops = counts.block(cfg, size.block, size.ring, held)
    seen = frozenset({held + size.ring, cfg.text_tokens})
    return Program("block", step, args, flops, cfg.layers, 1, cfg.heads, size.block, seen, cfg.layer_loop)


def prefill(cfg: DitConfig, size: Size, place: Place) -> Program:
    """Keys and values of the reference and the motion, once an avatar."""
    held, rows_columns = size.held(cfg), size.latent
    args = (
        weights(cfg, place),
        place(1, 1, *rows_columns, cfg.latent_channels, dtype="float32"),
        place(1, cfg.motion_latents, *rows_columns, cfg.latent_channels, dtype="float32"),
        _phase(cfg, place, held),
        text(cfg, place),
    )

    def fill(p, reference, motion, phase, cross):
        if cfg.motion_latents:
            tokens = condition.embed_all(p, reference, motion, cfg)
        else:
            tokens = condition.embed_reference(p, reference, cfg)
        return dit.prefill(p, tokens, phase, cross, cfg=cfg)

    flops = counts.prefill(cfg, size.frame, size.motion(cfg))
    seen = frozenset({held, cfg.text_tokens})
    return Program("prefill", fill, args, flops, cfg.layers, None, cfg.heads, held, seen, cfg.layer_loop)


def teacher(cfg: DitConfig, size: Size, place: Place) -> Program:
    """One bidirectional call on a clip; guidance takes two, with and without the conditions."""
    held, frames = size.held(cfg) if cfg.motion_latents else 0, size.teacher_latents
    noisy = frames * size.frame
    args = (
        weights(cfg, place),
        place(1, frames, *size.latent, cfg.latent_channels, dtype="float32"),
        place(1, frames, dtype="float32"),
        place(1, held, cfg.width) if held else None,
        _phase(cfg, place, noisy),
        _phase(cfg, place, held) if held else None,
        (_voice(cfg, place, frames),) if cfg.audio_width else (),
        text(cfg, place),
    )

    def call(p, latent, sigma, tokens, phase, tokens_phase, voices, cross):
        return dit.apply_joint(
            p, latent, sigma, tokens, phase=phase, tokens_phase=tokens_phase, voices=voices, cross=cross, cfg=cfg
        )

    flops, tokens = counts.joint(cfg, noisy, frames, held), noisy + held
    seen = frozenset({tokens, cfg.text_tokens})
    return Program("teacher", call, args, flops, cfg.layers, None, cfg.heads, tokens, seen, cfg.layer_loop)


def sound(cfg: DitConfig, size: Size, place: Place) -> Program:
    """The causal audio encoder and every injector's side of its tokens, once a block."""
    frames = size.audio_context + 4 * size.block_latents
    args = (weights(cfg, place), place(1, frames, cfg.audio_layers, cfg.audio_width, dtype="float32"))

    def listen(p, features):
        voice = audio.encode(p["audio"]["encoder"], features, context=size.audio_context, cfg=cfg)
        return dit.hear(p, (voice,), cfg=cfg)

    flops = counts.audio_encoder(cfg, frames) + counts.hear(cfg, size.block_latents)
    return Program("sound", listen, args, flops)


def decode(cfg: VaeConfig, size: Size, place: Place, platform: str) -> Program:
    """A block's latents to uint8 frames, in the middle of a stream."""
    p = place.weights(vae.spec(cfg))
    p = place.like(jax.eval_shape(lambda p: conv.lay_out(p, platform), p))
    p["stats"] = jax.tree.map(lambda leaf: place(*leaf.shape, dtype="float32"), p["stats"])
    z = place(1, size.block_latents, *size.latent, cfg.latent_channels)
    first = jax.ShapeDtypeStruct((1, 1, *z.shape[2:]), z.dtype)
    tail = place.like(jax.eval_shape(lambda p, z: vae.decode_first(p, z, cfg=cfg)[1], p, first))

    def step(p, tail, z):
        pixels, tail = vae.decode_step(p, tail, z, cfg=cfg)
        return tail, vae.to_uint8(pixels)

    flops = counts.decode(cfg, size.block_latents, *size.latent, border=False)
    return Program("decode", step, (p, tail, z), flops, donated=1)
