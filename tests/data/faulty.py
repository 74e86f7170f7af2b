"""Detectors that do what a broken decoder may: hang, grow, die, raise."""

import os
import signal
import time

import numpy as np


def hang():
    def find(picture: np.ndarray) -> None:
        time.sleep(1000)

    return find


def grow():
    def find(picture: np.ndarray) -> None:
        kept = []
        while True:
            kept.append(np.ones(2**24))

    return find


def die():
    def find(picture: np.ndarray) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    return find


def fail():
    def find(picture: np.ndarray) -> None:
        raise KeyError("face")

    return find


def nobody():
    return lambda picture: None


def everywhere():
    """The middle of any picture."""

    def find(picture: np.ndarray) -> np.ndarray:
        rows, columns = picture.shape[:2]
        return np.array([columns / 4, rows / 4, columns / 2, rows / 2])

    return find
