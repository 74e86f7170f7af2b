"""Live calls: who comes in, what they hear and see, and the one server that holds them."""
