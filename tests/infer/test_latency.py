"""The latency ledger: its parts, its clock and its refusal; that it adds up is an acceptance check."""

import dataclasses

import numpy as np
import pytest

from avatar_jax.core.check import validate
from avatar_jax.stream import clock
from avatar_jax.stream.session import make_avatar
from configs import tiny, tiny_knot
from infer import latency
from tests.stream.test_session import avatar_of, small, sound, weights_of


def test_look_ahead_is_the_rest_of_a_block_and_what_it_waits_for():
    np.testing.assert_allclose(clock.look_ahead(tiny.get_config()), np.arange(11, -1, -1) / 25)
    np.testing.assert_allclose(clock.look_ahead(tiny_knot.get_config()), np.arange(15, 3, -1) / 25)


def test_the_ledger_of_a_small_avatar():
    avatar = avatar_of("clean")
    ledger = latency.measure(avatar, sound(3 * 7680), 2)
    assert ledger.parts.shape == (4, 12) and (ledger.parts >= 0).all() and (ledger.whole > ledger.look_ahead).all()
    np.testing.assert_allclose(np.diff(ledger.whole), -0.04, atol=1e-9)
    said = latency.text(ledger)
    assert all(name in said for name in (*latency.NAMES, "sum", "measured")) and "440.0" in said


def test_the_ledger_adds_up():
    ledger = latency.Ledger(np.array([0.04, 0.0]), 0.1, 0.2, 0.05, np.array([0.4, 0.35]))
    np.testing.assert_allclose(ledger.parts.sum(0), [0.39, 0.35])
    assert ledger.gap == pytest.approx(0.025)


def test_several_devices_are_refused():
    cfg = small("timestep")
    cfg = validate(dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, stages=2, driver="chain")))
    avatar = make_avatar(cfg, weights_of(cfg), np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"config\.mesh: the ledger times one device"):
        latency.measure(avatar, sound(7680), 1)
