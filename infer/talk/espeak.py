"""eSpeak NG in a process of its own: text from stdin, PCM16 to stdout.

    python -m infer.talk.espeak VOICE WORDS_A_MINUTE

The library (PyPI's `espeakng-loader`, GPL-3.0) keeps one state a process and cannot be interrupted from outside of its
callback; a process can. The first line written is its sample rate.
"""

import ctypes
import resource
import sys
from pathlib import Path
from typing import Any

LIMITS = {
    resource.RLIMIT_CPU: 30,
    resource.RLIMIT_AS: 2**30,
    resource.RLIMIT_FSIZE: 0,
}  # s, bytes: texts are strangers'
SYNCHRONOUS, UTF8, RATE, POSITION_CHARACTER = 2, 1, 1, 1  # of speak_lib.h


def load() -> tuple[Any, int]:
    """The library and its sample rate. Raises ImportError or RuntimeError if it is not to be had."""
    import espeakng_loader  # type: ignore[import-not-found]

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = Path(espeakng_loader.get_data_path()).parent
    audio_hz = library.espeak_Initialize(SYNCHRONOUS, 0, str(data).encode(), 0)
    if audio_hz <= 0:
        raise RuntimeError(f"eSpeak does not start from {data}")
    return library, audio_hz


def speak(library: Any, text: str, write: Any) -> None:
    """Speaks a text; `write` gets PCM16 bytes as they come."""
    heard = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    @heard
    def take(samples: Any, count: int, _: Any) -> int:
        if samples and count:
            write(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(take)
    said = text.encode()
    library.espeak_Synth(said, ctypes.c_size_t(len(said) + 1), 0, POSITION_CHARACTER, 0, UTF8, None, None)


def main() -> None:
    """Speaks what comes on stdin."""
    library, audio_hz = load()
    for kind, most in LIMITS.items():
        resource.setrlimit(kind, (most, most))
    out = sys.stdout.buffer
    out.write(f"{audio_hz}\n".encode())
    out.flush()
    library.espeak_SetVoiceByName(sys.argv[1].encode())
    library.espeak_SetParameter(RATE, int(sys.argv[2]), 0)

    def write(samples: bytes) -> None:
        out.write(samples)
        out.flush()

    speak(library, sys.stdin.read(), write)


if __name__ == "__main__":
    main()
