"""The fields of a configuration by name: for flags that are mistyped, and for the record of a run."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
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


def _young(field: dataclasses.Field) -> Any:
    """What a field was before there was one: its default, as JSON holds it."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is dataclasses.MISSING:
        return None
    return json.loads(json.dumps(dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default))  # type: ignore[arg-type]


def changed(record: Mapping[str, Any], node: Any, prefix: str = "config") -> dict[str, Any]:
    """Dotted names of the fields that differ from a record by `to_json`, with what it says.

    A field younger than the record had its default; one that is gone is not compared.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        value, name = getattr(node, field.name), f"{prefix}.{field.name}"
        old = record[field.name] if field.name in record else _young(field)
        if dataclasses.is_dataclass(value) and isinstance(old, Mapping):
            found |= changed(old, value, name)
        elif dataclasses.is_dataclass(value) or json.loads(json.dumps(value)) != old:
            found[name] = old
    return found
