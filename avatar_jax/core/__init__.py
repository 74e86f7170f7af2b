"""Level 0: parameter specs, sharding axes, configuration and tree helpers."""
