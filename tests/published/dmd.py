"""Self-Forcing distribution matching: losses and parameter gradients through the real 21-frame rollout."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import tree
from avatar_jax.diffusion import dmd, flow, schedule
from avatar_jax.io.convert import wan
from avatar_jax.models import dit
from tests.published.case import Case, Outputs
from tests.published.self_forcing import THOUSAND, Memory, level_of, noisy_at, ours, theirs
from tests.published.wan import network, phase_of

NORM = 1e-3  # gradients are compared relative to their norm (case.json)


class Setting:
    """The three networks of a case and its inputs."""

    def __init__(self, case: Case):
        self.io, self.params = case.tensors(), case.about["params"]
        self.generator, self.cfg = network(case, "generator", layer_loop="scan")
        self.real, self.fake = (network(case, name, layer_loop="scan")[0] for name in ("real_score", "fake_score"))
        self.text = {name: jnp.asarray(self.io[name]) for name in ("context", "context_neg")}

    def warped(self, raw: np.ndarray) -> np.ndarray:
        """Timestep that a raw integer stands for, shifted and clamped, float32 [1]."""
        t = flow.shift(raw / 1000.0, self.params["generator_scheduler_shift"]) * 1000.0
        return np.clip(t, 20.0, 980.0).astype(np.float32)

    def score(self, p: dict, x: jax.Array, t: np.ndarray, text: str) -> jax.Array:
        """x0 predicted by a score network, which turns velocity with its own table."""
        cross = dit.remember(p, self.text[text], cfg=self.cfg)
        level = jnp.broadcast_to(jnp.asarray(t) / THOUSAND, x.shape[:2])
        v = dit.apply_joint(p, x, level, phase=phase_of(np.arange(x.shape[1]), x, self.cfg), cross=cross, cfg=self.cfg)
        sigma = level_of(t, self.params["score_scheduler_shift"])[..., None, None, None]
        return flow.clean(x, v, sigma)

    def rollout(self, p: dict, name: str, *, leaky: bool) -> jax.Array:
        """Generated latents, block after block, with gradient through each block's exit step alone.

        leaky: keep the gradient of earlier blocks' exit-step keys and values, as the reference's in-place caches do.
        """
        params, length, stop = self.params, self.params["nf"], jax.lax.stop_gradient
        noise, renoise = ours(self.io[f"{name}.noise"]), ours(self.io[f"{name}.renoise"])
        context = ours(self.io[f"{name}.ctx_noise"][None])
        steps = schedule.warped(params["steps"], params["shift"])
        cross = dit.remember(p, self.text["context"], cfg=self.cfg)
        memory = Memory(p, cross, self.cfg, noise, capacity=params["F"], sink=0, length=length)
        out, cache = [], memory.cache
        for block in range(params["blocks"]):
            frames = slice(block * length, (block + 1) * length)
            x = noise[:, frames]
            for k in range(params["exit"]):
                _, v = memory.step(stop(p), stop(cache), x, steps[k], block)
                x0 = stop(flow.clean(x, v, level_of(steps[k], params["shift"])))
                x = noisy_at(x0, renoise[k : k + 1, frames], steps[k + 1], params["shift"])
            t = steps[params["exit"]]
            left, v = memory.step(p, cache if leaky else stop(cache), x, t, block)
            out.append(flow.clean(x, v, level_of(t, params["shift"])))
            clean = noisy_at(stop(out[-1]), context[:, frames], np.float32(0.0), params["shift"])
            after = stop(memory.step(stop(p), stop(cache), clean, 0.0, block)[0])
            cache = jax.tree.map(lambda new, old: new + old - stop(old), after, left) if leaky else after
        return jnp.concatenate(out, 1)


def _generator_loss(given: Setting, p: dict, *, leaky: bool) -> tuple[jax.Array, Outputs]:
    io, params = given.io, given.params
    x = given.rollout(p, "gen", leaky=leaky)
    t, noise = given.warped(io["gen.t_raw"]), ours(io["gen.dmd_noise"])
    noisy = jax.lax.stop_gradient(noisy_at(x, noise, t, params["generator_scheduler_shift"]))
    real = {text: given.score(given.real, noisy, t, text) for text in ("context", "context_neg")}
    fake = given.score(given.fake, noisy, t, "context")
    guided = flow.guided(real["context"], real["context_neg"], params["real_guidance_scale"] + 1.0)
    gradient = jax.lax.stop_gradient(dmd.direction(x, guided, fake))
    loss = dmd.generator_loss(x, gradient)
    return loss, {
        "gen.pred_image": theirs(x),
        "gen.noisy_latent": theirs(noisy),
        "gen.timestep": np.broadcast_to(t, x.shape[:2]),
        "gen.dmd_grad": theirs(gradient),
        "gen.dloss_dlatent": theirs(jax.grad(dmd.generator_loss)(x, gradient)),
        "gen.pred_fake_cond": theirs(fake),
        "gen.pred_real_cond": theirs(real["context"]),
        "gen.pred_real_uncond": theirs(real["context_neg"]),
    }


def _gradients(case: Case, given: Setting, prefix: str, gradient: dict) -> dict[str, float]:
    """Errors of parameter gradients in units of their tolerance, in our layout."""
    flat, sources = tree.flatten(gradient), wan.table(given.cfg)
    norm = float(np.sqrt(sum(float(jnp.square(leaf).sum()) for leaf in flat.values())))
    worst = case.worst({f"{prefix}.grad_norm": np.array([norm])})
    for path, source in sources.items():
        for layer, key in enumerate(source.key.format(i) for i in range(given.cfg.layers)):
            name = f"{prefix}.grad.{key}"
            if name in given.io and name not in worst:
                expected = source.change(given.io[name])
                mine = np.asarray(flat[path][layer] if "{}" in source.key else flat[path])
                worst[name] = float(np.linalg.norm(mine - expected) / np.linalg.norm(expected)) / NORM
    return worst


def _generator(case: Case, given: Setting) -> dict[str, float]:
    worst = {}
    for name, leaky in (("stopgrad", False), ("refautograd", True)):
        run = jax.jit(jax.value_and_grad(lambda p, leaky=leaky: _generator_loss(given, p, leaky=leaky), has_aux=True))
        (loss, outputs), gradient = run(given.generator)
        worst |= case.worst(outputs | {"gen.loss": loss[None], "gen.refautograd.loss": loss[None]}) | _gradients(
            case, given, f"gen.{name}", gradient
        )
    return worst


def _critic(case: Case, given: Setting) -> dict[str, float]:
    io, params = given.io, given.params
    t, noise = given.warped(io["critic.t_raw"]), ours(io["critic.critic_noise"])
    shift = params["generator_scheduler_shift"]
    x = jax.jit(lambda p: given.rollout(p, "critic", leaky=False))(given.generator)
    noisy = noisy_at(x, noise, t, shift)

    def loss_fn(p: dict) -> tuple[jax.Array, Any]:
        x0 = given.score(p, noisy, t, "context")
        v = flow.velocity_to(noisy, x0, level_of(t, shift)[..., None, None, None])
        return dmd.fake_loss(v, x, noise), (x0, v)

    (loss, (x0, v)), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(given.fake)
    outputs: Outputs = {"critic.loss": loss[None], "critic.timestep": np.broadcast_to(t, x.shape[:2])}
    outputs |= {"critic.pred_fake_x0": theirs(x0), "critic.pred_fake_flow": theirs(v)}
    return case.worst(outputs) | _gradients(case, given, "critic", gradient)


def _masked(case: Case, given: Setting) -> dict[str, float]:
    """Guidance of the fake network too, and the first block left out of the loss."""
    io, params = given.io, given.params
    x, t = ours(io["dmd2.latent"]), given.warped(io["dmd2.t_raw"])
    noisy = noisy_at(x, ours(io["dmd2.noise"]), t, params["generator_scheduler_shift"])
    scales = {"real": params["real_guidance_scale"], "fake": params["fake_guidance_scale_dmd2"]}
    scored = {}
    for name, p in (("real", given.real), ("fake", given.fake)):
        seen, unseen = (given.score(p, noisy, t, text) for text in ("context", "context_neg"))
        scored[name] = flow.guided(seen, unseen, scales[name] + 1.0)
    gradient = dmd.direction(x, scored["real"], scored["fake"])
    selected = (jnp.arange(x.shape[1]) >= params["nf"])[None, :, None, None, None]
    loss, slope = jax.value_and_grad(dmd.generator_loss)(x, gradient, selected)
    outputs: Outputs = {"dmd2.loss": loss[None], "dmd2.dloss_dlatent": theirs(slope)}
    return case.worst(outputs | {"dmd2.timestep": np.broadcast_to(t, x.shape[:2]), "dmd2.dmd_grad": theirs(gradient)})


def matching(case: Case) -> dict[str, float]:
    """The generator's loss and gradients both ways, the critic's, and the masked variant."""
    given = Setting(case)
    return _generator(case, given) | _critic(case, given) | _masked(case, given)
