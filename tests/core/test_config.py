"""Impossible configurations are refused by name."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from avatar_jax.core import check, config, fields
from configs.tiny import get_config

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_shipped_config_is_valid_and_hashable():
    cfg = check.validate(get_config())
    assert hash(cfg) == hash(get_config()) and cfg == get_config()
    assert (cfg.block_frames, cfg.block_samples, cfg.grid) == (12, 7680, (6, 6))
    assert json.loads(fields.to_json(cfg))["stream"]["steps"] == cfg.stream.steps


RUNS = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in ("__init__", "reader"))


@pytest.mark.parametrize("name", RUNS)
def test_every_run_is_possible(name: str):
    """All but the reader's, which has a schema of its own."""
    cfg = check.validate(importlib.import_module(f"configs.{name}").get_config())
    assert cfg.name == name and json.loads(fields.to_json(cfg))


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("video", "height", 100),
        ("stream", "steps", 0),
        ("stream", "history", "noisy"),
        ("stream", "audio_context", 6),
        ("dit", "heads", 5),
        ("dit", "audio_inject", (0, 99)),
        ("dit", "layer_loop", "while"),
        ("sound", "hop_samples", 150),
        ("stream", "levels", "even"),
        ("stream", "reference_ahead", (5, 4)),
        ("stream", "audio_ahead", 3),
        ("stream", "warm_latents", 2),
        ("stream", "engine", "knots"),
        ("dit", "condition_channels", 20),
        ("vae", "temporal", (True,)),
        ("dit", "signals", (("head", (1.0,)),)),
        ("dit", "signals", (config.Signal("head", (1.0,)), config.Signal("head", (1.0,)))),
        ("dit", "signals", (config.Signal("head", (1.0, 0.0)),)),
        ("train", "dit_drop_signal", 1.5),
    ],
)
def test_the_refusal_names_the_field(section, field, value):
    cfg = get_config()
    setattr(cfg, section, dataclasses.replace(getattr(cfg, section), **{field: value}))
    with pytest.raises(ValueError, match=rf"config\.{section}\.{field}="):
        check.validate(cfg)


@pytest.mark.parametrize(
    ("field", "value"), [("accumulate", 0), ("accumulate", 3), ("spike", 0.5), ("warmup", -1), ("warmup", 40)]
)
def test_the_rates_of_a_stage_are_named(field, value):
    cfg = get_config()
    rates = dataclasses.replace(cfg.train.dit, batch=8, steps=40, warmup=4)
    cfg.train = dataclasses.replace(cfg.train, dit=dataclasses.replace(rates, **{field: value}))
    name = "batch" if value == 3 else field
    with pytest.raises(ValueError, match=rf"config\.train\.dit\.{name}="):
        check.validate(cfg)


def test_a_near_miss_is_suggested():
    assert fields.nearest_fields(get_config(), "config.stream.step")[0] == "config.stream.steps"
    assert fields.nearest_fields(get_config(), "qqqq") == []
