"""Frames through the codecs that people put videos through."""

import io
from typing import Any

import av
import numpy as np

CODECS: dict[str, tuple[str, str, dict[str, str], int]] = {  # muxer, codec, options, bits a second (0: by quality)
    "x264": ("mp4", "libx264", {"crf": "23", "preset": "medium"}, 0),
    "x264 CRF 28": ("mp4", "libx264", {"crf": "28", "preset": "medium"}, 0),
    "vp8": ("webm", "libvpx", {"deadline": "realtime", "cpu-used": "8"}, 500_000),
}


def recode(frames: np.ndarray, kind: str, fps: int = 25) -> np.ndarray:
    """Encodes frames uint8 [T, H, W, 3] as one of CODECS, decodes them to grey uint8 [T, H, W]."""
    muxer, codec, options, rate = CODECS[kind]
    file = io.BytesIO()
    with av.open(file, "w", format=muxer) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        if rate:
            stream.bit_rate = rate
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as coded:
        return np.stack([frame.to_ndarray(format="gray") for frame in coded.decode(video=0)])
