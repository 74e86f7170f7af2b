"""Endless streams: what the engines draw, whether a stream stays itself at any length, and what becomes of its time.

AVATAR_ENDLESS_SECONDS shortens the longest check; what was run stands in its row.
"""

import functools
import json
import os
import pathlib
import random
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import check
from avatar_jax.core.config import Config
from avatar_jax.data import source
from avatar_jax.metrics import mouth
from avatar_jax.models import audio, dit, mel, vae
from avatar_jax.stream import clock, engine, rollout, session, speaker
from avatar_jax.stream.state import BlockInput, Scene, Speaker, Weights
from configs import tiny, tiny_knot
from infer import door, latency
from tests.acceptance import absent, endless, mortal, report
from tests.stream import test_knot, test_published

GOLDEN = pathlib.Path(os.environ.get("GOLDEN_DIR", absent.ROOT / "tests" / "golden"))
SECONDS = int(os.environ.get("AVATAR_ENDLESS_SECONDS", "10000"))
KILLS, MORTAL_SECONDS = 20, 40
row = functools.partial(report.row, "engines")


@functools.lru_cache
def embedded() -> session.Avatar:
    return mortal.embedded()


def run_of(name: str) -> tuple[Config, Weights]:
    """An embedded model of each engine."""
    cfg = check.validate({"sink": tiny, "knot": tiny_knot}[name].get_config())
    return cfg, session.load_weights(cfg, door.embedded(cfg.name))


def test_released_sink():
    worst = {loop: test_published.errors(loop, GOLDEN / "liveavatar_causal_block") for loop in ("unroll", "scan")}
    figure = ", ".join(f"{loop} {max(found.values()):.3f}" for loop, found in worst.items())
    what = "published sink configuration against golden liveavatar_causal_block, 12 blocks: ring wraps twice, AAS"
    met = all(max(found.values()) <= 1.0 for found in worst.values())
    assert row(what, figure, "at most 1 of the case's tolerance", met)


def test_index_table(monkeypatch: pytest.MonkeyPatch):
    expected, found = test_knot.index_table(), test_knot.record(monkeypatch, test_knot.small(), 4)
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    figure = f"{same} of {len(expected)} network calls read and draw what it says"
    assert row("knot engine's index table, iterations 0 to 3", figure, "frame by frame", found == expected)


def test_fused_boundary():
    worst = 0.0
    for shape in test_knot.SHAPES:
        with pytest.MonkeyPatch.context() as patched:
            worst = max(worst, test_knot.fusion(patched, *shape))
    figure = f"off by at most {worst:.1e} over {len(test_knot.SHAPES)} shapes; the memory's pass sees the fused ones"
    bar = "the mean of its two predictions, once (1e-6); never cached before"
    assert row("fused boundary latent", figure, bar, worst <= 1e-6)


def drawn_from(first: int, scene: Scene, sound: np.ndarray, weights: Weights, cfg: Config, blocks: int) -> np.ndarray:
    """Latents of a stream whose first block has number `first`, from the state before block 0; sound: [T, mels]."""
    drawer = engine.Sequential(weights, scene, engine.start(weights, scene, cfg), cfg)
    noise = (1, cfg.stream.noise_latents, *cfg.latent_size, cfg.dit.latent_channels)
    latents = []
    for block in range(blocks):
        drawn = jax.random.normal(jax.random.fold_in(jax.random.key(6), block), noise)
        heard = sound[block * cfg.block_frames :][: cfg.stream.audio_context + cfg.heard_frames]
        speaker = Speaker(jnp.asarray(heard[None, :, None]))
        latents.append(drawer.draw(BlockInput((speaker,), drawn, clock.place(first + block, cfg))))
    return np.stack(latents)


def test_late_is_as_exact_as_early():
    """At its first block, and where that leads; beside it blocks 100 and 112, which differ by fp32 rounding alone.

    An unseen portrait and its speech: what these networks were trained for.
    """
    clip, figures, first = source.clip(900_000, 0, video_frames=120), [], {}
    for name in ("sink", "knot"):
        cfg, weights = run_of(name)
        scene = rollout.make_view(cfg)(weights.vae, vae.from_uint8(clip["reference"][None, None]))
        sound = np.asarray(mel.whole(jnp.asarray(clip["waveform"]), cfg.mel))
        early, late, near = (drawn_from(number, scene, sound, weights, cfg, 6) for number in (10**2, 10**7, 112))
        scale = np.abs(early).max()
        far, control = ([float(np.abs(each - early)[:n].max() / scale) for n in (1, 6)] for each in (late, near))
        first[name] = far[0]
        figures.append(
            f"{name} {far[0]:.1e}, {far[1]:.1e} six blocks on (block 112: {control[0]:.1e}, {control[1]:.1e})"
        )
    what = "relative exactness: a block drawn from the same state as number 10^7 and as 10^2"
    assert row(what, "; ".join(figures), "at most 1e-6 fp32", max(first.values()) <= 1e-6)


def test_endless(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device
    command = [sys.executable, "-m", "tests.acceptance.endless", str(tmp_path / "seen.json"), str(SECONDS)]
    subprocess.run(command, cwd=absent.ROOT, env=environment, check=True)
    seen = endless.Seen(**json.loads((tmp_path / "seen.json").read_text()))
    slower = seen.last[0] / seen.first[0] / (seen.last[1] / seen.first[1]) - 1
    figure = (
        f"{seen.frames} of {seen.wanted} frames in {seen.hours:.2f} h; {seen.resident[0] / 2**20:.1f} MiB at block "
        f"{seen.settled}, then at most {100 * seen.grown:+.2f} %; block {1e3 * seen.first[0]:.1f} ms then "
        f"{1e3 * seen.last[0]:.1f} ms, {100 * slower:+.2f} % beside a fixed computation ({1e3 * seen.first[1]:.1f} ms "
        f"then {1e3 * seen.last[1]:.1f} ms); {seen.compiles} compiles after block {endless.FIRST}"
    )
    flat = abs(seen.grown) <= 0.01 and slower <= 0.03
    exact = seen.frames == seen.wanted and seen.compiles == 0 and seen.finite
    bar = "memory flat within 1 %, time per block within 3 %, frames exact, no compile after the first blocks"
    what = f"{SECONDS:,} s of tiny, one block in {endless.DECODED_EVERY} decoded"
    assert row(what, figure, bar, flat and exact)


class Mortal:
    """The child process of `mortal` in a folder."""

    def __init__(self, folder: pathlib.Path):
        command = [sys.executable, "-m", "tests.acceptance.mortal", str(folder), str(MORTAL_SECONDS)]
        self.running = subprocess.Popen(command, cwd=absent.ROOT, stdout=subprocess.PIPE, text=True)

    def words(self):
        """What it says, until it ends."""
        assert self.running.stdout
        for line in self.running.stdout:
            yield line.strip()

    def end(self) -> int:
        """Waits for its end; its exit code."""
        self.running.communicate()
        return self.running.returncode

    def kill(self, word: str, number: int, delay: float) -> bool:
        """SIGKILL some seconds after it has said a word so many times; whether it was in time."""
        for said in self.words():
            number -= said == word
            if not number:
                time.sleep(delay)
                break
        late = self.running.poll() is not None
        self.running.kill()
        return self.end() == -9 and not late


def unfinished(folder: pathlib.Path) -> set[tuple[str, int]]:
    """The saves that a kill has cut short and the next save will remove."""
    return {(path.name, path.stat().st_ctime_ns) for path in (folder / "saved").glob("*partial*")}


def test_killed_and_resumed(tmp_path: pathlib.Path):
    """Half of the kills fall on a save: a save takes about a tenth of a second."""
    rng, folders = random.Random(0), [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    assert Mortal(folders[0]).end() == 0
    kills, during = 0, 0
    for number in range(KILLS):
        saving = number % 2 == 1
        word, most = ("saves", 2) if saving else ("goes on", 4)
        before = unfinished(folders[1])
        kills += Mortal(folders[1]).kill(word, rng.randint(1, most), rng.uniform(0.0, 0.12))
        during += bool(unfinished(folders[1]) - before)
    assert Mortal(folders[1]).end() == 0  # 3 where a block shown twice was not the same
    whole, killed = ({path.name: np.load(path) for path in (folder / "shown").glob("*.npy")} for folder in folders)
    parts = [name for name in whole if name in killed and np.array_equal(whole[name], killed[name])]
    frames = sum(len(whole[name]) for name in parts)
    figure = f"{kills} kills, {during} of them within a save; {frames} of {MORTAL_SECONDS * 25} frames equal"
    met = kills == KILLS and whole.keys() == killed.keys() == set(parts) and frames == MORTAL_SECONDS * 25
    assert row(f"save, kill -9, resume at {KILLS} random points, tiny", figure, "bit-equal output", met)


def test_two_speakers():
    """Through the embedded injectors: left and right halves of the picture, the right one's recording changed."""
    cfg, weights = run_of("sink")
    p, seen = weights.dit, np.zeros((2, cfg.video.height, cfg.video.width), np.float32)
    seen[0, :, : cfg.video.width // 2], seen[1, :, cfg.video.width // 2 :] = 1.0, 1.0
    masks = speaker.token_masks(seen, cfg)

    def heard(*seeds: int) -> Any:
        shape = (1, cfg.stream.audio_context + cfg.heard_frames, cfg.dit.audio_layers, cfg.dit.audio_width)
        sounds = [jax.random.normal(jax.random.key(seed), shape) for seed in seeds]
        people = [Speaker(sound, mask=jnp.asarray(mask)) for sound, mask in zip(sounds, masks, strict=True)]
        return dit.hear(p, tuple(rollout.voice_of(p, person, cfg=cfg) for person in people), cfg=cfg.dit)

    x = jax.random.normal(jax.random.key(9), (1, cfg.stream.block_latents, cfg.tokens_per_frame, cfg.dit.width))
    own, changes = masks[0, 0, 0] == 1.0, []
    for injector, one, other in zip(p["audio"]["injectors"], heard(1, 2), heard(1, 3), strict=True):
        one, other = (np.asarray(audio.inject(injector, x, voices, cfg=cfg.dit)) for voices in (one, other))
        changes.append((np.abs(one - other)[:, :, own].max(), np.abs(one - other)[:, :, ~own].max()))
    kept, changed = max(change for change, _ in changes), min(change for _, change in changes)
    figure = f"{len(changes)} injectors: {kept:.1e} in the other's region, at least {changed:.1e} in its own"
    bar = "changing one recording leaves the other's region bit-equal at the injection layers"
    assert row("two speakers, masks and injection", figure, bar, kept == 0.0 and changed > 1e-3 and own.any())


@pytest.mark.parametrize("name", ["sink", "knot"])
def test_ledger(name: str):
    cfg, weights = run_of(name)
    portrait = np.random.default_rng(0).integers(0, 256, (cfg.video.height, cfg.video.width, 3), dtype=np.uint8)
    ledger = latency.measure(session.make_avatar(cfg, weights, portrait), mortal.speech(8), 40)
    parts = ", ".join(
        f"{part} {1e3 * value:.0f}" for part, value in zip(latency.NAMES, ledger.parts.mean(1), strict=True)
    )
    sums = f"{1e3 * ledger.parts.sum(0).mean():.0f} of {1e3 * ledger.whole.mean():.0f} ms for the mean frame"
    figure = f"{parts}: {sums}; the worst frame of a block is off by {100 * ledger.gap:.1f} %"
    bar = "look-ahead, denoise, decode and queue add up to the measured whole within 5 %"
    assert row(f"latency ledger, {cfg.name}", figure, bar, ledger.gap <= 0.05)


def test_listening():
    """Half a minute of silence beside half a minute of speech; differences and colours in levels of 255."""
    silence, speech = (
        np.concatenate([*live.push_audio(sound), *live.finish()])
        for live, sound in (
            (session.Session(embedded()), np.zeros(30 * 16_000, np.float32)),
            (session.Session(embedded()), mortal.speech(30)),
        )
    )
    second = 25
    moved = np.abs(silence[second:].astype(np.float32) - silence[:-second]).mean((1, 2, 3))
    alive = min(moved[at : at + second].mean() for at in range(0, len(moved), second))
    colours = silence.mean((1, 2)).reshape(-1, 5 * second, 3).mean(1)
    drift = np.abs(colours - colours[0]).max()
    at_rest, speaking = (mouth.read_frames(frames).opening for frames in (silence, speech))
    figure = (
        f"a second apart {alive:.1f} levels or more; colour within {drift:.1f} levels of the first 5 s; "
        f"mouth opening {at_rest.mean():.2f} (at most {at_rest.max():.2f}), speaking {speaking.mean():.2f} "
        f"({speaking.max():.2f})"
    )
    bar = "at least 2 levels a second apart, colour within 3, mouth open at most half as far as speaking"
    met = alive >= 2.0 and drift <= 3.0 and at_rest.mean() <= 0.5 * speaking.mean()
    assert row("listening: 30 s of silence, tiny", figure, bar, bool(met) and len(silence) == 750)
