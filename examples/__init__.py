"""Adapters to other systems, run from the repository root."""
