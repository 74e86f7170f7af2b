"""The drawn world: identities, motion, speech with known mouths, and the clips made of them."""
