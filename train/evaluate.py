"""What a model draws, on faces and speech that no training run has seen.

    python -m train.evaluate --config=configs/tiny.py --dit=runs/tiny/distill/dit.safetensors \\
        --vae=runs/tiny/vae/vae.safetensors
    python -m train.evaluate ... --teacher --dit=runs/tiny/pretrain/dit.safetensors

With --teacher the clips are drawn whole, in many guided steps; else they are streamed as `config.stream` says.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from avatar_jax.core import check
from avatar_jax.core import config as configs
from avatar_jax.data import controls, source
from avatar_jax.io import weights as weight_files
from avatar_jax.metrics import identity, motion, mouth, sync
from avatar_jax.models import dit, mel, vae
from avatar_jax.stream import rollout, session, teacher
from avatar_jax.stream.state import Speaker, Weights
from infer import door
from train import windows

FLAGS = flags.FLAGS
UNSEEN = 900_000  # a seed that no training run uses
OTHERS = 49  # references that a face is told apart from
OPENING = controls.CONTROL_NAMES.index("mouth_open")


def define() -> None:
    """The flags."""
    door.define_config("configs/tiny.py")
    flags.DEFINE_string("dit", "runs/tiny/distill/dit.safetensors", "Weights of the transformer.")
    flags.DEFINE_string("vae", "runs/tiny/vae/vae.safetensors", "Weights of the VAE.")
    flags.DEFINE_integer("clips", 8, "How many identities speak.")
    flags.DEFINE_integer("video_frames", 48, "Length of each clip; a teacher draws what it was trained on.")
    flags.DEFINE_bool("teacher", False, "Draw clips whole, in many guided steps.")
    flags.DEFINE_integer("steps", 40, "Of the teacher.")
    flags.DEFINE_float("guidance", 3.0, "Of the teacher: u + g (c - u).")


@dataclasses.dataclass
class Scores:
    """Means over clips; see `avatar_jax.metrics`."""

    sync: float  # r of measured and true opening
    sync_lowest: float
    lag: int  # the largest, in frames
    identity: float  # share of frames nearest to their own reference
    dynamics: float  # dynamic degree
    dynamics_true: float  # of the drawn truth

    def text(self) -> str:
        """One line."""
        return (
            f"lip sync r {self.sync:.3f} (lowest {self.sync_lowest:.3f}, lag at most {self.lag}), identity "
            f"{100 * self.identity:.1f} %, dynamic degree {self.dynamics:.3f} (truth {self.dynamics_true:.3f})"
        )


def clips(count: int, video_frames: int, seed: int = UNSEEN) -> list[dict[str, np.ndarray]]:
    """Unseen identities and what they truly did."""
    return [source.clip(seed, index, video_frames=video_frames) for index in range(count)]


def score(truths: list[dict[str, np.ndarray]], videos: list[np.ndarray], *, fps: int, seed: int = UNSEEN) -> Scores:
    """Measures videos, uint8 [T, H, W, 3] each, against the clips whose sound they were drawn from."""
    others = np.stack([source.clip(seed, 1000 + i, video_frames=12)["reference"] for i in range(OTHERS)])
    rs, lags, own, moved, true = [], [], [], [], []
    for truth, video in zip(truths, videos, strict=True):
        wanted, seen = truth["controls"][:, OPENING], mouth.read_frames(video).opening
        rs.append(sync.pearson(seen, wanted))
        lags.append(abs(sync.best_lag(seen, wanted, sync.MAX_LAG_FRAMES)))
        own.append(identity.rank_of_own(video, truth["reference"], others) == 0)
        moved.append(motion.dynamic_degree(video, fps=fps))
        true.append(motion.dynamic_degree(truth["frames"], fps=fps))
    means = (float(np.mean(each)) for each in (np.concatenate(own), moved, true))
    return Scores(float(np.mean(rs)), min(rs), max(lags), *means)


def streamed(weights: Weights, truths: list[dict[str, np.ndarray]], cfg: configs.Config) -> list[np.ndarray]:
    """What a session shows of each clip's portrait and sound."""

    def speak(truth: dict[str, np.ndarray]) -> np.ndarray:
        live = session.Session(session.make_avatar(cfg, weights, truth["reference"]))
        return np.concatenate(live.push_audio(truth["waveform"]) + live.finish())

    return [speak(truth) for truth in truths]


def heard(truths: list[dict[str, np.ndarray]], cfg: configs.Config) -> Speaker:
    """The clips' sound as one batch, silence before it; their signals are absent."""
    features = np.stack([np.asarray(mel.whole(jnp.asarray(truth["waveform"]), cfg.mel)) for truth in truths])[
        :, :, None
    ]
    before = np.tile(mel.silence(cfg.mel), (len(features), cfg.stream.audio_context, 1, 1))
    rows = {s.name: jnp.full((*features.shape[:2], s.width), jnp.nan) for s in cfg.dit.signals}
    return Speaker(jnp.asarray(np.concatenate([before, features], 1)), rows)


def taught(
    weights: Weights, truths: list[dict[str, np.ndarray]], cfg: configs.Config, *, steps: int, guidance: float
) -> list[np.ndarray]:
    """What the teacher draws of each clip, all in one batch."""
    speakers = (heard(truths, cfg),)
    portraits = vae.from_uint8(np.stack([truth["reference"] for truth in truths])[:, None])
    scene = rollout.make_view(cfg)(weights.vae, portraits)
    latents = len(truths[0]["frames"]) // cfg.vae.temporal_stride
    noise = jax.random.normal(
        jax.random.key(cfg.stream.seed), (len(truths), latents, *cfg.latent_size, cfg.vae.latent_channels)
    )
    draw = teacher.make_draw(steps, guidance, cfg)
    x = draw(weights.dit, noise, scene.reference, speakers, windows.without(speakers))
    pixels = vae.decode(weights.vae, jnp.concatenate([scene.reference, x], 1), cfg=cfg.vae)[:, 1:]
    return list(np.asarray(vae.to_uint8(pixels)))


def main() -> None:
    """Prints one line of scores."""
    cfg: Any = check.validate(FLAGS.config)
    door.start_jax()
    networks = ((FLAGS.dit, dit.spec(cfg.dit)), (FLAGS.vae, vae.spec(cfg.vae)))
    transformer, decoder = (weight_files.load(pathlib.Path(path), spec) for path, spec in networks)
    weights = Weights(dit.lay_out(transformer, cfg.dit), decoder)
    truths = clips(FLAGS.clips, FLAGS.video_frames)
    if FLAGS.teacher:
        videos = taught(weights, truths, cfg, steps=FLAGS.steps, guidance=FLAGS.guidance)
    else:
        videos = streamed(weights, truths, cfg)
    sys.stdout.write(score(truths, videos, fps=cfg.video.fps).text() + "\n")


if __name__ == "__main__":
    door.run(main, define)
