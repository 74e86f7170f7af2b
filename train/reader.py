"""Trains the reader: `python -m train.reader --config=configs/reader.py --workdir=runs/reader`.

Renders a pool of faces with random poses, then fits the network to their known mouths, identities and poses through
random faults of the kind that a generator or a codec makes, so that it reads generated frames as well as clean ones.
Writes reader.safetensors, config.json, metrics.jsonl, result.json and loss.png to the work folder.
`--evaluate=avatar_jax/assets/reader.safetensors` only measures existing weights. With `--start=` such weights and
`--config.towers="('pose',)"` that tower is trained alone, and the others stay as they are to the bit.
"""

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from absl import flags, logging
from safetensors.numpy import load_file, save_file

from avatar_jax.metrics import reader, sync
from infer import door
from train import reader_data

FLAGS = flags.FLAGS

LOSSES = {"mouth": ("opening", "width"), "face": ("identity",), "pose": reader.POSE}  # mean squared errors


def define() -> None:
    """The flags."""
    door.define_config("configs/reader.py")
    flags.DEFINE_string("workdir", "runs/reader", "Folder of the run's outputs.")
    flags.DEFINE_string("start", None, "Weights to begin with, instead of fresh ones.")
    flags.DEFINE_string("evaluate", None, "Weights to evaluate instead of training.")


def losses(weights: reader.Weights, batch: tuple[jax.Array, dict[str, jax.Array]], cfg: Any) -> dict[str, jax.Array]:
    """Mean squared errors of the towers that are trained, by the names of LOSSES, each in its tower's units."""
    frames, truth = batch
    parts = {}
    for tower in cfg.towers:
        error = (reader.apply(weights, frames, tower=tower) - truth[tower]) / np.array(reader.TOWERS[tower].units)
        names = LOSSES[tower]
        parts |= dict(zip(names, jnp.mean(error.reshape(len(error), len(names), -1) ** 2, axis=(0, 2)), strict=True))
    return parts


def make_step(optimiser: optax.GradientTransformation, cfg: Any) -> Any:
    """One jitted optimiser step of the towers that are trained: (weights, ema, state, batch) -> (..., losses)."""

    def loss(weights: reader.Weights, batch: tuple) -> tuple:
        parts = losses(weights, batch, cfg)
        return sum(part * (cfg.opening_weight if name == "opening" else 1.0) for name, part in parts.items()), parts

    @jax.jit
    def step(weights: reader.Weights, ema: reader.Weights, state: Any, batch: tuple) -> tuple:
        (_, parts), grads = jax.value_and_grad(loss, has_aux=True)(weights, batch)
        updates, state = optimiser.update(grads, state, weights)
        weights = jax.tree.map(jnp.add, weights, updates)
        ema = jax.tree.map(lambda e, w: e + (1 - cfg.ema) * (w - e), ema, weights)
        return weights, ema, state, parts

    return step


def begin(pool: reader_data.Pool, cfg: Any) -> reader.Weights:
    """Fresh weights whose towers read the pool's mean from any picture."""
    weights = reader.init(jax.random.key(cfg.seed), pool.identity.shape[1])
    means = {"mouth": pool.mouth.mean((0, 1)), "face": pool.identity.mean(0), "pose": pool.pose.mean((0, 1))}
    for tower, mean in means.items():
        weights[f"{tower}/dense1/bias"] = jnp.asarray(mean / np.array(reader.TOWERS[tower].units), jnp.float32)
    return weights


def train(weights: reader.Weights, pool: reader_data.Pool, cfg: Any, workdir: pathlib.Path) -> reader.Weights:
    """Fits the towers to the pool; returns the averaged weights. Losses go to metrics.jsonl."""
    kept = {name: leaf for name, leaf in weights.items() if name.partition("/")[0] not in cfg.towers}
    weights = {name: leaf for name, leaf in weights.items() if name not in kept}
    schedule = optax.warmup_cosine_decay_schedule(0.0, cfg.rate, cfg.warmup, cfg.steps, cfg.rate * 0.01)
    adam = optax.adamw(schedule, b2=cfg.beta2, weight_decay=cfg.decay)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), adam)
    ema, state, step = weights, optimiser.init(weights), make_step(optimiser, cfg)
    started, recent = time.monotonic(), []
    with (workdir / "metrics.jsonl").open("w") as log:
        for i, batch in enumerate(reader_data.batches(pool, cfg), start=1):
            weights, ema, state, parts = step(weights, ema, state, batch)
            recent.append(parts)
            if i % cfg.log_every == 0:
                means = {name: float(np.mean([parts[name] for parts in recent])) for name in parts}
                line = json.dumps({"step": i, **means, "seconds": round(time.monotonic() - started)})
                log.write(line + "\n")
                log.flush()
                logging.info("%s", line)
                recent = []
                save({**kept, **ema}, workdir)
    return {**kept, **ema}


def save(weights: reader.Weights, workdir: pathlib.Path) -> None:
    """Writes reader.safetensors."""
    save_file({name: np.asarray(leaf) for name, leaf in weights.items()}, workdir / "reader.safetensors")


def load(path: str) -> reader.Weights:
    """Weights from a file."""
    return {name: jnp.asarray(leaf) for name, leaf in load_file(path).items()}


def look(weights: reader.Weights, clips: np.ndarray, tower: str) -> np.ndarray:
    """What a tower reads from uint8 clips [I, T, 96, 96, 3], [I, T, N]."""
    read = reader.make_apply(tower)
    return np.stack([read(weights, clip.astype(np.float32) / 255) for clip in clips])


def identity_error(weights: reader.Weights, pool: reader_data.Pool) -> np.ndarray:
    """Deviation [V] of the identity read from faces that were not trained on, at least 0.02."""
    seen = look(weights, pool.frames, "face")
    return (np.std(seen - pool.identity[:, None], axis=(0, 1)) + 0.02).astype(np.float32)


def figures(weights: reader.Weights, pool: reader_data.Pool, references: np.ndarray) -> dict[str, float]:
    """How well mouths and poses of unseen faces are read, and how often their own reference is the nearest."""
    mouth, identity, pose = (look(weights, pool.frames, tower) for tower in ("mouth", "face", "pose"))
    own = look(weights, references[:, None], "face")
    opening, width = np.moveaxis(mouth, -1, 0)
    true_opening, true_width = np.moveaxis(pool.mouth, -1, 0)
    pairs = zip(opening, true_opening, strict=True)
    each = [sync.pearson(seen, true) for seen, true in pairs if true.std() > 0.05]  # speaking at all
    gap = np.linalg.norm((identity[:, :, None] - own[None, None, :, 0]) / weights["identity/error"], axis=-1)
    return {
        "opening_r_pooled": sync.pearson(opening.ravel(), true_opening.ravel()),
        "opening_r_clip_mean": float(np.mean(each)),
        "opening_r_clip_worst": float(np.min(each)),
        "opening_error": float(np.abs(opening - true_opening).mean()),
        "width_r_pooled": sync.pearson(width.ravel(), true_width.ravel()),
        "identity_nearest": float(np.mean(gap.argmin(-1) == np.arange(len(gap))[:, None])),
    } | {
        f"{name}_r": sync.pearson(pose[..., i].ravel(), pool.pose[..., i].ravel()) for i, name in enumerate(reader.POSE)
    }


def plot(workdir: pathlib.Path) -> None:
    """loss.png from metrics.jsonl."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(7, 4))
    for name in lines[0].keys() - {"step", "seconds"}:
        axes.semilogy([line["step"] for line in lines], [line[name] for line in lines], label=f"{name} (mse)")
    axes.set_xlabel("step")
    axes.legend(fontsize="x-small")
    figure.savefig(workdir / "loss.png", dpi=100)


def report(weights: reader.Weights, cfg: Any) -> dict[str, Any]:
    """Figures on clean and on spoiled frames of unseen faces."""
    test, references = reader_data.render_test(cfg.seed, cfg.test_identities, cfg.test_frames)
    clean = figures(weights, test, references)
    return {"clean": clean, "spoiled": figures(weights, reader_data.spoil_pool(test), references)}


def make_weights(cfg: Any, workdir: pathlib.Path) -> reader.Weights:
    """Renders the faces, trains on them, and measures the identity's error on others; saves the weights."""
    pool = reader_data.render_pool(cfg.seed, cfg.identities, cfg.frames_each)
    logging.info("rendered %d frames", cfg.identities * cfg.frames_each)
    weights = train(begin(pool, cfg) | (load(FLAGS.start) if FLAGS.start else {}), pool, cfg, workdir)
    if "face" in cfg.towers:
        other, _ = reader_data.render_test(cfg.seed + 1, cfg.test_identities, 8)
        weights["identity/error"] = jnp.asarray(identity_error(weights, other))
    save(weights, workdir)
    plot(workdir)
    return weights


def main() -> None:
    """Trains (or loads), evaluates on unseen faces, writes."""
    door.start_jax()
    cfg, workdir, started = FLAGS.config, pathlib.Path(FLAGS.workdir), time.monotonic()
    if not cfg.towers or not set(cfg.towers) <= reader.TOWERS.keys():
        raise ValueError(f"config.towers={cfg.towers}: must be some of {', '.join(reader.TOWERS)}")
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(cfg), indent=2))
    weights = load(FLAGS.evaluate) if FLAGS.evaluate else make_weights(cfg, workdir)
    result = {**report(weights, cfg), "seconds": round(time.monotonic() - started)}
    (workdir / "result.json").write_text(json.dumps(result, indent=2))
    logging.info("unseen faces: %s", json.dumps(result))


if __name__ == "__main__":
    door.run(main, define)
