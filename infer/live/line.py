"""What a call hears: live sound kept near its edge, and speech that was handed in whole.

Live sound (a microphone) counts from now: what has waited too long is dropped, oldest first, so an overloaded model
comes back to the live edge by itself. Speech (a recording, a voice) is spoken to its end, however early it came, and
while it lasts the microphone is not heard.
"""

import threading

import numpy as np

QUIET_S = 0.2  # without a packet for so long, nobody is talking
JITTER = 4  # packets may come early or late by this part of a block


class Overfull(ValueError):
    """More speech than a call may have waiting."""


class Line:
    """Sound on its way into the model; two threads may use it.

    Args:
      audio_hz: of the model.
      live_s: live sound that may wait; of more, only the newest block is kept.
      speech_s: speech that may wait.
    """

    def __init__(self, *, audio_hz: int, live_s: float, speech_s: float):
        self._hz, self._live_most, self._speech_most = audio_hz, round(live_s * audio_hz), round(speech_s * audio_hz)
        self._live, self._speech = np.zeros(0, np.float32), np.zeros(0, np.float32)
        self._lock, self._came_s = threading.Lock(), -1e9
        self.dropped, self.silent = 0, 0  # samples that came too late, and that stood in for missing ones

    @property
    def waiting_s(self) -> float:
        """Speech and live sound not yet taken."""
        return (len(self._speech) + len(self._live)) / self._hz

    def talk(self, samples: np.ndarray, now_s: float, *, keep: int) -> None:
        """Takes live sound [n]; beyond the limit only the newest `keep` samples stay."""
        with self._lock:
            self._came_s = now_s
            if self._speech.size:
                return
            self._live = np.concatenate([self._live, samples])
            if self._live.size > self._live_most:
                self.dropped += self._live.size - keep
                self._live = self._live[-keep:]

    def say(self, samples: np.ndarray) -> None:
        """Takes speech [n]. Raises Overfull."""
        with self._lock:
            if self._speech.size + samples.size > self._speech_most:
                raise Overfull(f"speech: {self._speech_most / self._hz:.0f} s may wait at most; send it in parts")
            self._live = self._live[:0]
            self._speech = np.concatenate([self._speech, samples])

    def clear(self) -> None:
        """Forgets all that waits."""
        with self._lock:
            self._live, self._speech = self._live[:0], self._speech[:0]

    def mute(self) -> None:
        """Forgets the live sound that waits."""
        with self._lock:
            self._live = self._live[:0]

    def take(self, size: int, now_s: float, *, must: bool, spare: int = 0) -> np.ndarray | None:
        """The next block of `size` samples, or None if it is better to wait for the rest of it.

        Args:
          size: of a block.
          now_s: the time.
          must: the picture would stop; unless somebody is talking, silence stands for what is missing.
          spare: samples by which the picture is needlessly late: so much live sound is dropped from a whole block.
        """
        with self._lock:
            talking = now_s - self._came_s < QUIET_S
            extra = self._live.size - size
            late = extra if extra > size // JITTER else min(spare, self._live.size) if extra >= 0 else 0
            if late:  # the picture is late: on with the newest block
                self._live, self.dropped = self._live[late:], self.dropped + late
            if self._speech.size:
                block, self._speech = self._speech[:size], self._speech[size:]
            elif self._live.size >= size or (must and not talking):
                block, self._live = self._live[:size], self._live[size:]
            else:
                return None
            self.silent += size - block.size
            return np.pad(block, (0, size - block.size))
