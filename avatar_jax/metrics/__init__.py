"""Measures of a talking face. Those that need a network use this project's own reader of drawn faces."""
