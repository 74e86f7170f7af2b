"""Stage two: a student of few steps, taught on its own streams by matching its distribution to the teacher's.

    python -m train.distill --config=configs/tiny.py --latents=runs/tiny/latents \\
        --teacher=runs/tiny/pretrain/dit.safetensors --workdir=runs/tiny/distill

The student streams (`stream/forcing.py`); what it drew is noised and given to two networks that see it whole: the
teacher, guided, and the fake score, which learns what the student draws. Their difference moves the student
(`diffusion/dmd.py`). One base, the teacher's weights, carries all three networks: student and fake score are adapters
on it, or, with `rank` 0, weights of their own that start as its copies (live_avatar.md sections 7.2 and 7.3).
"""

import functools
import pathlib
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh

from avatar_jax.core import axes, check, lora, spec
from avatar_jax.core import config as configs
from avatar_jax.core import tree as trees
from avatar_jax.diffusion import dmd, flow
from avatar_jax.io import weights as weight_files
from avatar_jax.models import dit, layout
from avatar_jax.stream import forcing, rollout, window
from infer import door, hosts
from infer.aot import counts
from train import journal, loop, optim, watch, windows
from train import mesh as meshes

FLAGS = flags.FLAGS
LOWEST, HIGHEST = 0.02, 0.98  # levels at which the two scores are compared (section 7.3)


def define_taught(config: str, runs: str, stage: str) -> None:
    """The flags of a stage that learns from stage one's teacher; `runs`: where all of them go by default."""
    door.define_config(config)
    hosts.define()
    flags.DEFINE_string("latents", f"{runs}/latents", "Folders of train.latents or train.prepare: a=3,b=1 by weight.")
    flags.DEFINE_string("teacher", f"{runs}/pretrain/dit.safetensors", "Weights that stage one wrote.")
    flags.DEFINE_string("workdir", f"{runs}/{stage}", "Where checkpoints, metrics and weights go.")
    watch.define()


def define() -> None:
    """The flags."""
    define_taught("configs/tiny.py", "runs/tiny", "distill")
    flags.DEFINE_string("student", "", "What train.follow has moved (student.safetensors). Default: the teacher's own.")


@flax.struct.dataclass
class DistillState:
    """Both networks that move. `step` int32 [] counts the fake score's updates."""

    step: jax.Array
    student: optim.TrainState
    fake: optim.TrainState


class Drawn(NamedTuple):
    """What a student drew, and from what."""

    x: jax.Array  # [B, F, h, w, C], float32
    reference: jax.Array  # [B, 1, h, w, C]
    speakers: windows.Speakers
    text: jax.Array | None  # rows of the captions, where the model reads them


def rates(cfg: configs.TrainingConfig) -> configs.DistillConfig:
    """The settings of stage two.

    Raises:
      ValueError: the configuration has none.
    """
    if cfg.train.distill is None:
        raise ValueError("config.train.distill=None: this configuration has no second stage; see configs/tiny.py")
    return cfg.train.distill


def network(base: dict, moved: dict, cfg: configs.TrainingConfig) -> dict:
    """One of the three networks, laid out to run: `moved` grafted on the base or in its place, both stacked."""
    settings = rates(cfg)
    weights = lora.graft(base, moved, scale=settings.alpha / settings.rank) if settings.rank else moved
    return dit.lay_out(weights, cfg.dit)


def moving(cfg: configs.TrainingConfig) -> spec.Spec:
    """What moves of the student, and of the fake score: adapters, or all weights."""
    whole, rank = dit.spec(cfg.dit), rates(cfg).rank
    return lora.spec(whole, rank) if rank else whole


def frozen(base: dict, cfg: configs.TrainingConfig) -> dict:
    """The base as adapters stand on it: its large matrices in the dtype that they are multiplied in, which is half."""

    def cast(path: str, leaf: Any) -> Any:
        large = path.startswith(("blocks/", "audio/injectors/")) and path.endswith("/w")
        return leaf.astype(cfg.dit.compute_dtype) if large else leaf

    return trees.unflatten({path: cast(path, leaf) for path, leaf in trees.flatten(base).items()})


def unmoved(base: dict, cfg: configs.TrainingConfig) -> dict:
    """What moves, as the teacher left it."""
    begun = spec.init(moving(cfg), jax.random.key(cfg.data.seed)) if rates(cfg).rank else base
    return jax.tree.map(jnp.copy, begun)


def begin(base: dict, student: dict | None = None, *, cfg: configs.TrainingConfig) -> DistillState:
    """Student and fake score as the teacher left them; `student`: what has moved of the student before."""
    settings = rates(cfg)
    first = unmoved(base, cfg) if student is None else jax.tree.map(jnp.copy, student)
    return DistillState(
        jnp.zeros((), jnp.int32),
        optim.empty(first, settings.student),
        optim.empty(unmoved(base, cfg), settings.fake),
    )


def load_base(teacher: pathlib.Path, mesh: Mesh, cfg: configs.TrainingConfig) -> dict:
    """The teacher's weights, stacked, where they lie on the mesh. Raises ValueError where they do not fit."""
    base = weight_files.load(teacher, dit.spec(cfg.dit))
    where = layout.shardings(meshes.RULES, mesh, unrolled=False, cfg=cfg.dit)
    return jax.device_put(frozen(base, cfg) if rates(cfg).rank else base, where)


def write(path: pathlib.Path, done: dict, teacher: pathlib.Path, cfg: configs.TrainingConfig) -> None:
    """A student that streams: what has moved, or the teacher as it was written with the adapters merged."""
    if rates(cfg).rank:  # not as it was rounded to train on
        scale = rates(cfg).alpha / rates(cfg).rank
        done = lora.merge(weight_files.load(teacher, dit.spec(cfg.dit)), done, scale=scale)
    weight_files.save(path, done, dtype="float16")


def task_of(p: dict, batch: windows.Batch, key: jax.Array, cfg: configs.TrainingConfig) -> tuple[forcing.Task, Any]:
    """A rollout's input from a batch, and who speaks in it: sound, signals and portraits of data, noise of the key.

    Keys and values of portrait and text are part of the memory, so no gradient goes through them. p: the student's
    weights; cfg: from `windows.sized`.
    """
    settings = rates(cfg)
    noise_key, exit_key, anchor_key, vary_key, rest = jax.random.split(key, 5)
    speakers, size = windows.learned(vary_key, batch, cfg), len(batch["latent"])
    shape = (settings.blocks, size, cfg.stream.noise_latents, *cfg.latent_size, cfg.vae.latent_channels)
    held, cross = windows.remembered(p, batch, cfg)
    task = forcing.Task(
        forcing.begin(p, held, cfg=cfg),
        windows.stacked(speakers, jax.random.normal(noise_key, shape), cfg),
        cross,
        jax.random.randint(exit_key, (), 0, cfg.stream.steps),
        rest,
        batch["latent"][:, : cfg.stream.drawn_latents].astype(jnp.float32),
        jax.random.uniform(anchor_key, (size,)) < settings.anchored,
    )
    return jax.lax.stop_gradient(task), windows.cut(speakers, 0, settings.blocks * cfg.block_frames, cfg)


def stream(p: dict, batch: windows.Batch, key: jax.Array, cfg: configs.TrainingConfig) -> Drawn:
    """What the student streams from a batch; its gradient goes block by block."""
    task, speakers = task_of(p, batch, key, cfg)
    x = forcing.joined(forcing.generate(p, task, cfg=cfg), cfg)
    return Drawn(x, batch["reference"].astype(jnp.float32), speakers, batch.get("text"))


def noised(key: jax.Array, x: jax.Array, shift: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Samples at a level each, the noise that is in them, and the levels [B] (section 7.3)."""
    level_key, noise_key = jax.random.split(key)
    level = jnp.clip(flow.shift(jax.random.uniform(level_key, x.shape[:1]), shift), LOWEST, HIGHEST)
    noise = jax.random.normal(noise_key, x.shape)
    return flow.add_noise(x, noise, _wide(level)), noise, level


def _wide(level: jax.Array) -> jax.Array:
    return level[:, None, None, None, None]


def score(
    p: dict, x: jax.Array, level: jax.Array, reference: jax.Array, speakers: Any, cfg: Any, text: Any = None
) -> jax.Array:
    """A score network's velocity of noised samples, seen whole."""
    voices = tuple(rollout.voice_of(p, speaker, cfg=cfg) for speaker in speakers)
    return window.teacher(p, x, level, reference, voices, cross=windows.prompt(p, text, cfg), cfg=cfg)


def pull(base: dict, fake: dict, drawn: Drawn, key: jax.Array, cfg: configs.TrainingConfig) -> jax.Array:
    """Where the student's samples should go, dmd equation (1): both scores on the same noised samples."""
    settings = rates(cfg)
    x, _, level = noised(key, drawn.x, settings.shift)

    def predict(p: dict, speakers: windows.Speakers, text: Any) -> jax.Array:
        return flow.clean(x, score(p, x, level, drawn.reference, speakers, cfg, text), _wide(level))

    unsaid = jax.tree.map(jnp.zeros_like, drawn.text)  # as where a caption has no more rows
    heard, nothing = predict(base, drawn.speakers, drawn.text), predict(base, windows.without(drawn.speakers), unsaid)
    real = flow.guided(heard, nothing, settings.guidance)
    return dmd.direction(drawn.x, real, predict(fake, drawn.speakers, drawn.text))


@functools.partial(jax.jit, static_argnames="cfg", donate_argnums=0)
def step(state: DistillState, batch: windows.Batch, key: jax.Array, base: dict, *, cfg: configs.TrainingConfig):
    """One update of the fake score, and in one of `every` steps first one of the student on the same streams.

    base: the teacher's weights, stacked. Returns the state and scalars.
    """
    cfg, settings = windows.sized(batch, cfg), rates(cfg)
    stream_key, pull_key, fake_key = jax.random.split(key, 3)
    teacher, fake = dit.lay_out(base, cfg.dit), network(base, state.fake.weights, cfg)

    def student_loss(moved: dict) -> tuple[jax.Array, Drawn]:
        drawn = stream(network(base, moved, cfg), batch, stream_key, cfg)
        still = jax.lax.stop_gradient(drawn)
        return dmd.generator_loss(drawn.x, pull(teacher, fake, still, pull_key, cfg)), still

    def move(student: optim.TrainState) -> tuple[optim.TrainState, Drawn]:
        gradient, drawn = jax.grad(student_loss, has_aux=True)(student.weights)
        return optim.step(student, gradient, cfg=settings.student), drawn

    def wait(student: optim.TrainState) -> tuple[optim.TrainState, Drawn]:
        return student, stream(network(base, student.weights, cfg), batch, stream_key, cfg)

    student, drawn = jax.lax.cond(state.step % settings.every == 0, move, wait, state.student)
    x, noise, level = noised(fake_key, drawn.x, settings.shift)

    def fake_loss(moved: dict) -> jax.Array:
        p = network(base, moved, cfg)
        v = score(p, x, level, drawn.reference, drawn.speakers, cfg, drawn.text)
        return dmd.fake_loss(v, drawn.x, noise)

    lost, gradient = jax.value_and_grad(fake_loss)(state.fake.weights)
    scalars = {"loss_fake": lost, "motion": jnp.abs(jnp.diff(drawn.x, axis=1)).mean()}
    return DistillState(state.step + 1, student, optim.step(state.fake, gradient, cfg=settings.fake)), scalars


def cost(cfg: configs.TrainingConfig) -> journal.Cost:
    """Tokens of the rollouts of a step, and its operations: the mean over exit steps and over who moves.

    A rollout takes (steps + 1) / 2 calls a block; every step the fake score learns on it, and in one of `every` the
    student moves: three more looks at the whole, and a replay. A gradient is as much as its call, twice where all
    weights move.
    """
    settings, (streamed, whole) = rates(cfg), counts.rounds(cfg, rates(cfg).blocks)
    learning = 2 if settings.rank else 3
    calls = (cfg.stream.steps + 1) / 2 * streamed + learning * whole
    calls += (3 * whole + learning * streamed) / settings.every
    batch, tokens = settings.student.batch, settings.blocks * cfg.stream.block_latents * cfg.tokens_per_frame
    return journal.Cost(batch * tokens, batch * calls)


def averaged(state: DistillState) -> dict:
    """What is kept of a run: the student's averaged weights, or its adapters'."""
    return state.student.average


def train(
    cfg: configs.TrainingConfig,
    folders: str,
    teacher: pathlib.Path,
    workdir: pathlib.Path,
    view: watch.View | None = None,
    student: pathlib.Path | None = None,
) -> None:
    """Trains to the end and writes `dit.safetensors`, the student's averaged weights with its adapters merged.

    With patience it is the best that was watched, else the last.
    """
    settings, mesh = rates(cfg), meshes.make_mesh(cfg.train.mesh)
    base, over = load_base(teacher, mesh, cfg), axes.shardings(moving(cfg), meshes.RULES, mesh)
    first = jax.device_put(weight_files.load(student, moving(cfg)), over) if student else None
    state = meshes.make_state(functools.partial(begin, cfg=cfg), over, mesh, base, first)
    stepped = meshes.make_step(functools.partial(step, cfg=cfg), state, mesh)

    def walk(state: DistillState, batch: windows.Batch, key: jax.Array) -> Any:
        return stepped(state, batch, key, base)

    around: Any = {"workdir": workdir, "mesh": mesh, "cfg": cfg, "patience": settings.patience}
    seen = watch.Watch(view, averaged, functools.partial(network, base, cfg=cfg), **around) if view else None
    batches = windows.batches(folders, settings.student.batch, mesh, cfg)
    state = loop.Run(cfg, settings.fake, workdir, mesh, cost(cfg), seen).fit(state, batches, walk)
    done = meshes.whole(averaged(state))
    if jax.process_index() == 0:
        best = seen is not None and settings.patience > 0
        done = weight_files.load(workdir / watch.BEST, moving(cfg)) if best else done
        write(workdir / "dit.safetensors", done, teacher, cfg)


def main() -> None:
    """One process of the run."""
    hosts.check()
    cfg = check.validate(FLAGS.config)
    view = watch.asked(cfg, rates(cfg).patience)
    door.start_jax()
    with hosts.together():
        student = pathlib.Path(FLAGS.student) if FLAGS.student else None
        train(cfg, FLAGS.latents, pathlib.Path(FLAGS.teacher), pathlib.Path(FLAGS.workdir), view, student)


if __name__ == "__main__":
    door.run(main, define)
