"""avatar_jax as the video worker of a LiveKit agent: the agent's speech in, picture and speech in step out.

The agent sends its speech to this worker (`DataStreamAudioOutput`), which joins the same room and publishes both
tracks. LiveKit's packages are needed (`pip install livekit-agents`) and its server; nothing else here needs them.

    python examples/livekit_avatar.py --url=wss://... --token=... --image=face.png
"""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `infer` runs from the repository

from examples.speaking import Speaking, make_speaking


def make_generator(speaking: Speaking) -> Any:
    """A `VideoGenerator` of livekit-agents over a speaking portrait."""
    from livekit import rtc  # type: ignore[import-not-found]
    from livekit.agents.voice.avatar import AudioSegmentEnd, VideoGenerator  # type: ignore[import-not-found]

    class Generator(VideoGenerator):
        """Sound is pushed; pictures, each with the sound under it, are read."""

        def __init__(self) -> None:
            self._out: asyncio.Queue[Any] = asyncio.Queue()

        async def push_audio(self, frame: Any) -> None:
            """A frame of the agent's speech, or the end of what it says."""
            if isinstance(frame, AudioSegmentEnd):
                blocks = await asyncio.to_thread(speaking.finish)
            else:
                blocks = await asyncio.to_thread(speaking.push, bytes(frame.data), frame.sample_rate)
            for picture, sound in blocks:
                image = rtc.VideoFrame(picture.shape[1], picture.shape[0], rtc.VideoBufferType.RGB24, picture.tobytes())
                self._out.put_nowait(image)
                self._out.put_nowait(rtc.AudioFrame(sound, speaking.audio_hz, 1, len(sound) // 2))
            if isinstance(frame, AudioSegmentEnd):
                self._out.put_nowait(AudioSegmentEnd())

        def clear_buffer(self) -> None:
            """Barge-in: nothing of before is shown or heard."""
            speaking.cancel()
            while not self._out.empty():
                self._out.get_nowait()

        def __aiter__(self) -> Any:
            return self._read()

        async def _read(self) -> Any:
            while True:
                yield await self._out.get()

    return Generator()


async def serve(url: str, token: str, speaking: Speaking) -> None:
    """Joins the room and speaks until the agent leaves."""
    from livekit import rtc  # type: ignore[import-not-found]
    from livekit.agents.voice import avatar  # type: ignore[import-not-found]

    room = rtc.Room()
    await room.connect(url, token)
    options = avatar.AvatarOptions(
        video_width=speaking.width,
        video_height=speaking.height,
        video_fps=speaking.fps,
        audio_sample_rate=speaking.audio_hz,
        audio_channels=1,
    )
    receiver = avatar.DataStreamAudioReceiver(room)
    runner = avatar.AvatarRunner(room, audio_recv=receiver, video_gen=make_generator(speaking), options=options)
    await runner.start()
    await runner.wait_for_complete()


def main() -> None:
    """Reads the arguments, makes the portrait speak."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("url", "token"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--image", default=None)
    asked = parser.parse_args()
    asyncio.run(serve(asked.url, asked.token, make_speaking(asked.image)))


if __name__ == "__main__":
    main()
