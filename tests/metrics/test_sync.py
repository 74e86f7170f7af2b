"""The sync measures on tracks whose answer is known."""

import numpy as np
import pytest

from avatar_jax.metrics import sync


def _track(frames: int = 200, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(frames + 4)
    return np.convolve(noise, np.ones(5) / 5, "valid")


def test_pearson_of_itself_and_of_a_line() -> None:
    track = _track()
    assert sync.pearson(track, track) == pytest.approx(1)
    assert sync.pearson(track, 3 - 2 * track) == pytest.approx(-1)
    assert sync.pearson(track, np.ones_like(track)) == 0
    assert sync.pearson(track, _track(seed=1)) == pytest.approx(np.corrcoef(track, _track(seed=1))[0, 1])


@pytest.mark.parametrize("lag", [-4, -1, 0, 1, 5])
def test_best_lag_recovers_a_known_shift(lag: int) -> None:
    track = _track(240)
    late, base = track[20 - lag : 220 - lag], track[20:220]
    assert sync.best_lag(late, base, 6) == lag


def test_envelope_follows_bursts_and_ignores_gain() -> None:
    time = np.arange(2 * 16_000) / 16_000
    sound = np.sin(2 * np.pi * 200 * time) * (np.floor(time * 2) % 2 == 1)
    envelope = sync.energy_envelope(sound, 16_000, 25)
    assert envelope.shape == (50,) and envelope.dtype == np.float32
    assert envelope[18:24].min() > 0.95 and envelope[5] < 0.01
    np.testing.assert_allclose(sync.energy_envelope(0.01 * sound, 16_000, 25), envelope, atol=1e-6)
    assert not sync.energy_envelope(np.zeros(16_000), 16_000, 25).any()


def test_envelope_counts_the_last_part_of_a_frame() -> None:
    assert sync.energy_envelope(np.ones(641), 16_000, 25).shape == (2,)


def test_score_of_an_opening_that_lags() -> None:
    rng = np.random.default_rng(0)
    loudness = np.clip(_track(100), 0, None)
    sound = np.repeat(loudness, 640) * rng.standard_normal(64_000)
    envelope = sync.energy_envelope(sound, 16_000, 25)
    score = sync.sync_score(np.roll(envelope, 3), sound)
    assert score.lag_frames == 3 and score.r < 0.9
    exact = sync.sync_score(envelope, sound)
    assert exact.lag_frames == 0 and exact.r == pytest.approx(1)
    assert sync.sync_score(envelope[:-1], sound).r == pytest.approx(1)  # one frame apart is allowed


def test_refuses_tracks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="one length"):
        sync.pearson(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="too few"):
        sync.best_lag(np.ones(5), np.ones(5), 6)
    with pytest.raises(ValueError, match="do not fit"):
        sync.sync_score(np.ones(90), np.ones(64_000))
    with pytest.raises(ValueError, match="waveform"):
        sync.energy_envelope(np.ones((2, 640)), 16_000, 25)
