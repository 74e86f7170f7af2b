"""Live Avatar, 14B: any portrait at 720 x 400 pixels' worth, 25 frames a second, four steps a block.

Weights:  python -m infer.convert --source=Wan2.2-S2V-14B --lora=liveavatar.safetensors --output=weights/live_avatar
Run:      python -m infer.stream --config=configs/live_avatar_14b.py --checkpoint=weights/live_avatar \\
              --image=face.png --audio=speech.wav --prompt="She tells a story" --output=talk.mp4
Devices:  one with 80 GB or more, or four with --config.mesh.stages=4 (docs/meshes.md); never run here at full size,
          where there is no such device.

Published behaviour (live_avatar.md sections 5.2, 6): the released noise levels, one memory a step at its own level, a
reference that rolls 4 to 30 latents ahead, and is replaced by the stream's first latent after the first clip of four
blocks. Departures: the first three frames are shown, so picture and sound stay together; sound is heard in a window
that moves with the stream; no black bars.
"""

from avatar_jax.core import config as c
from avatar_jax.core import published

PUBLISHED_AREA = 720 * 400  # of which the search for multiples of 64 makes 704 x 384 for 16:9


def _stream() -> c.StreamConfig:
    return c.StreamConfig(
        engine="sink",
        steps=4,
        shift=3.0,
        levels="published",
        block_latents=3,
        window_blocks=4,
        history="timestep",
        history_level=0.0,
        motion=True,
        reference_ahead=(4, 30),
        reference_from=30,
        adapt_blocks=4,
        warm_latents=7,
        audio_history="repeated",
        audio_context=5,
        audio_past=100,
        audio_ahead=4,
        seed=420,
    )


def get_config() -> c.Config:
    """The published streaming run."""
    return c.Config(
        name="live_avatar_14b",
        video=c.VideoConfig(height=704, width=384, fps=25, area=PUBLISHED_AREA),
        vae=published.WAN_VAE,
        dit=published.S2V_14B,
        sound=published.WAV2VEC2_XLSR,
        text=published.UMT5_XXL,
        stream=_stream(),
        mesh=c.MeshConfig(streams=1, data=1, stages=1, tensor=1, driver="spmd"),
    )
