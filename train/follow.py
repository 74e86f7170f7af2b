"""Between the stages: a student that streams, led by its teacher through the states that its own stream comes to.

    python -m train.follow --config=configs/tiny_driven.py --latents=runs/tiny/driven/latents \\
        --teacher=runs/tiny/driven/pretrain/dit.safetensors --workdir=runs/tiny/driven/follow

A stream of "timestep" history takes step k of every block over a past at the level of step k. So all blocks of a window
take that step in one call under the block-causal mask. With X_0 noise, s_k the levels and v the student's velocity,

(1)  X_{k+1} = X_k + (s_{k+1} - s_k) v(X_k, s_k)        the stream itself (live_avatar.md section 11.5)
(2)  L = mean w |v(X_k, s_k) - v_T(X_k, s_k)|^2         one k for each step of training, drawn at random

where v_T is the guided velocity of the teacher, that sees the window whole, and w looks where the picture moves
(`pretrain.motion_weight`). What is learned is how to see only the past, and guidance in one call; that the states are
the student's own keeps its errors from adding up. It is the place that CausVid gives to regression on the teacher's ODE
(arXiv 2412.07772, section 4.2), whose states are the teacher's and are made beforehand. Distribution matching goes on
from here (`train.distill --student`).
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from avatar_jax.core import axes, check
from avatar_jax.core import config as configs
from avatar_jax.diffusion import flow
from avatar_jax.io import weights as weight_files
from avatar_jax.models import dit
from avatar_jax.stream import rollout, window
from infer import door, hosts
from infer.aot import counts
from train import distill, journal, loop, optim, pretrain, watch, windows
from train import mesh as meshes

FLAGS = flags.FLAGS
STUDENT = "student.safetensors"  # what has moved, for `train.distill --student`


def define() -> None:
    """The flags."""
    distill.define_taught("configs/tiny_driven.py", "runs/tiny/driven", "follow")


def rates(cfg: configs.TrainingConfig) -> configs.OptimConfig:
    """The rates of this stage.

    Raises:
      ValueError: the configuration has none.
    """
    found = distill.rates(cfg).follow
    if found is None:
        raise ValueError("config.train.distill.follow=None: this configuration has no such stage")
    return found


def velocity(
    p: dict, x: jax.Array, level: jax.Array, batch: windows.Batch, speakers: windows.Speakers, cfg: Any
) -> jax.Array:
    """The student's velocity of all blocks of a window at one level [], each seeing what its stream would."""
    blocks, reference = x.shape[1] // cfg.stream.block_latents, batch["reference"].astype(jnp.float32)
    return window.velocity(
        p,
        x,
        jnp.broadcast_to(level, x.shape[:2]),
        reference,
        tuple(rollout.voice_of(p, speaker, cfg=cfg) for speaker in speakers),
        ahead=window.starts(blocks, cfg) + cfg.stream.reference_ahead[0],
        seen=window.causal(blocks, cfg),
        cross=windows.prompt(p, batch.get("text"), cfg),
        cfg=cfg,
    )


def states(p: dict, noise: jax.Array, last: int | jax.Array, batch: Any, speakers: Any, cfg: Any) -> jax.Array:
    """Equation (1): X_last of a window's stream, from noise [B, F, h, w, C]; after all steps it is what is drawn."""
    levels = jnp.asarray(rollout.levels(cfg.stream))

    def step(k: jax.Array, x: jax.Array) -> jax.Array:
        return flow.euler(x, velocity(p, x, levels[k], batch, speakers, cfg), levels[k], levels[k + 1])

    return jax.lax.fori_loop(0, last, step, noise)


def lead(
    p: dict, teacher: dict, batch: windows.Batch, keys: tuple[jax.Array, jax.Array], k: jax.Array, cfg: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How far the student's velocity at X_k is from the teacher's, that one, and w [B, 1, h, w, 1].

    p, teacher: weights as the transformer runs them; keys: of the stream's noise, and of how its sound is varied.
    """
    noise, speakers = jax.random.normal(keys[0], batch["latent"].shape), windows.learned(keys[1], batch, cfg)
    level = jnp.asarray(rollout.levels(cfg.stream))[k]
    x = states(jax.lax.stop_gradient(p), noise, k, batch, speakers, cfg)
    reference, text = batch["reference"].astype(jnp.float32), batch.get("text")

    def predict(speakers: windows.Speakers, text: Any) -> jax.Array:
        return distill.score(teacher, x, jnp.full(len(x), level), reference, speakers, cfg, text)

    heard, nothing = predict(speakers, text), predict(windows.without(speakers), jax.tree.map(jnp.zeros_like, text))
    wanted = jax.lax.stop_gradient(flow.guided(heard, nothing, distill.rates(cfg).guidance))
    weight = pretrain.motion_weight(flow.clean(x, wanted, level), cfg.train.dit_motion)
    return velocity(p, x, level, batch, speakers, cfg) - wanted, wanted, weight


def loss_fn(moved: dict, batch: windows.Batch, key: jax.Array, base: dict, *, cfg: configs.TrainingConfig):
    """Equation (2), `pretrain.twin_error` of twins by its weight, and scalars.

    base: the teacher's weights, stacked; moved: what is learned, as `distill.moving`.
    """
    cfg = windows.sized(batch, cfg)
    noise_key, vary_key, step_key = jax.random.split(key, 3)
    k = jax.random.randint(step_key, (), 0, cfg.stream.steps)
    p, teacher = distill.network(base, moved, cfg), dit.lay_out(base, cfg.dit)
    led = functools.partial(lead, p, teacher, keys=(noise_key, vary_key), k=k, cfg=cfg)
    error, wanted, weight = led(batch)
    loss = (weight * jnp.square(error)).mean()
    if "twin" not in batch:
        return loss, {"loss": loss}
    twin, other, twin_weight = led(batch | batch["twin"])
    loss = (loss + (twin_weight * jnp.square(twin)).mean()) / 2
    level = jnp.broadcast_to(jnp.asarray(rollout.levels(cfg.stream))[k], (len(error), 1))
    apart = pretrain.twin_error((error - twin)[:, None], (wanted - other)[:, None], level).mean()
    return loss + cfg.train.dit_twin * apart, {"loss": loss, "loss_twin": apart}


@functools.partial(jax.jit, static_argnames="cfg", donate_argnums=0)
def step(state: optim.TrainState, batch: windows.Batch, key: jax.Array, base: dict, *, cfg: configs.TrainingConfig):
    """One step of the student. Returns the state and scalars."""
    given, loss = rates(cfg), functools.partial(loss_fn, base=base, cfg=cfg)
    gradient, scalars = optim.gradient(loss, state.weights, batch, key, pieces=given.accumulate)
    return optim.step(state, gradient, cfg=given), scalars


def cost(cfg: configs.TrainingConfig) -> journal.Cost:
    """Tokens of a batch, and the operations of a step: half of the stream's calls, two of the teacher, a gradient."""
    streamed, whole = counts.rounds(cfg, cfg.train.dit_blocks)
    learning = 2 if distill.rates(cfg).rank else 3
    calls = (cfg.stream.steps - 1) / 2 * streamed + 2 * whole + learning * streamed
    batch, tokens = rates(cfg).batch, cfg.train.dit_blocks * cfg.stream.block_latents * cfg.tokens_per_frame
    return journal.Cost(batch * tokens, batch * calls)


def averaged(state: optim.TrainState) -> dict:
    """What is kept of a run: averaged weights, or adapters."""
    return state.average


def train(
    cfg: configs.TrainingConfig,
    folders: str,
    teacher: pathlib.Path,
    workdir: pathlib.Path,
    view: watch.View | None = None,
) -> None:
    """Trains to the end; writes what has moved, and `dit.safetensors`, a student that streams."""
    given, mesh = rates(cfg), meshes.make_mesh(cfg.train.mesh)
    base = distill.load_base(teacher, mesh, cfg)
    over = axes.shardings(distill.moving(cfg), meshes.RULES, mesh)

    def fresh(base: dict) -> optim.TrainState:
        return optim.empty(distill.unmoved(base, cfg), given)

    state = meshes.make_state(fresh, over, mesh, base)
    stepped = meshes.make_step(functools.partial(step, cfg=cfg), state, mesh)

    def walk(state: optim.TrainState, batch: windows.Batch, key: jax.Array) -> Any:
        return stepped(state, batch, key, base)

    around: Any = {"workdir": workdir, "mesh": mesh, "cfg": cfg}
    seen = watch.Watch(view, averaged, functools.partial(distill.network, base, cfg=cfg), **around) if view else None
    batches = windows.batches(folders, given.batch, mesh, cfg, twins=cfg.train.dit_twin > 0.0)
    state = loop.Run(cfg, given, workdir, mesh, cost(cfg), seen).fit(state, batches, walk)
    done = meshes.whole(averaged(state))
    if jax.process_index() == 0:
        weight_files.save(workdir / STUDENT, done)
        distill.write(workdir / "dit.safetensors", done, teacher, cfg)


def main() -> None:
    """One process of the run."""
    hosts.check()
    cfg = check.validate(FLAGS.config)
    rates(cfg)
    view = watch.asked(cfg)
    door.start_jax()
    with hosts.together():
        train(cfg, FLAGS.latents, pathlib.Path(FLAGS.teacher), pathlib.Path(FLAGS.workdir), view)


if __name__ == "__main__":
    door.run(main, define)
