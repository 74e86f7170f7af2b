"""Dynamic degree: how much a video moves, by dense optical flow.

After VBench's measure, which takes the largest twentieth of RAFT's flow between two frames: the same statistic over
OpenCV's Farneback flow, which needs no weights, as a share of the frame's height a second. Its numbers do not compare
with VBench's.
"""

import itertools

import cv2
import numpy as np

LARGEST = 0.05  # share of the pixels that counts
# pyramid scale, levels, window, iterations, polynomial neighbourhood and its deviation, flags
FARNEBACK = (0.5, 3, 11, 3, 5, 1.1, 0)


def dynamic_degree(frames: np.ndarray, *, fps: int) -> float:
    """Frame heights a second that the fastest twentieth of the picture moves, the mean over a video.

    frames: uint8 RGB [T, H, W, 3], T of at least 2. Raises ValueError for fewer.
    """
    if len(frames) < 2:
        raise ValueError(f"{len(frames)} frames do not move: at least 2")
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    height, degrees = frames.shape[1], []
    for before, after in itertools.pairwise(grey):
        flow = cv2.calcOpticalFlowFarneback(before, after, np.zeros((*before.shape, 2), np.float32), *FARNEBACK)
        speed = np.sort(np.hypot(flow[..., 0], flow[..., 1]), axis=None)
        degrees.append(speed[-max(1, int(LARGEST * speed.size)) :].mean())
    return float(np.mean(degrees)) * fps / height
