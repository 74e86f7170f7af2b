"""Encoded clips: windows line up with their sound, and a run resumes where it stopped."""

import dataclasses
import pathlib
import resource
from typing import Any

import numpy as np
import pytest

from avatar_jax.core.config import Signal
from avatar_jax.data import controls, latents, source
from avatar_jax.io.errors import InputError
from avatar_jax.models import mel
from configs import tiny_driven
from configs.tiny import get_config
from train import loop

CLIPS, BLOCKS = 6, 4


@pytest.fixture
def cfg():
    cfg = get_config()
    cfg.train = dataclasses.replace(cfg.train, dit_blocks=2)
    return cfg


@pytest.fixture
def folder(tmp_path, cfg):
    """Clips whose every value tells where it came from: latent frame 1 + j of clip i holds 100 i + j."""
    records = []
    for clip in range(CLIPS):
        frames = np.arange(-1, 3 * BLOCKS)  # -1 is the reference
        latent = np.full((len(frames), 2, 2, 16), 0.0, np.float16) + (100 * clip + frames)[:, None, None, None]
        sound = np.zeros((12 * BLOCKS, cfg.dit.audio_width), np.float16) + np.arange(12 * BLOCKS)[:, None]
        turned = np.arange(12 * BLOCKS, dtype=np.float32)[:, None] + [0.0, 0.25]
        records.append(
            {"latent": latent.astype(np.float16), "features": sound.astype(np.float16), "signal.head": turned}
        )
    latents.write_shard(latents.shard_path(tmp_path, 0), records[:3])
    latents.write_shard(latents.shard_path(tmp_path, 1), records[3:])
    return tmp_path


def dataset(folder, cfg):
    return latents.window_dataset(folder, cfg, silence=mel.silence(cfg.mel), batch=4)


def test_windows_line_up_with_their_sound(folder, cfg):
    context = cfg.stream.audio_context
    starts = set()
    for _, batch in zip(range(12), dataset(folder, cfg), strict=False):
        assert batch["latent"].shape == (4, 6, 2, 2, 16) and batch["features"].shape[1:3] == (1, context + 24)
        for latent, reference, heard in zip(batch["latent"], batch["reference"], batch["features"][:, 0], strict=True):
            clip, first = divmod(int(latent[0, 0, 0, 0]), 100)
            assert int(reference[0, 0, 0, 0]) == 100 * clip - 1
            assert int(heard[context, 0, 0]) == 4 * first  # 4 video frames a latent frame
            before = heard[:context, 0, 0]
            assert (before == (-1 if first == 0 else before)).all() and (first == 0 or before[-1] == 4 * first - 1)
            starts.add(first)
    assert starts == {0, 3, 6}  # whole blocks only, every run of two


def test_an_ear_with_layers_and_captions(tmp_path, cfg):
    """As wav2vec2 hears: nobody knows what silence is, so the first frame stands before the clip too."""
    cfg.dit = dataclasses.replace(cfg.dit, audio_layers=3, audio_width=2, text_width=4, text_tokens=5)
    sound = np.arange(24 * 6, dtype=np.float16).reshape(24, 3, 2)
    record = {"latent": np.zeros((7, 2, 2, 16), np.float16), "features": sound, "text": np.ones((2, 4), np.float16)}
    latents.write_shard(latents.shard_path(tmp_path, 0), [record])
    batch: Any = latents.window_dataset(tmp_path, cfg, silence=None, batch=1)[0]
    context = cfg.stream.audio_context
    np.testing.assert_array_equal(batch["features"][0, 0, context:], sound)
    np.testing.assert_array_equal(batch["features"][0, 0, :context], np.repeat(sound[:1], context, 0))
    assert batch["text"].shape == (1, 5, 4) and batch["text"].sum() == 8.0
    bare = {name: rows for name, rows in record.items() if name != "text"}
    latents.write_shard(latents.shard_path(tmp_path, 0), [bare])
    with pytest.raises(ValueError, match="hold no text"):
        latents.window_dataset(tmp_path, cfg, silence=None, batch=1)


def test_an_iterator_resumes_exactly(folder, cfg):
    data = loop.batches(dataset(folder, cfg), threads=1, prefetch=2)
    for _ in range(3):
        next(data)
    place = data.get_state()
    expected = [next(data) for _ in range(3)]
    again = loop.batches(dataset(folder, cfg), threads=1, prefetch=2)
    again.set_state(place)
    for batch in expected:
        np.testing.assert_array_equal(next(again)["latent"], batch["latent"])


def with_signals(cfg, *signals: Signal):
    return dataclasses.replace(cfg, dit=dataclasses.replace(cfg.dit, signals=signals))


def test_windows_line_up_with_their_signals(folder, cfg):
    driven = with_signals(cfg, Signal("head", (0.1, 0.1)))
    for _, batch in zip(range(6), dataset(folder, driven), strict=False):
        heard = batch["features"][:, :, cfg.stream.audio_context :, 0, 0]
        np.testing.assert_array_equal(batch["signals"]["head"], heard[..., None] + np.array([0.0, 0.25]))
    plain = next(iter(dataset(folder, cfg)))
    assert plain["signals"] == {} and not plain["performed"].any()


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (
            Signal("gaze", (0.1,)),
            "its clips hold no signal 'gaze', where config.dit.signals wants 1; run train.latents",
        ),
        (Signal("head", (0.1,)), "its clips hold 2 numbers of 'head', where config.dit.signals wants 1"),
    ],
)
def test_clips_without_the_signals_are_refused(folder, cfg, signal, words):
    with pytest.raises(ValueError, match=words):
        dataset(folder, with_signals(cfg, signal))


def test_the_drawn_world_gives_the_signals_of_the_driven_avatar():
    """Names, widths, rest at zero and the usual sizes, as `configs/tiny_driven.py` states them."""
    clips = [source.clip(7, index, video_frames=96, size=32)["controls"] for index in range(24)]
    moved = controls.signals(np.concatenate(clips))
    assert not any(rows.any() for rows in controls.signals(np.array([controls.NEUTRAL])).values())
    np.testing.assert_array_equal(moved["gaze"][:, 2], np.concatenate(clips)[:, controls.CONTROL_NAMES.index("blink")])
    for signal in tiny_driven.get_config().dit.signals:
        deviations = moved[signal.name].std(0)
        assert deviations.shape == (signal.width,)
        assert (np.abs(np.log(deviations / signal.spread)) < 0.4).all(), (signal.name, deviations)


def test_twins_come_in_batches_of_their_own(folder, tmp_path_factory, cfg):
    """Half as many windows, each beside its twin of the same moment; who does not ask for them sees clips as others."""
    driven = with_signals(cfg, Signal("head", (0.1, 0.1)))
    other = tmp_path_factory.mktemp("twins")
    records = [
        record | {"twin.latent": record["latent"] + 50.0, "twin.signal.head": record["signal.head"] + 0.5}
        for record in latents.read_shard(latents.shard_path(folder, 0))
    ]
    latents.write_shard(latents.shard_path(other, 0), records)
    both, wide, twinned = {folder: 1.0, other: 1.0}, [], 0
    data = latents.window_dataset(both, driven, silence=mel.silence(cfg.mel), batch=4, twins=True)
    for _, batch in zip(range(8), latents.paired(data, 2), strict=False):
        wide.append(batch["latent"].shape[3] == 4)
        if "twin" not in batch:
            continue
        twinned += 1
        assert batch["latent"].shape[0] == batch["features"].shape[0] == 2 - wide[-1]
        np.testing.assert_array_equal(batch["twin"]["latent"], batch["latent"] + 50.0)
        np.testing.assert_array_equal(batch["twin"]["signals"]["head"], batch["signals"]["head"] + 0.5)
    assert wide == [False, True] * 4 and twinned == 4
    plain = latents.window_dataset(both, driven, silence=mel.silence(cfg.mel), batch=4)
    assert all("twin" not in batch and len(batch["latent"]) == 4 for _, batch in zip(range(4), plain, strict=False))


def test_no_shards_is_one_clear_line(tmp_path, cfg):
    with pytest.raises(ValueError, match=r"run train\.latents"):
        dataset(tmp_path, cfg)


def test_folders_mix_by_weight_and_resume_exactly(folder, tmp_path_factory, cfg):
    """Clip numbers tell the folder: one window in four is of the first."""
    other, records = tmp_path_factory.mktemp("other"), list(latents.read_shard(latents.shard_path(folder, 1)))
    shifted = [record | {"latent": record["latent"] + np.float16(1000)} for record in records]
    latents.write_shard(latents.shard_path(other, 0), shifted)

    def batches():
        mixed = latents.window_dataset({folder: 1.0, other: 3.0}, cfg, silence=mel.silence(cfg.mel), batch=4)
        return loop.batches(mixed, threads=1, prefetch=2)

    data, shares = batches(), []
    for _ in range(25):
        shares += [latent[0, 0, 0, 0] >= 1000 for latent in next(data)["latent"]]
    assert abs(np.mean(shares) - 0.75) <= 0.02
    place, expected = data.get_state(), [next(data) for _ in range(3)]
    again = batches()
    again.set_state(place)
    for batch in expected:
        resumed = next(again)
        for name in ("latent", "features", "reference"):
            np.testing.assert_array_equal(resumed[name], batch[name])


def test_one_folder_with_a_weight_is_that_folder(folder, cfg):
    one = latents.window_dataset({folder: 0.3}, cfg, silence=mel.silence(cfg.mel), batch=4)
    for batch, expected in zip(one[:3], dataset(folder, cfg)[:3], strict=True):
        np.testing.assert_array_equal(batch["latent"], expected["latent"])


def test_weights_are_read_from_a_command():
    path = pathlib.Path
    assert latents.weighted("runs/a") == {path("runs/a"): 1.0}
    assert latents.weighted("runs/a=3, runs/b") == {path("runs/a"): 3.0, path("runs/b"): 1.0}
    for text in ("", "a=0", "a=-1", "a=x", "a=inf", "a,a", "a,", "a=nan"):
        with pytest.raises(ValueError, match="--latents: "):
            latents.weighted(text)


def test_a_shard_that_fails_leaves_no_file(tmp_path):
    def records():
        yield {"latent": np.zeros(3, np.float16)}
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError):
        latents.write_shard(latents.shard_path(tmp_path, 0), records())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tmp_path):
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).random(50_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(InputError, match="cannot be written, free some space and run again"):
            latents.write_shard(latents.shard_path(tmp_path, 0), [{"latent": noise}] * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
