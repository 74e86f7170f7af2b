"""Level 3: networks, each a spec and pure functions over its weights."""
