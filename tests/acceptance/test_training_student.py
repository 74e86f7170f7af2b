"""The few-step student that ships: how it was taught, and what it draws beside its teacher."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import check
from avatar_jax.core import config as configs
from avatar_jax.data import controls, face, source
from avatar_jax.io import weights as weight_files
from avatar_jax.metrics import motion, mouth, reader, redraw, sync
from avatar_jax.models import dit
from avatar_jax.stream import forcing, session
from avatar_jax.stream.state import Weights
from configs.tiny_driven import get_config
from infer import door
from tests.acceptance import absent, report
from tests.published.case import Case
from tests.published.kinds import KINDS, kind_of
from tests.stream import test_forcing
from train import evaluate

GOLDEN = pathlib.Path(os.environ.get("GOLDEN_DIR", absent.ROOT / "tests" / "golden"))
CLIPS, CLIP_FRAMES = 16, 48  # unseen identities and their length, the teacher's own
row = functools.partial(report.row, "training")


@functools.lru_cache
def config() -> configs.TrainingConfig:
    return check.validate(get_config())


@functools.lru_cache
def student() -> Weights:
    return session.load_weights(config(), door.embedded(config().name))


@functools.lru_cache
def teacher() -> Weights:
    cfg = config()
    p = weight_files.load(door.embedded(config().name) / "teacher.safetensors", dit.spec(cfg.dit))
    return Weights(dit.lay_out(p, cfg.dit), student().vae)


@pytest.mark.parametrize("name", ["flow_match", "self_forcing_causal", "self_forcing_dmd"])
def test_golden(name: str):
    folder = GOLDEN / name
    run, _ = KINDS[kind_of(folder)]
    worst = run(Case(folder))
    tensor, figure = max(worst.items(), key=lambda item: item[1])
    bar = "at most 1 of the case's tolerance"
    assert row(f"golden {name}", f"{figure:.3f} ({tensor}; {len(worst)} tensors)", bar, figure <= 1.0)


def test_block_replay():
    cfg = test_forcing.scanned(layers=2)
    p = test_forcing.weights_of(cfg)
    task = test_forcing.task_of(p, cfg, 2)
    whole, replay = (
        jax.jit(jax.grad(functools.partial(test_forcing.loss, generate, task=task, cfg=cfg)))(p)
        for generate in (forcing.generate_whole, forcing.generate)
    )
    norm = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole))
    error = max(
        float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(replay), strict=True)
    )
    full, kept = test_forcing.temporaries(test_forcing.scanned(layers=4))
    figure = f"{error / norm:.1e}; temporaries {kept / 2**20:.0f} of {full / 2**20:.0f} MiB, {kept / full:.2f}"
    met = error <= 1e-5 * norm and kept <= full / 3
    what = f"block replay == full backpropagation, {test_forcing.BLOCKS} blocks"
    assert row(what, figure, "gradients to 1e-5, peak temporaries at most a third", met)


def test_student_against_teacher():
    cfg, truths = config(), evaluate.clips(CLIPS, CLIP_FRAMES)
    fps = cfg.video.fps
    few = evaluate.score(truths, evaluate.streamed(student(), truths, cfg), fps=fps)
    many = evaluate.score(truths, evaluate.taught(teacher(), truths, cfg, steps=40, guidance=2.0), fps=fps)
    kept = few.dynamics / many.dynamics
    figure = f"student: {few.text()}; teacher: {many.text()}; {100 * kept:.0f} % of its dynamics"
    met = few.sync >= max(0.85, many.sync - 0.02) and few.identity >= many.identity and kept >= 0.8
    what = f"{cfg.stream.steps}-step student and 40-step teacher, {CLIPS} unseen identities x {CLIP_FRAMES} frames"
    bar = "r at least the teacher's - 0.02 and 0.85; identity at least the teacher's; dynamic degree at least 80 %"
    assert row(what, figure, bar, met)


def drive(clip: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> np.ndarray:
    """uint8 frames [T, H, W, 3] of a clip's portrait and sound, with driving signals."""
    live = session.Session(session.make_avatar(config(), student(), clip["reference"]))
    for name, rows in given.items():
        live.push_signals(name, rows)
    return np.concatenate(live.push_audio(clip["waveform"]) + live.finish())


def speak(waveform: np.ndarray, index: int) -> np.ndarray:
    """uint8 frames [T, H, W, 3] of an unseen portrait."""
    portrait = source.clip(evaluate.UNSEEN, index, video_frames=12)["reference"]
    return drive({"reference": portrait, "waveform": waveform}, {})


def test_a_minute_of_silence():
    cfg, energy, drift, moves = config(), [], [], []
    for index in range(4):
        clip = source.clip(evaluate.UNSEEN, index, video_frames=240)
        spoken = mouth.read_frames(speak(clip["waveform"], index)).opening
        frames = speak(np.zeros(60 * 16_000, np.float32), index)
        silent = mouth.read_frames(frames).opening
        energy.append(float(np.square(silent[25:]).mean() / np.square(spoken).mean()))
        first, last = (frames[part].mean((0, 1, 2)) for part in (slice(25, 275), slice(-250, None)))
        drift.append(float(np.abs(last - first).max()))
        moves.append(motion.dynamic_degree(frames[-250:], fps=cfg.video.fps))
    figure = (
        f"mouth energy {100 * max(energy):.1f} % of speech's at most; dynamic degree of the last 10 s "
        f"{min(moves):.3f} at least; mean colour moved {max(drift):.1f} of 255 at most"
    )
    met = max(energy) <= 0.1 and min(moves) > 0.02 and max(drift) <= 6.0
    assert row("60 s of silence, 4 unseen identities", figure, "mouth at most 10 %; motion goes on; no drift", met)


def signals() -> list[str]:
    return [signal.name for signal in config().dit.signals]


def shown_of(frames: np.ndarray, identity: int) -> dict[str, np.ndarray]:
    """Each control of `reader.POSE` by name, [T], as drawing that unseen identity again reads it."""
    moved = controls.signals(redraw.read_frames(frames, source.identity_of(evaluate.UNSEEN, identity)))
    return {name: moved[group][:, i] for group in signals() for i, name in enumerate(controls.SIGNALS[group])}


def test_driving_signals():
    """An actor's head, eyes and brows on another's face and words; then nothing more from the actor half way.

    Brows are judged on the faces that have any.
    """
    frames, half = 120, 60
    followed, readable, spoken = {name: [] for name in reader.POSE}, {name: [] for name in reader.POSE}, []
    for index in range(8):
        clip = source.clip(evaluate.UNSEEN, index, video_frames=frames)
        actor = source.clip(evaluate.UNSEEN, 500 + index, video_frames=frames, performed=True)
        given = {group: controls.signals(actor["controls"])[group] for group in signals()}
        for shown, identity, rs in ((drive(clip, given), index, followed), (actor["frames"], 500 + index, readable)):
            seen, who = shown_of(shown, identity), source.identity_of(evaluate.UNSEEN, identity)
            unseen = [] if face.brows(who, controls.NEUTRAL) else ["brow"]
            for group, rows in given.items():
                for number, name in enumerate(controls.SIGNALS[group]):
                    if name not in unseen:
                        rs[name].append(sync.pearson(seen[name], rows[:, number]))
        left = drive(clip, {name: rows[:half] for name, rows in given.items()})[half:]
        spoken.append(sync.pearson(mouth.read_frames(left).opening, clip["controls"][half:, evaluate.OPENING]))
    means = {name: float(np.mean(rs)) for name, rs in followed.items()}
    each = ", ".join(f"{name} {r:.2f} (the actor's frames: {np.mean(readable[name]):.2f})" for name, r in means.items())
    brows = f"brows of {len(followed['brow'])}"
    figure = f"{each}; {brows}; after the signals end, lip sync r {np.mean(spoken):.3f}"
    met = min(means.values()) >= 0.85 and np.mean(spoken) >= 0.85
    bar = "each followed with r at least 0.85; dropped signals leave audio in charge: r at least 0.85"
    assert row("driving signals, 8 unseen identities x 120 frames", figure, bar, bool(met))


def test_two_speakers():
    """Two portraits as one picture, twice as wide; each speaks its own recording."""
    cfg = check.validate(configs.sized(config(), config().video.height, 2 * config().video.width))
    masks = np.zeros((2, cfg.video.height, cfg.video.width), np.float32)
    masks[0, :, : cfg.video.width // 2] = masks[1, :, cfg.video.width // 2 :] = 1.0
    own, others = [], []
    for pair in range(4):
        clips = [source.clip(evaluate.UNSEEN, 2 * pair + side, video_frames=240) for side in (0, 1)]
        portrait = np.concatenate([clip["reference"] for clip in clips], 1)
        live = session.Session(session.make_avatar(cfg, student(), portrait, masks=masks))
        drawn = [live.push_audio(clip["waveform"], speaker) for speaker, clip in enumerate(clips)]
        frames = np.concatenate(drawn[0] + drawn[1] + live.finish())
        halves = np.split(frames, 2, 2)
        seen = [mouth.read_frames(half).opening for half in halves]
        true = [clip["controls"][:, evaluate.OPENING] for clip in clips]
        own += [sync.pearson(seen[side], true[side]) for side in (0, 1)]
        others += [sync.pearson(seen[side], true[1 - side]) for side in (0, 1)]
    figure = f"own r {np.mean(own):.3f} (lowest {min(own):.3f}), the other's {np.mean(others):.3f}"
    met = np.mean(own) >= 0.7 and np.mean(others) < 0.2
    assert row("two speakers in one picture, 4 pairs", figure, "own r at least 0.7, the other's under 0.2", bool(met))


def test_demo(tmp_path: pathlib.Path):
    """What `make demo` runs, its programs compiled before: from the command's own figures."""
    video = tmp_path / "talk.mp4"
    for _ in range(2):
        command = [sys.executable, "-m", "infer.stream", f"--output={video}", "--overwrite"]
        subprocess.run(command, cwd=absent.ROOT, check=True, capture_output=True)
    seen = json.loads(video.with_suffix(".json").read_text())
    rate, first, ran = seen["frames_per_second"], seen["first_frame_s"], seen["config"]["name"]
    figure = f"{ran}: {rate:.1f} frames/s, first frame {first:.2f} s"
    met = rate >= 25.0 and first < 1.0 and ran == config().name
    bar = "at least 25 frames a second end to end, first frame under 1 s warm"
    assert row("make demo with the student, 2 CPU cores", figure, bar, met)
