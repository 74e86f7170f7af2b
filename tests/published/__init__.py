"""Golden cases: how each kind of published computation runs here, from its weights and inputs to its outputs."""
