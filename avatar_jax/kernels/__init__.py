"""Level 1: attention kernels, each beside its jnp oracle."""
