"""Level 3: everything that crosses the process boundary: recordings, portraits, videos, weights."""
