"""A folder of weights is compared with the configuration before a weight is read."""

import dataclasses
import json

import pytest

from avatar_jax.core.config import Signal
from avatar_jax.io import checkpoint
from avatar_jax.io.errors import InputError
from configs.tiny import get_config


@pytest.fixture
def folder(tmp_path):
    """A converted transformer, described as it was before there were signals, and a trained VAE."""
    described = dataclasses.asdict(get_config().dit)
    del described["signals"]
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit.json").write_text(json.dumps(described))
    (tmp_path / "vae.safetensors").touch()
    return tmp_path


def test_a_description_older_than_a_field_means_its_default(folder):
    cfg = get_config()
    checkpoint.verify(folder, cfg, origin="--checkpoint")
    cfg.dit = dataclasses.replace(cfg.dit, signals=(Signal("head", (1.0,)),))
    with pytest.raises(InputError, match=r"dit\.json: a checkpoint for another configuration: signals=\[\]"):
        checkpoint.verify(folder, cfg, origin="--checkpoint")
    (folder / "dit.json").write_text(json.dumps(dataclasses.asdict(cfg.dit)))
    checkpoint.verify(folder, cfg, origin="--checkpoint")
