"""Trains the reader: `python -m train.reader --config=configs/reader.py --workdir=runs/reader`.

Renders a pool of faces with random poses, then fits the network to their known mouths and identities through
random faults of the kind that a generator or a codec makes, so that it reads generated frames as well as
clean ones. Writes reader.safetensors, config.json, metrics.jsonl, result.json and loss.png to the work
folder. `--evaluate=avatar_jax/assets/reader.safetensors` only measures existing weights.
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

LOSSES = ("opening", "width", "identity")  # mean squared errors


def define() -> None:
    """The flags."""
    door.define_config("configs/reader.py")
    flags.DEFINE_string("workdir", "runs/reader", "Folder of the run's outputs.")
    flags.DEFINE_string("evaluate", None, "Weights to evaluate instead of training.")


def make_step(optimiser: optax.GradientTransformation, cfg: Any) -> Any:
    """One jitted optimiser step: (weights, ema, state, batch) -> (weights, ema, state, losses [3])."""

    def loss(weights: reader.Weights, frames: jax.Array, mouth: jax.Array, identity: jax.Array) -> tuple:
        seen_mouth, seen_identity = reader.apply(weights, frames)
        opening, width = jnp.mean((seen_mouth - mouth) ** 2, axis=0)
        parts = jnp.stack([opening, width, jnp.mean((seen_identity - identity) ** 2)])
        return cfg.opening_weight * opening + width + parts[2], parts

    @jax.jit
    def step(weights: reader.Weights, ema: reader.Weights, state: Any, batch: tuple) -> tuple:
        (_, parts), grads = jax.value_and_grad(loss, has_aux=True)(weights, *batch)
        updates, state = optimiser.update(grads, state, weights)
        weights = jax.tree.map(jnp.add, weights, updates)
        ema = jax.tree.map(lambda e, w: e + (1 - cfg.ema) * (w - e), ema, weights)
        return weights, ema, state, parts

    return step


def train(pool: reader_data.Pool, cfg: Any, workdir: pathlib.Path) -> reader.Weights:
    """Fits the reader to the pool; returns the averaged weights. Losses go to metrics.jsonl."""
    weights = reader.init(jax.random.key(cfg.seed), pool.identity.shape[1])
    weights["mouth/dense1/bias"] = jnp.asarray(pool.mouth.mean((0, 1)))
    weights["face/dense1/bias"] = jnp.asarray(pool.identity.mean(0))
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
                means = dict(zip(LOSSES, np.mean(np.asarray(recent), axis=0).tolist(), strict=True))
                line = json.dumps({"step": i, **means, "seconds": round(time.monotonic() - started)})
                log.write(line + "\n")
                log.flush()
                logging.info("%s", line)
                recent = []
    return ema


def look(weights: reader.Weights, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mouths [I, T, 2] and identities [I, T, V] read from uint8 clips [I, T, 96, 96, 3]."""
    read = reader.make_apply()
    parts = [read(weights, clip.astype(np.float32) / 255) for clip in clips]
    return np.stack([mouth for mouth, _ in parts]), np.stack([identity for _, identity in parts])


def identity_error(weights: reader.Weights, pool: reader_data.Pool) -> np.ndarray:
    """Deviation [V] of the identity read from faces that were not trained on, at least 0.02."""
    _, seen = look(weights, pool.frames)
    return (np.std(seen - pool.identity[:, None], axis=(0, 1)) + 0.02).astype(np.float32)


def figures(weights: reader.Weights, pool: reader_data.Pool, references: np.ndarray) -> dict[str, float]:
    """How well the mouths of unseen faces are read, and how often their own reference is the nearest."""
    mouth, identity = look(weights, pool.frames)
    _, own = look(weights, references[:, None])
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
    }


def plot(workdir: pathlib.Path) -> None:
    """loss.png from metrics.jsonl."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(7, 4))
    for name in LOSSES:
        axes.semilogy([line["step"] for line in lines], [line[name] for line in lines], label=f"{name} (mse)")
    axes.set_xlabel("step")
    axes.legend()
    figure.savefig(workdir / "loss.png", dpi=100)


def report(weights: reader.Weights, cfg: Any) -> dict[str, Any]:
    """Figures on clean and on spoiled frames of unseen faces."""
    test, references = reader_data.render_test(cfg.seed, cfg.test_identities, cfg.test_frames)
    clean = figures(weights, test, references)
    test.frames = reader_data.spoil_clips(test.frames)
    return {"clean": clean, "spoiled": figures(weights, test, references)}


def make_weights(cfg: Any, workdir: pathlib.Path) -> reader.Weights:
    """Renders the faces, trains on them, and measures the identity's error on others; saves the weights."""
    pool = reader_data.render_pool(cfg.seed, cfg.identities, cfg.frames_each)
    logging.info("rendered %d frames", cfg.identities * cfg.frames_each)
    weights = train(pool, cfg, workdir)
    other, _ = reader_data.render_test(cfg.seed + 1, cfg.test_identities, 8)
    weights = {**weights, "identity/error": identity_error(weights, other)}
    save_file({name: np.asarray(leaf) for name, leaf in weights.items()}, workdir / "reader.safetensors")
    plot(workdir)
    return weights


def main() -> None:
    """Trains (or loads), evaluates on unseen faces, writes."""
    door.start_jax()
    cfg, workdir, started = FLAGS.config, pathlib.Path(FLAGS.workdir), time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(cfg), indent=2))
    if FLAGS.evaluate:
        weights = {name: jnp.asarray(leaf) for name, leaf in load_file(FLAGS.evaluate).items()}
    else:
        weights = make_weights(cfg, workdir)
    result = {**report(weights, cfg), "seconds": round(time.monotonic() - started)}
    (workdir / "result.json").write_text(json.dumps(result, indent=2))
    logging.info("unseen faces: %s", json.dumps(result))


if __name__ == "__main__":
    door.run(main, define)
