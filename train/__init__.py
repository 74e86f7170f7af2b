"""Training mains: one absl program a stage, run from the repository root."""
