"""avatar_jax as a video service in a Pipecat pipeline: behind the voice, in front of the transport.

    pipeline = Pipeline([transport.input(), stt, llm, tts, make_service(make_speaking("face.png")), transport.output()])

Pipecat is needed (`pip install pipecat-ai`), when `make_service` is called and not before.
"""

import asyncio
from typing import Any

from examples.speaking import Speaking


def make_service(speaking: Speaking) -> Any:
    """A frame processor: speech becomes pictures with the speech under them, everything else passes."""
    from pipecat.frames import frames  # type: ignore[import-not-found]
    from pipecat.processors.frame_processor import FrameProcessor  # type: ignore[import-not-found]

    class AvatarService(FrameProcessor):
        """Holds speech until its pictures are drawn."""

        async def process_frame(self, frame: Any, direction: Any) -> None:
            """Takes one frame of the pipeline."""
            await super().process_frame(frame, direction)
            if isinstance(frame, frames.TTSAudioRawFrame):
                await self._show(await asyncio.to_thread(speaking.push, frame.audio, frame.sample_rate))
                return
            if isinstance(frame, frames.InterruptionFrame):
                speaking.cancel()
            if isinstance(frame, frames.TTSStoppedFrame):
                await self._show(await asyncio.to_thread(speaking.finish))
            await self.push_frame(frame, direction)

        async def _show(self, blocks: Any) -> None:
            for picture, sound in blocks:
                size = (picture.shape[1], picture.shape[0])
                await self.push_frame(frames.OutputImageRawFrame(image=picture.tobytes(), size=size, format="RGB"))
                spoken = frames.TTSAudioRawFrame(audio=sound, sample_rate=speaking.audio_hz, num_channels=1)
                await self.push_frame(spoken)

    return AvatarService()
