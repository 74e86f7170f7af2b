"""Self-Forcing's causal model: training masks, memories, few-step rollouts, and distribution matching."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import DitConfig
from avatar_jax.diffusion import flow, schedule
from avatar_jax.models import dit, mask
from avatar_jax.nn import kv
from avatar_jax.nn.rope import Phase
from tests.published.case import Case, Outputs
from tests.published.wan import grid_of, network, phase_of

THOUSAND = np.float32(dit.TIMESTEPS)


def ours(x: Any) -> jax.Array:
    """[B, F, C, h, w] to [B, F, h, w, C]."""
    return jnp.moveaxis(jnp.asarray(x), 2, -1)


def theirs(x: Any) -> jax.Array:
    """The inverse of `ours`."""
    return jnp.moveaxis(x, -1, 2)


def level_of(t: Any, shift: float) -> np.ndarray:
    """Sigma of the training table's entry nearest to each timestep, float32."""
    levels = schedule.training(shift)
    return levels[schedule.nearest(t, levels)]


def noisy_at(x0: Any, noise: Any, t: Any, shift: float) -> jax.Array:
    """x0 noised to timesteps t, which broadcast against [B, F]."""
    return flow.add_noise(x0, noise, level_of(t, shift)[..., None, None, None])


def whole(p: dict, x: Any, t: np.ndarray, seen: np.ndarray, times: np.ndarray, cross: Any, cfg: DitConfig) -> jax.Array:
    """Velocity of a sequence [B, F, h, w, C] under a mask."""
    phase = phase_of(times, x, cfg)
    return dit.apply(p, x, jnp.asarray(t) / THOUSAND, phase=phase, mask=seen, cross=cross, cfg=cfg)


def _masks(case: Case, p: dict, cross: Any, cfg: DitConfig) -> Outputs:
    io, params = case.tensors(), case.about["params"]
    blocks, tokens = (params["nf"],) * (params["F"] // params["nf"]), params["tokens_per_frame"]
    x, clean, times = ours(io["x"]), ours(io["clean_x"]), np.arange(params["F"])
    causal, local = mask.block_causal(blocks, tokens), mask.block_causal(blocks, tokens, params["LA_mask"])
    outputs: Outputs = {"df.mask": causal, "df_local.mask": local, "tf.mask": mask.teacher_forcing(blocks, tokens)}
    for name, seen in (("df", causal), ("df_local", local)):
        outputs[f"{name}.flow"] = theirs(whole(p, x, io["t"], seen, times, cross, cfg))
    opened = (1, *((params["nf"],) * (params["F_i2v"] // params["nf"])))
    seen, first = mask.block_causal(opened, tokens), ours(io["firstframe.x"])
    flows = whole(p, first, io["firstframe.t"], seen, np.arange(params["F_i2v"]), cross, cfg)
    outputs["df_firstframe.flow"] = theirs(flows)
    for name, level in (("tf", np.zeros_like(io["t"])), ("tf_aug", io["aug_t"])):
        flows = teacher_forced(p, x, clean, io["t"], level, blocks, tokens, cross, cfg)
        outputs[f"{name}.flow"] = theirs(flows)
    return outputs


def teacher_forced(
    p: dict, x: Any, clean: Any, t: np.ndarray, clean_t: np.ndarray, blocks: tuple, tokens: int, cross: Any, cfg
) -> jax.Array:
    """Velocity of the noisy half of [clean | noisy], both at the same positions."""
    times, length = np.tile(np.arange(sum(blocks)), 2), sum(blocks)
    both, level = jnp.concatenate([clean, x], 1), np.concatenate([clean_t, t], 1)
    return whole(p, both, level, mask.teacher_forcing(blocks, tokens), times, cross, cfg)[:, length:]


def _losses(case: Case, p: dict, cross: Any, cfg: DitConfig) -> Outputs:
    io, params = case.tensors(), case.about["params"]
    blocks, tokens = (params["nf"],) * (params["F"] // params["nf"]), params["tokens_per_frame"]
    levels = schedule.training(params["shift"])
    sigma = levels[io["loss.index"]]
    clean, noise = ours(io["clean_x"]), ours(io["loss.noise"])
    x = flow.add_noise(clean, noise, sigma[..., None, None, None])
    weight = schedule.training_weights(levels)[io["loss.index"]]
    t, times = sigma * THOUSAND, np.arange(params["F"])
    predicted = {
        "df": whole(p, x, t, mask.block_causal(blocks, tokens), times, cross, cfg),
        "tf": teacher_forced(p, x, clean, t, np.zeros_like(t), blocks, tokens, cross, cfg),
    }
    outputs: Outputs = {}
    for name, v in predicted.items():
        error = jnp.square(v - flow.velocity(clean, noise)).mean((2, 3, 4))
        outputs[f"loss.{name}"] = (weight * error).mean()[None]
        outputs[f"loss.{name}.x0_pred"] = theirs(flow.clean(x, v, sigma[..., None, None, None]))
    return outputs


class Memory:
    """One ring memory without condition tokens, over blocks of `length` latent frames."""

    def __init__(self, p: dict, cross: Any, cfg: DitConfig, latent: Any, *, capacity: int, sink: int, length: int):
        self.p, self.cross, self.cfg, self.capacity, self.sink, self.length = p, cross, cfg, capacity, sink, length
        self.tokens = int(np.prod(grid_of(latent, cfg)))
        nobody = jnp.zeros((len(latent), 0, cfg.heads, cfg.head_size))
        one = kv.empty(nobody, nobody, capacity * self.tokens)
        self.cache: Any = jax.tree.map(lambda leaf: jnp.stack([leaf] * cfg.layers), one)

    def step(self, p: dict, cache: Any, x: Any, t: Any, block: int) -> tuple[Any, jax.Array]:
        """The memory after a call on [B, length, h, w, C] at timestep t, and the velocity."""
        times = block * self.length + np.arange(self.length)
        nobody = np.zeros((0, self.cfg.head_size // 2), np.float32)
        return program(self.cfg)(
            p,
            cache,
            x,
            dit.level(p, np.float32(t) / THOUSAND, cfg=self.cfg),
            phase=phase_of(times, x, self.cfg),
            reference_phase=Phase(nobody, nobody),
            slots=kv.places(times, self.capacity, self.sink)[None],
            filled=np.int32(min(int(times[-1]) + 1, self.capacity) * self.tokens),
            cross=self.cross,
        )

    def call(self, x: Any, t: Any, block: int) -> jax.Array:
        """Velocity, the memory replaced."""
        self.cache, v = self.step(self.p, self.cache, x, t, block)
        return v


@functools.lru_cache
def program(cfg: DitConfig):
    """One call on a block, compiled."""
    return jax.jit(lambda p, *args, **kwargs: dit.apply_block(p, *args, **kwargs, cfg=cfg))


def _remembered(case: Case, p: dict, cross: Any, cfg: DitConfig) -> Outputs:
    io, params = case.tensors(), case.about["params"]
    x, clean, length = ours(io["x"]), ours(io["clean_x"]), params["nf"]
    memory = Memory(p, cross, cfg, x, capacity=params["F"], sink=0, length=length)
    flows = []
    for block in range(params["F"] // length):
        frames = slice(block * length, (block + 1) * length)
        flows.append(memory.call(x[:, frames], io["t"][0, frames.start], block))
        memory.call(clean[:, frames], 0.0, block)
    return {"kv.flow": theirs(jnp.concatenate(flows, 1))}


def _rollout(case: Case, name: str, p: dict, cross: Any, cfg: DitConfig) -> Outputs:
    io, params = case.tensors(), case.about["params"]
    rolls, length, shift = name == "infer_roll", params["nf"], params["shift"]
    blocks = params["blocks_roll"] if rolls else params["blocks"]
    capacity, sink = (params["LA"], params["sink"]) if rolls else (blocks * length, 0)
    noise, renoise = ours(io[f"{name}.noise"]), ours(io[f"{name}.renoise"])
    memory = Memory(p, cross, cfg, noise, capacity=capacity, sink=sink, length=length)
    steps = schedule.warped(params["steps"], shift)
    ins, flows, cleans, out = [], [], [], []
    for block in range(blocks):
        frames = slice(block * length, (block + 1) * length)
        x = noise[:, frames]
        for k, t in enumerate(steps):
            ins.append(x)
            flows.append(memory.call(x, t, block))
            cleans.append(flow.clean(x, flows[-1], level_of(t, shift)))
            if k + 1 < len(steps):
                x = noisy_at(cleans[-1], renoise[k : k + 1, frames], steps[k + 1], shift)
        out.append(cleans[-1])
        memory.call(out[-1], 0.0, block)
    end = blocks * length
    newest = np.concatenate([np.arange(sink), kv.places(np.arange(end - capacity + sink, end), capacity, sink)])
    layer = jax.tree.map(lambda leaf: leaf[0], memory.cache)
    order = (newest[:, None] * memory.tokens + np.arange(memory.tokens)).reshape(-1)
    shaped = {"step_in": ins, "step_flow": flows, "step_x0": cleans}
    outputs: Outputs = {
        f"{name}.{key}": np.reshape(
            [np.asarray(theirs(x))[0] for x in value], (blocks, len(steps), length, -1, *noise.shape[2:4])
        )
        for key, value in shaped.items()
    }
    return outputs | {
        f"{name}.out": theirs(jnp.concatenate(out, 1))[0],
        f"{name}.denoising_step_list": steps,
        f"{name}.final_k.layer0": layer.k[0, order],
        f"{name}.final_v.layer0": layer.v[0, order],
    }


def causal(case: Case) -> dict[str, float]:
    """Masks, losses, memories against teacher forcing, and rollouts with a growing and a rolling memory."""
    p, cfg = network(case, layer_loop="scan")
    cross = dit.remember(p, jnp.asarray(case.tensors()["context"]), cfg=cfg)
    outputs = _masks(case, p, cross, cfg) | _losses(case, p, cross, cfg) | _remembered(case, p, cross, cfg)
    return case.worst(outputs | _rollout(case, "infer", p, cross, cfg) | _rollout(case, "infer_roll", p, cross, cfg))
