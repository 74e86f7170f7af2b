"""The tests, mirroring the packages; `tests/acceptance` holds the promised figures."""
