"""First light: the promised figures of the first release, each measured on the shipped checkpoint."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import check, spec
from avatar_jax.core import config as configs
from avatar_jax.data import controls, source
from avatar_jax.io.audio import open_audio
from avatar_jax.io.image import load_portrait
from avatar_jax.io.video import read_video
from avatar_jax.metrics import identity, mouth, sync
from avatar_jax.models import mel, vae
from avatar_jax.stream import session
from configs.tiny_driven import get_config
from infer import contact_sheet, door
from tests.acceptance import report
from tests.models import test_dit

ROOT = pathlib.Path(__file__).parents[2]
SAMPLES = pathlib.Path(os.environ.get("AVATAR_SAMPLES", ROOT.parent / "shared" / "samples"))
UNSEEN = 900_000  # a seed that no training run uses
OPENING = controls.CONTROL_NAMES.index("mouth_open")
row = functools.partial(report.row, "first_light")


@functools.lru_cache
def config() -> configs.Config:
    return check.validate(get_config())


@functools.lru_cache
def weights():
    return session.load_weights(config(), door.embedded(config().name))


def speak(portrait: np.ndarray, waveform: np.ndarray) -> np.ndarray:
    """uint8 frames [T, H, W, 3] of a portrait saying a 16 kHz waveform."""
    live = session.Session(session.make_avatar(config(), weights(), portrait))
    return np.concatenate(live.push_audio(waveform) + live.finish())


@functools.lru_cache
def performances() -> list[tuple[dict, np.ndarray]]:
    """Eight unseen identities each say an unseen utterance of 7.7 s: (truth, generated frames)."""
    clips = [source.clip(UNSEEN, index, video_frames=192) for index in range(8)]
    return [(clip, speak(clip["reference"], clip["waveform"])) for clip in clips]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> pathlib.Path:
    """The committed tree, as a stranger gets it."""
    folder = tmp_path_factory.mktemp("fresh") / "avatar_jax"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def make(target: str, folder: pathlib.Path) -> tuple[float, str]:
    """Wall seconds and output of a make target in an environment with nothing of ours in it."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    keep |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    start = time.monotonic()
    keep["XDG_CACHE_HOME"] = str(home)
    done = subprocess.run(["make", target], cwd=folder, env=keep, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return time.monotonic() - start, done.stdout + done.stderr


def test_make_demo(clone):
    seconds, _ = make("demo", clone)
    frames, waveform, fps = read_video(clone / "talk.mp4")
    playable = len(frames) > 0 and fps == 25 and float(np.abs(waveform).max()) > 0.01
    figure = f"{seconds / 60:.1f} min, {len(frames)} frames with sound"
    assert row("make demo, fresh clone", figure, "at most 6 min; playable with sound", playable and seconds <= 360)


def test_make_test(clone):
    seconds, text = make("test", clone)
    passed = int(re.findall(r"(\d+) passed", text)[-1])
    figure = f"{seconds / 60:.1f} min, {passed} passed"
    assert row("make test, fresh clone", figure, "at most 15 min; prints its count", passed > 0 and seconds <= 900)


@pytest.mark.parametrize("layer_loop", ["scan", "unroll"])
def test_streamed_equals_whole_dit(layer_loop):
    cfg = test_dit.small(layer_loop)
    p, given = test_dit.weights_of(cfg), test_dit.inputs_of(cfg)
    error = float(jnp.abs(test_dit.streamed(p, given, cfg) - test_dit.whole(p, given, cfg)).max())
    assert row(f"streamed == whole, DiT ({layer_loop}, ring wrapped twice)", f"{error:.1e}", "1e-5", error <= 1e-5)


def test_streamed_equals_whole_vae():
    cfg, p = config().vae, spec.init(vae.spec(config().vae), jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (1, 29, 96, 96, 3), minval=-1.0)
    z = vae.encode(p, x, cfg=cfg)
    y = vae.decode(p, z, cfg=cfg)
    first, tail = vae.encode_first(p, x[:, :1], cfg=cfg)
    shown, back = vae.decode_first(p, z[:, :1], cfg=cfg)
    codes, pictures, at, seen = [first], [shown], 1, 1
    for latents in (1, 3, 2, 1):
        more, tail = vae.encode_step(p, tail, x[:, at : at + 4 * latents], cfg=cfg)
        picture, back = vae.decode_step(p, back, z[:, seen : seen + latents], cfg=cfg)
        codes, pictures, at, seen = [*codes, more], [*pictures, picture], at + 4 * latents, seen + latents
    error = max(
        float(jnp.abs(jnp.concatenate(codes, 1) - z).max()), float(jnp.abs(jnp.concatenate(pictures, 1) - y).max())
    )
    assert row("streamed == whole, VAE (pieces of 1, 3, 2, 1)", f"{error:.1e}", "1e-5", error <= 1e-5)


def test_streamed_equals_whole_mel():
    cfg = config().mel
    samples = jax.random.uniform(jax.random.key(0), (640 * 31,), minval=-1.0)
    state, parts, at = mel.empty(cfg), [], 0
    for frames in (1, 12, 3, 5, 10):
        state, features = mel.step(state, samples[at : at + 640 * frames], cfg)
        parts, at = [*parts, features], at + 640 * frames
    error = float(jnp.abs(jnp.concatenate(parts) - mel.whole(samples, cfg)).max())
    assert row("streamed == whole, mel (pieces of 1, 12, 3, 5, 10)", f"{error:.1e}", "1e-5", error <= 1e-5)


def recordings() -> list[pathlib.Path]:
    return sorted(SAMPLES.glob("*.wav"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[pathlib.Path, pathlib.Path]:
    """Each real recording through the command a user types, with the embedded portrait."""
    if not recordings():
        pytest.skip("no real recordings here; set AVATAR_SAMPLES")
    folder, made = tmp_path_factory.mktemp("videos"), {}
    for wav in recordings():
        made[wav] = folder / f"{wav.stem}.mp4"
        command = [sys.executable, "-m", "infer.stream", f"--audio={wav}", f"--output={made[wav]}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return made


def heard(path: pathlib.Path) -> np.ndarray:
    with open_audio(path, audio_hz=16_000) as stream:
        return np.concatenate(list(stream.blocks(16_000)))


def audio_lag(video_sound: np.ndarray, recording: np.ndarray) -> int:
    """Samples by which the video's sound comes later than the recording."""
    size = len(video_sound) + len(recording)
    product = np.fft.rfft(video_sound, size) * np.conj(np.fft.rfft(recording, size))
    lag = int(np.argmax(np.fft.irfft(product, size)))
    return lag if lag < size // 2 else lag - size


def test_lengths_and_offset_of_real_recordings(videos):
    off, offset = 0.0, 0.0
    for wav, video in videos.items():
        recording = heard(wav)
        frames, sound, fps = read_video(video)
        off = max(off, abs(len(frames) - len(recording) * fps / 16_000))
        offset = max(offset, abs(audio_lag(sound, recording)) * fps / 16_000)
    figure = f"{off:.2f} frames off, A/V offset {offset:.3f} frames ({len(videos)} recordings)"
    assert row("real recordings: length and A/V offset", figure, "1 frame each", off <= 1.0 and offset <= 1.0)


def test_lip_sync_on_unseen_identities():
    scores, lags = [], []
    for truth, frames in performances():
        wanted, seen = truth["controls"][:, OPENING], mouth.read_frames(frames).opening
        scores.append(sync.pearson(seen, wanted))
        lags.append(sync.best_lag(seen, wanted, 8))
    figure = f"mean r {np.mean(scores):.3f} (lowest {min(scores):.3f}), lags {lags}"
    met = bool(np.mean(scores) >= 0.75 and max(map(abs, lags)) <= 1)
    assert row("lip sync, 8 unseen identities and utterances", figure, "r at least 0.75, lag within 1 frame", met)


def test_lip_sync_on_real_recordings(videos):
    scores = {
        wav.stem: json.loads(video.with_suffix(".json").read_text())["lip_sync"]["r"] for wav, video in videos.items()
    }
    figure = ", ".join(f"{name} {r:.2f}" for name, r in scores.items())
    assert row("real recordings: r of opening and loudness", figure, "at least 0.5", min(scores.values()) >= 0.5)


def test_identity():
    others = np.stack([source.clip(UNSEEN, 1000 + i, video_frames=12)["reference"] for i in range(49)])
    ranks = [identity.rank_of_own(frames, truth["reference"], others) for truth, frames in performances()]
    share = float(np.mean(np.concatenate(ranks) == 0))
    figure = f"{100 * share:.1f} % of {sum(map(len, ranks))} frames"
    assert row("identity: nearest to its own reference of 50", figure, "at least 95 %", share >= 0.95)


def test_the_mouth_measure():
    clips = [source.clip(UNSEEN, 2000 + index, video_frames=96) for index in range(12)]
    measured = [mouth.read_frames(clip["frames"]).opening for clip in clips]
    truth = [clip["controls"][:, OPENING] for clip in clips]
    r = sync.pearson(np.concatenate(measured), np.concatenate(truth))
    assert row("the mouth measure on rendered frames", f"r {r:.4f}", "at least 0.98", r >= 0.98)


def test_vae_on_unseen_identities():
    cfg, errors = config(), []
    for index in range(12):
        clip = source.clip(UNSEEN, 3000 + index, video_frames=96)
        frames = np.concatenate([clip["reference"][None], clip["frames"]])
        x = vae.from_uint8(frames[None])
        y = vae.decode(weights().vae, vae.encode(weights().vae, x, cfg=cfg.vae), cfg=cfg.vae)
        errors.append(float(jnp.square((y - x) / 2.0).mean()))
    psnr = float(-10.0 * np.log10(np.mean(errors)))
    assert row("tiny VAE on 12 unseen identities", f"{psnr:.1f} dB", "at least 30 dB", psnr >= 30.0)


def test_speed(videos):
    figures = json.loads(max(videos.values(), key=lambda video: video.stat().st_size).with_suffix(".json").read_text())
    figure = f"{figures['frames_per_second']:.1f} frames/s, first frame {figures['first_frame_s']:.2f} s"
    assert row("speed", figure, "reported (25 frames/s is the aim)", figures["frames_per_second"] > 0)


def test_look():
    """Draws the README's picture from the same performances; whether it is a talking face is for eyes to say."""
    sheet = ROOT / "docs" / "contact_sheet.png"
    contact_sheet.save(sheet, [frames for _, frames in performances()[:4]])
    assert shutil.which("git") and "contact_sheet.png" in (ROOT / "README.md").read_text()
    picture = load_portrait(sheet, height=384, width=768)
    assert row("look", "docs/contact_sheet.png is drawn", "8 frames x 4 identities, judged by eye", picture.std() > 20)
