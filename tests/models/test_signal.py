"""What drives the picture: signals beside the sound in the injectors, and voices that keep to their masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import spec
from avatar_jax.core.config import DitConfig, Signal
from avatar_jax.models import audio, dit, signal
from configs.tiny import get_config

CONTEXT, FRAMES, TOKENS = 5, 3, 6


def cfg_of(*signals: Signal) -> DitConfig:
    small = {"width": 48, "heads": 2, "layers": 2, "ffn": 64, "audio_inject": (0,), "freq": 32, "signals": signals}
    return dataclasses.replace(get_config().dit, **small)


PLAIN = cfg_of()
DRIVEN = cfg_of(Signal("head", (0.1, 0.05)), Signal("smile", (0.3,)))


@pytest.fixture(scope="module")
def p() -> dict:
    """Random weights with nothing at zero, so that every path carries signal."""
    drawn = spec.init(dit.spec(DRIVEN), jax.random.key(0))
    leaves, tree = jax.tree.flatten(drawn)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return dit.lay_out(jax.tree.unflatten(tree, noisy), DRIVEN)


def sound(seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (1, CONTEXT + 4 * FRAMES, 1, DRIVEN.audio_width))


def voice_of(p: dict, seed: int, mask: np.ndarray | None = None, **rows: np.ndarray) -> audio.Voice:
    shown = None if mask is None else jnp.asarray(mask)
    voice = audio.encode(p["audio"]["encoder"], sound(seed), shown, context=CONTEXT, cfg=DRIVEN)
    return signal.join(p, voice, {name: jnp.asarray(row) for name, row in rows.items()}, cfg=DRIVEN)


def injected(p: dict, *voices: audio.Voice) -> np.ndarray:
    x = jax.random.normal(jax.random.key(9), (1, FRAMES, TOKENS, DRIVEN.width))
    (heard,) = dit.hear(p, voices, cfg=DRIVEN)
    return np.asarray(audio.inject(p["audio"]["injectors"][0], x, heard, cfg=DRIVEN))


def head(value: float = 0.05) -> np.ndarray:
    return np.full((1, 4 * FRAMES, 2), value, np.float32)


def test_without_signals_the_transformer_is_the_same(p):
    names = dit.spec(PLAIN)
    assert "signals" not in names and dit.spec(DRIVEN).keys() - names.keys() == {"signals"}
    voice = audio.encode(p["audio"]["encoder"], sound(0), context=CONTEXT, cfg=PLAIN)
    assert signal.join(p, voice, {}, cfg=PLAIN) is voice


def test_a_signal_drives_its_own_latent_frame(p):
    """Any of the four rows of a latent frame reaches that frame's token and no other; the sound's path is as before."""
    still, silent = voice_of(p, 0, head=head()), voice_of(p, 0)
    assert still.local.shape == (1, FRAMES, DRIVEN.audio_tokens + 1 + 2, DRIVEN.width)
    np.testing.assert_array_equal(still.local[:, :, : DRIVEN.audio_tokens + 1], silent.local[:, :, :-2])
    np.testing.assert_array_equal(still.whole, silent.whole)
    before = injected(p, still)
    for row in range(4, 8):
        moved = head()
        moved[:, row] += 0.02
        change = np.abs(injected(p, voice_of(p, 0, head=moved)) - before).max((0, 2, 3))
        assert change[1] > 1e-4 and change[0] == change[2] == 0.0


def test_a_signal_moves_what_is_there(p):
    """Without the attention's part a signal still reaches every token, each by what it holds already."""
    (injector,) = p["audio"]["injectors"]
    mute = injector["attention"] | {"o": jax.tree.map(jnp.zeros_like, injector["attention"]["o"])}
    alone = p | {"audio": p["audio"] | {"injectors": (injector | {"attention": mute},)}}
    rest, turned = (injected(alone, voice_of(p, 0, head=head(value))) for value in (0.0, 0.05))
    change = turned - rest
    assert np.abs(change).max((0, 3)).min() > 1e-4
    assert np.abs(change - change[:, :, :1]).max((0, 3))[:, 1:].min() > 1e-4


def test_an_absent_row_is_a_learned_one(p):
    """NaN and left out are the same token; a row of zeros, rest, is another; what NaN hides does not matter."""
    absent, partly = head(np.nan), head()
    partly[..., 1] = np.nan
    expected = voice_of(p, 0).local
    np.testing.assert_array_equal(voice_of(p, 0, head=absent).local, expected)
    np.testing.assert_array_equal(voice_of(p, 0, head=partly).local, expected)
    assert float(jnp.abs(voice_of(p, 0, head=head(0.0)).local - expected).max()) > 1e-3
    one = head()
    one[:, 5] = np.nan
    change = jnp.abs(voice_of(p, 0, head=one).local - voice_of(p, 0, head=head()).local).max((0, 2, 3))
    assert change[1] > 1e-3 and change[0] == change[2] == 0.0


def test_learning_stays_finite_beside_absent_rows(p):
    rows = head()
    rows[:, ::3] = np.nan
    gradient = jax.grad(lambda p: jnp.square(voice_of(p, 0, head=rows).local).sum())(p)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient["signals"]))
    assert float(jnp.abs(gradient["signals"]["head"]["absent"]).max()) > 0.0


def test_numbers_count_in_their_usual_sizes(p):
    wide = dataclasses.replace(DRIVEN, signals=(Signal("head", (0.2, 0.1)), DRIVEN.signals[1]))
    voice = audio.encode(p["audio"]["encoder"], sound(0), context=CONTEXT, cfg=wide)
    twice = signal.join(p, voice, {"head": jnp.asarray(2 * head())}, cfg=wide)
    np.testing.assert_allclose(twice.local, voice_of(p, 0, head=head()).local, atol=1e-6)


def masks() -> tuple[np.ndarray, np.ndarray]:
    """Two speakers, left and right, and a token that both drive by halves."""
    left = np.array([1.0, 1.0, 0.5, 0.5, 0.0, 0.0], np.float32)
    return tuple(np.tile(mask, (1, FRAMES, 1)) for mask in (left, 1.0 - left))  # type: ignore[return-value]


def test_a_masked_voice_reaches_its_own_tokens_only(p):
    left, right = masks()
    smile = np.full((1, 4 * FRAMES, 1), 0.3, np.float32)
    one = injected(p, voice_of(p, 0, left), voice_of(p, 1, right))
    other = injected(p, voice_of(p, 0, left), voice_of(p, 2, right, smile=smile))
    np.testing.assert_array_equal(one[:, :, :2], other[:, :, :2])
    assert np.abs(one - other)[:, :, 2:].max((0, 1, 3)).min() > 1e-3


def test_voices_add_up_under_their_masks(p):
    """x + sum of mask * what each voice alone adds (live_avatar.md sections 1.7, 11.5)."""
    x = jax.random.normal(jax.random.key(9), (1, FRAMES, TOKENS, DRIVEN.width))
    left, right = masks()
    alone = [injected(p, voice_of(p, seed)) - x for seed in (0, 1)]
    expected = x + left[..., None] * alone[0] + right[..., None] * alone[1]
    np.testing.assert_allclose(injected(p, voice_of(p, 0, left), voice_of(p, 1, right)), expected, atol=1e-5)
