"""Runs as Python modules: each docstring gives the command, the device and the measured result."""
