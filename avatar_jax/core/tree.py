"""Names for the leaves of nested weight dicts: flat `a/b/c` paths and back."""

from collections.abc import Mapping
from typing import Any

Tree = Any


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Nested dict to `{"a/b/c": leaf}`, keys in sorted order.

    Args:
      tree: nested mapping whose leaves are not mappings.
      prefix: path of `tree` itself.
    """
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key in sorted(tree):
        flat |= flatten(tree[key], f"{prefix}/{key}" if prefix else key)
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
