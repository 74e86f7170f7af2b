"""The media clock of a call: frame k is due k / fps after the first, and waits move the clock, never the frames."""


class Pace:
    """When frames may go out.

    Args:
      fps: frames a second.
      lead: frames that may go out before they are due: what the player holds against jitter.
    """

    def __init__(self, fps: int, lead: int):
        self._fps, self._lead = fps, lead
        self._start_s: float | None = None
        self.frames, self.stalls, self.stalled_s = 0, 0, 0.0

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next frame may go out; 0 or less: now."""
        if self._start_s is None:
            return 0.0
        return self._start_s + (self.frames - self._lead) / self._fps - now_s

    def sent(self, now_s: float) -> None:
        """A frame goes out. If it comes after its time, all later ones are due so much later."""
        if self._start_s is None:
            self._start_s = now_s - self.frames / self._fps
        late = now_s - (self._start_s + self.frames / self._fps)
        if late > 0.0:
            self._start_s += late
            if late > 1.0 / self._fps:
                self.stalls, self.stalled_s = self.stalls + 1, self.stalled_s + late
        self.frames += 1

    def rest(self) -> None:
        """A wait is meant: the clock goes on with the next frame."""
        self._start_s = None

    def ahead_s(self, now_s: float) -> float:
        """Media that went out and is not due yet."""
        return 0.0 if self._start_s is None else max(0.0, self._start_s + self.frames / self._fps - now_s)
