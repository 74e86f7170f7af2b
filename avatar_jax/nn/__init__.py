"""Level 2: functional layers; each is a spec and an apply over one weight dict."""
