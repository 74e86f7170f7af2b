"""Level 2: flow-matching mathematics; sees arrays, imports no model."""
