"""Inference mains, run from the repository root: `python -m infer.stream`."""
