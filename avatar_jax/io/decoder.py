"""Decoders of untrusted sound files: mono float32 chunks at the file's own rate, one packet in memory.

PyAV (FFmpeg) decodes wav, flac, mp3, ogg, opus, m4a, aac, webm and the sound track of mp4, mov and mkv; what
only libsndfile knows (htk, sds, paf, ...) goes through soundfile. The first bytes choose the decoder, never
the name. FFmpeg gets a file object, so it reaches no address and no neighbouring file, and a list of
permitted containers, which leaves out playlists (a file named upload.m3u8 made it read another local file).
"""

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from avatar_jax.io.errors import InputError

CONTAINERS = "wav,w64,aiff,au,caf,mp3,aac,flac,ogg,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,avi,flv,asf,amr,wv"
MAGIC = (
    b"RIFF",
    b"RF64",
    b"RIFX",
    b"riff",
    b"FORM",
    b".snd",
    b"caff",
    b"ID3",
    b"fLaC",
    b"OggS",
    b"\x1aE\xdf\xa3",
)
MAGIC += (
    b"0&\xb2u",
    b"FLV",
    b"#!AMR",
    b"wvpk",
    b"G@",
)  # asf, flash video, AMR, WavPack, MPEG transport stream
ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")  # first box of an ISO or QuickTime file
MATROSKA = "matroska,webm"
DECLARED = ("flac", "mov,mp4,m4a,3gp,3g2,mj2", "aiff", "au", "wav")  # containers that state the exact length
MISSING_S = 0.5  # a file that holds this much less than its header declares is truncated
CODEC_FRAME = 2048  # samples of the longest AAC frame: the most padding after the declared end
UNKNOWN_RIFF_BYTES = 0x7FFF0000  # writers that cannot seek back leave a length this large, or 0
READ_SAMPLES = 65536
ADVICE = "give a wav, flac, mp3, ogg, opus, m4a or webm recording, or a video with sound"


def ffmpeg_knows(head: bytes) -> bool:
    """Whether a file's first 16 bytes belong to a container that FFmpeg is asked to open."""
    mpeg_sync = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0  # bare MPEG audio and ADTS
    return head.startswith(MAGIC) or head[4:8] in ATOMS or mpeg_sync


def open_container(file: BinaryIO) -> Any:
    """Opens a media file with FFmpeg, whatever its name says. Raises what FFmpeg raises on damaged bytes."""
    import av  # 30 MB of codecs: only once there is a file to decode

    return av.open(file, container_options={"format_whitelist": CONTAINERS})


def missing_wav_bytes(file: BinaryIO) -> int:
    """Bytes that a RIFF file's data chunk declares beyond the file's end (FFmpeg shortens it silently)."""
    size, at, missing = os.fstat(file.fileno()).st_size, 12, 0
    head = file.read(at)
    while head[:4] == b"RIFF" and head[8:] == b"WAVE" and at + 8 <= size:
        file.seek(at)
        chunk = file.read(8)
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            missing = max(0, at + 8 + length - size) if length < UNKNOWN_RIFF_BYTES else 0
            break
        at += 8 + length + length % 2
    file.seek(0)
    return missing


def to_mono(samples: np.ndarray, channels: int) -> np.ndarray:  # -> [n] float32
    """The mean of the channels, in [-1, 1], of PCM as FFmpeg returns it.

    Args:
        samples: [channels, n] (planar) or [1, n * channels] (packed), any PCM type.
        channels: how many.
    """
    planes = samples if samples.shape[0] == channels else samples.reshape(-1, channels).T
    with np.errstate(over="ignore", invalid="ignore"):  # non-finite samples are reported with their time
        if samples.dtype == np.uint8:
            planes = (planes.astype(np.float32) - 128) / 128
        elif samples.dtype.kind == "i":
            planes = planes.astype(np.float32) / float(np.iinfo(samples.dtype).max + 1)
        return planes.astype(np.float32).mean(axis=0, dtype=np.float32)


class FfmpegSource:
    """A container's best audio track."""

    def __init__(self, file: BinaryIO) -> None:
        missing = missing_wav_bytes(file)
        self._container = open_container(file)
        self._track = self._container.streams.best("audio")
        if self._track is None:
            raise InputError(f"has no audio track; {ADVICE}")
        self.source_hz = int(self._track.rate or 0)
        seconds = missing * 8 / (self._track.bit_rate or float("inf"))
        if seconds > MISSING_S:
            raise InputError(f"is truncated: the last {seconds:.1f} s that it declares are missing; copy it again")

    @property
    def duration_s(self) -> float | None:
        """The header's length, an estimate for formats that do not state it."""
        if self._track.duration:
            return float(self._track.duration * self._track.time_base)
        return self._container.duration / 1e6 if self._container.duration else None

    @property
    def _declared_samples(self) -> int | None:
        """The length that the header promises, where the format is exact about it."""
        name, seconds = self._container.format.name, self.duration_s
        alone = name == MATROSKA and len(self._container.streams) == 1  # it declares the longest track only
        tagged = name == "mp3" and bool(self._track.start_time)  # a LAME tag; else a guess from the bit rate
        return round(seconds * self.source_hz) if seconds and (name in DECLARED or alone or tagged) else None

    def _frames(self) -> Iterator[Any]:
        from av.error import InvalidDataError

        good, bad = 0, 0
        for packet in self._container.demux(self._track):
            try:
                frames = packet.decode()
            except InvalidDataError:  # one broken packet (a tag at the end) does not spoil a recording
                bad += 1
                continue
            good += bool(frames)
            yield from frames
        if bad > good:
            raise InputError(f"is damaged: {bad} of {bad + good} packets cannot be decoded; export it again")

    def chunks(self) -> Iterator[np.ndarray]:
        """Mono float32 chunks, without the codec's padding after the declared end.

        Raises InputError for a file that ends early, or changes its rate.
        """
        total, held = 0, np.zeros(0, np.float32)
        for frame in self._frames():
            if frame.sample_rate != self.source_hz:
                raise InputError(f"changes its sample rate at {total / self.source_hz:.2f} s; export it at one rate")
            yield held
            held = to_mono(frame.to_ndarray(), len(frame.layout.channels))
            total += held.size
        declared = self._declared_samples or total
        if declared - total > MISSING_S * self.source_hz:
            lengths = f"it declares {declared / self.source_hz:.1f} s and holds {total / self.source_hz:.1f} s"
            raise InputError(f"is truncated: {lengths}; copy it again")
        padding = total - declared if 0 < total - declared < CODEC_FRAME else 0
        yield held[: max(0, held.size - padding)]

    def close(self) -> None:
        """Frees the decoder."""
        self._container.close()


class SndfileSource:
    """A format that only libsndfile reads."""

    def __init__(self, file: BinaryIO) -> None:
        import soundfile  # rarely needed

        self._file = soundfile.SoundFile(file)
        self.source_hz = int(self._file.samplerate)

    @property
    def duration_s(self) -> float | None:
        """The header's length."""
        return self._file.frames / self.source_hz if self.source_hz else None

    def chunks(self) -> Iterator[np.ndarray]:
        """Mono float32 chunks."""
        for block in self._file.blocks(blocksize=READ_SAMPLES, dtype="float32", always_2d=True):
            yield to_mono(block.T, block.shape[1])

    def close(self) -> None:
        """Frees the decoder."""
        self._file.close()
