"""The networks against the libraries that published them, live, on random weights."""
