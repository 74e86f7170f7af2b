"""A process of its own that takes one call's fragmented MP4 from stdin on to another server; started by `push`.

The first line of stdin holds the format and the address, which no list of processes shows that way. H.264 goes as it
is; sound becomes AAC, which RTMP servers and MPEG-TS players take. It writes a line on stdout once something was taken
there, and on stderr why it failed.
"""

import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np

HZ = 48_000
GAP_S = 10.0  # sound that is missing for longer is not made up
PROBE = {"probesize": "65536", "analyzeduration": "500000"}  # it is known what comes


class Pipe:
    """Stdin, which reads what is there instead of waiting for all that was asked for."""

    def __init__(self) -> None:
        self._stdin: Any = sys.stdin.buffer

    def read(self, size: int) -> bytes:
        """Some bytes; none at the end."""
        return self._stdin.read1(size)


class Voice:
    """The sound: decoded, its gaps filled with silence, encoded as AAC.

    Args:
      leaving: the container it goes into.
    """

    def __init__(self, leaving: Any):
        self._stream = leaving.add_stream("aac", rate=HZ, layout="mono")
        self._stream.bit_rate = 96_000
        self._next: int | None = None  # sample that is due

    def _encode(self, samples: np.ndarray, start: int) -> list[Any]:
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = HZ, start, Fraction(1, HZ)
        return self._stream.encode(frame)

    def hear(self, packet: Any) -> Iterator[Any]:
        """AAC packets for an Opus one."""
        for frame in packet.decode():
            start, samples = round(frame.time * HZ), frame.to_ndarray()[0].astype(np.float32)
            missing = 0 if self._next is None else start - self._next
            if 0 < missing < GAP_S * HZ:
                yield from self._encode(np.zeros(missing, np.float32), start - missing)
            self._next = start + samples.size
            yield from self._encode(samples, start)

    def end(self) -> list[Any]:
        """What the encoder still holds."""
        return self._stream.encode(None)


def relay(form: str, address: str) -> None:
    """Copies until stdin ends. Raises what PyAV raises."""
    arriving: Any = av.open(Pipe(), format="mp4", options=PROBE)
    with arriving, av.open(address, "w", format=form) as leaving:
        picture, voice = leaving.add_stream_from_template(arriving.streams.video[0]), Voice(leaving)
        taken = False
        for packet in arriving.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                packet.stream = picture
                leaving.mux(packet)
                if not taken:
                    taken = bool(sys.stdout.write("taken\n"))
                    sys.stdout.flush()
            else:
                leaving.mux(list(voice.hear(packet)))
        leaving.mux(voice.end())


def main() -> int:
    """The exit code: 0, or 1 with the reason on stderr, where addresses do not go."""
    form, address = sys.stdin.buffer.readline().decode().split()
    try:
        relay(form, address)
    except Exception as error:  # it is told to whoever started this
        sys.stderr.write(f"{getattr(error, 'strerror', None) or type(error).__name__}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
