"""One tick of the pipeline as an abstract program: what every stage of a mesh runs at once."""

from pathlib import Path

import jax

from avatar_jax.core import check
from avatar_jax.core.config import Config, DitConfig, sized
from avatar_jax.models import dit
from avatar_jax.nn import kv, rope
from avatar_jax.stream import mesh as meshes
from avatar_jax.stream import pipeline, rollout
from avatar_jax.stream.state import BlockInput, Place, Scene, Speaker
from infer import door
from infer.aot import counts, programs

CONFIG = Path(__file__).parents[2] / "configs" / "live_avatar_14b.py"


def config_of(transformer: DitConfig, size: programs.Size) -> Config:
    """The released run around a transformer."""
    cfg = sized(door.load_config(str(CONFIG)), size.height, size.width)
    cfg.dit = transformer
    return cfg


def _entering(cfg: Config, size: programs.Size, place: programs.Place) -> BlockInput:
    heard = cfg.stream.audio_context + cfg.block_frames
    time = rope.pairs(cfg.dit.head_size)[0]

    def phase(*shape: int) -> rope.Phase:
        return rope.Phase(*(place(*shape, time, dtype="float32") for _ in range(2)))

    return BlockInput(
        speakers=(Speaker(place(1, heard, cfg.dit.audio_layers, cfg.dit.audio_width, dtype="float32")),),
        noise=place(1, size.block_latents, *size.latent, cfg.dit.latent_channels, dtype="float32"),
        place=Place(
            phase(1, size.block_latents),
            phase(1, cfg.stream.calls, 1),
            place(1, 1, dtype="int32"),
            place(1, dtype="int32"),
        ),
    )


def tick(transformer: DitConfig, size: programs.Size, place: programs.Place) -> programs.Program:
    """A tick of four steps over the mesh's stages; without a mesh, what one stage of four does.

    `flops` are those of one stage.
    """
    cfg, mesh = config_of(transformer, size), place.mesh
    stages = cfg.stream.steps if mesh is None else mesh.shape[meshes.STAGE]
    steps, held = check.stages(stages, cfg), size.held(transformer)
    whole = programs.Place(None, place.dtype)  # shapes alone
    keys = whole(1, held + size.ring, transformer.heads, transformer.head_size)
    reference = whole(1, held, transformer.heads, transformer.head_size)
    memory = programs.layered(transformer, whole, kv.KVCache(keys, keys, reference))
    cross, p = programs.text(transformer, whole), programs.weights(transformer, place)
    entering = _entering(cfg, size, place)
    flops = steps * counts.block(transformer, size.block, size.ring, held)
    heard = entering.speakers[0].features.shape[1]
    flops += counts.audio_encoder(transformer, heard) + counts.hear(transformer, size.block_latents)
    seen = frozenset({held + size.ring, transformer.text_tokens})
    about = (transformer.heads, size.block, seen, transformer.layer_loop)
    if mesh is None:

        def stage(p, memories, entering, cross):
            flight = rollout.enter(p, entering, cfg=cfg)
            heard = dit.hear(p, flight.voices, cfg=transformer)
            return rollout.advance(p, memories, flight, 0, steps, heard, cross, cfg=cfg)[1].latent

        args = (p, (memory,) * steps, entering, cross)
        return programs.Program("tick", stage, args, flops, transformer.layers, None, *about)
    entering = jax.tree.map(lambda leaf: place(stages, *leaf.shape, dtype=leaf.dtype, over=(meshes.STAGE,)), entering)
    latent = (*size.latent, transformer.latent_channels)
    scene = Scene(whole(1, 1, *latent), whole(1, max(1, transformer.motion_latents), *latent), cross)
    state = pipeline.abstract(p, scene, entering, mesh=mesh, cfg=cfg)
    run = pipeline.make_tick(cfg, mesh)
    return programs.Program("tick", run, (p, state, entering), flops, transformer.layers, 1, *about)
