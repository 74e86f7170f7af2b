"""Who may look where when a sequence runs whole: boolean masks [queries, keys], frame-major like the tokens."""

import numpy as np


def _ends(lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last latent frame of every frame's block."""
    stops = np.cumsum(lengths)
    return np.repeat(stops - lengths, lengths), np.repeat(stops, lengths)


def _tokens(frames: np.ndarray, tokens: int) -> np.ndarray:
    return np.repeat(np.repeat(frames, tokens, 0), tokens, 1)


def block_causal(lengths: tuple[int, ...], tokens: int, window: int | None = None) -> np.ndarray:
    """A token sees its own block and those before it, at most the last `window` latent frames of them.

    Args:
      lengths: latent frames of each block.
      tokens: tokens of a latent frame.
      window: latent frames up to the end of the query's block; None for all.
    """
    _, stop = _ends(lengths)
    key = np.arange(sum(lengths))
    seen = key[None] < stop[:, None]
    return _tokens(seen if window is None else seen & (key[None] >= stop[:, None] - window), tokens)


def teacher_forcing(lengths: tuple[int, ...], tokens: int) -> np.ndarray:
    """Over [clean | noisy] copies of a clip: noisy tokens see their own block and the clean blocks before it."""
    start, stop = _ends(lengths)
    key = np.arange(sum(lengths))
    own = (key[None] >= start[:, None]) & (key[None] < stop[:, None])
    clean, before = key[None] < stop[:, None], key[None] < start[:, None]
    return _tokens(np.block([[clean, np.zeros_like(own)], [before, own]]), tokens)


def with_reference(blocks: int, window: int, tokens: int, reference: int) -> np.ndarray:
    """Over `blocks` copies of the reference, then the video: what a stream's ring would show each block.

    Args:
      blocks: number of blocks.
      window: blocks that a query sees, its own included.
      tokens: tokens of a block.
      reference: tokens of the reference; a query sees the copy of its own block.
    """
    own = np.repeat(np.eye(blocks, dtype=bool), reference, 1)
    return np.concatenate([np.repeat(own, tokens, 0), block_causal((1,) * blocks, tokens, window)], 1)
