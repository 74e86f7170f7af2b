"""From published checkpoints to this project's weights: files, rename tables, coverage."""
