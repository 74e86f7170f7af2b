"""Streaming audio-driven avatars in JAX: causal video diffusion transformers, from one portrait and live sound."""

__version__ = "0.1.0"
