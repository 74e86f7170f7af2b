"""What a run tells of itself."""

import json
import pathlib
import time

import jax
import pytest

from avatar_jax.core.check import validate
from tests.train import mini
from train import journal, pretrain


def test_where_the_time_goes(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 1.0, 3.0, 3.0, 7.0, 10.0, 10.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(journal, "PEAKS", {jax.devices()[0].device_kind: 50.0})
    meter = journal.Meter(journal.Cost(tokens=30, flops=100.0), devices=2)
    for part in ("data", "save"):
        with meter.timed(part):
            meter.count()
    found = meter.read(stride=3)
    spent = {"seconds_data": 1.0, "seconds_save": 2.0, "seconds_look": 0.0, "seconds_step": 2.0}  # a call
    assert found == spent | {"steps_per_second": 0.6, "tokens_per_second": 6.0, "mfu": 0.2}


def test_no_peak_no_mfu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(journal, "PEAKS", {})
    meter = journal.Meter(journal.Cost(tokens=30, flops=100.0), devices=2)
    meter.count()
    assert "mfu" not in meter.read(1) and "tokens_per_second" not in journal.Meter(journal.UNKNOWN, 1).read(1)


def test_a_record_goes_on_where_its_run_does(tmp_path: pathlib.Path):
    """What comes after the checkpoint is written again, and so is a line that a kill has cut short."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (5, 10, 15)) + '{"step": 20, "lo'
    )
    told = journal.Journal(tmp_path, step=10, steps=20)
    told.write(15, {"loss": 2.0})
    told.plot()
    told.close()
    assert [(row["step"], row["loss"]) for row in told.rows()] == [(5, 1.0), (10, 1.0), (15, 2.0)]
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_the_cost_of_a_step():
    """Tokens by hand; operations between six a weight and token, embeddings aside, and twice that for attention."""
    cfg = validate(mini.get_config())
    cost = pretrain.cost(cfg)
    assert cost.tokens == 8 * 2 * 3 * 4  # windows, blocks, latents, tokens of one
    layers = cfg.dit.layers * (4 * cfg.dit.width**2 + 2 * cfg.dit.width * cfg.dit.ffn)
    assert cost.flops > 6 * layers * cost.tokens
