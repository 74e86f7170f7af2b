"""Ahead-of-time compilation for devices that are not attached: targets, programs, what their HLO says."""
