"""The fields of a configuration by name: for flags that are mistyped, and for the record of a run."""

import dataclasses
import difflib
import json
from typing import Any

from avatar_jax.core.config import PictureConfig


def field_names(node: Any, prefix: str = "config") -> list[str]:
    """Dotted names of every field below a config node."""
    names = []
    for field in dataclasses.fields(node):
        value, name = getattr(node, field.name), f"{prefix}.{field.name}"
        names += field_names(value, name) if dataclasses.is_dataclass(value) else [name]
    return names


def nearest_fields(cfg: PictureConfig, wrong: str, count: int = 3) -> list[str]:
    """The field names closest to a mistyped one, best first."""
    return difflib.get_close_matches(wrong, field_names(cfg), n=count, cutoff=0.5)


def to_json(cfg: PictureConfig) -> str:
    """The resolved configuration as indented JSON, written beside every run's output."""
    return json.dumps(dataclasses.asdict(cfg), indent=2)
