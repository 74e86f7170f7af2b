"""The identity measure: is a drawn face closest to its own reference picture?"""

import numpy as np

from avatar_jax.metrics.reader import load_reader, read


def embed(frames: np.ndarray) -> np.ndarray:
    """Identity embeddings [T, E] of uint8 RGB frames [T, H, W, 3].

    The reader's estimate of the drawn world's identity vector, each number divided by the reader's residual
    deviation on unseen faces, so that a Euclidean distance weighs what the reader knows well. A proxy: it
    sees hair, skin, clothes and background as well as the face's shape, and knows drawn faces only.
    """
    identity = read(frames, "face")
    return identity / np.asarray(load_reader()["identity/error"])


def rank_of_own(frames: np.ndarray, own_reference: np.ndarray, other_references: np.ndarray) -> np.ndarray:
    """How many other references are nearer to each frame than its own: int [T], 0 is best.

    Frames [T, H, W, 3], own [H, W, 3], others [N, H, W, 3], all uint8 RGB; Euclidean distance of embeddings.
    """
    seen, own, others = embed(frames), embed(own_reference[None]), embed(other_references)
    own_gap = np.linalg.norm(seen - own, axis=-1)
    other_gaps = np.linalg.norm(seen[:, None] - others[None], axis=-1)
    return np.sum(other_gaps < own_gap[:, None], axis=1)
