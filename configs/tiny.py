"""The embedded tiny avatar: 96 x 96 drawn faces, 25 frames a second, two CPU cores.

Train:  make train           (train.vae, train.latents, train.pretrain in order)
Run:    python -m infer.stream --config=configs/tiny.py --image=face.png --audio=speech.wav --output=talk.mp4
"""

import dataclasses

from avatar_jax.core import config as c


def _mel() -> c.MelConfig:
    return c.MelConfig(
        audio_hz=16000,
        fps=25,
        hop_samples=160,
        window_samples=400,
        fft=512,
        mels=48,
        low_hz=50.0,
        high_hz=7600.0,
        floor=1e-7,
    )


def _dit(audio_width: int) -> c.DitConfig:
    return c.DitConfig(
        width=192,
        heads=3,
        layers=6,
        ffn=768,
        freq=256,
        patch=2,
        latent_channels=16,
        condition_channels=0,
        token_types=True,
        pose=False,
        motion_latents=0,
        text_width=0,
        text_tokens=0,
        image_width=0,
        audio_width=audio_width,
        audio_layers=1,
        audio_tokens=4,
        audio_inject=(0, 2, 4),
        eps=1e-6,
        rope_theta=10000.0,
        layer_loop="unroll",
        compute_dtype="float32",
        attention="auto",
    )


def _stream() -> c.StreamConfig:
    return c.StreamConfig(
        engine="sink",
        steps=5,
        shift=3.0,
        levels="shifted",
        block_latents=3,
        window_blocks=3,
        history="clean",
        history_level=0.0,
        motion=True,
        reference_ahead=(12, 12),
        reference_from=0,
        adapt_blocks=0,
        warm_latents=1,
        audio_history="heard",
        audio_context=5,
        audio_past=0,
        audio_ahead=0,
        seed=0,
    )


def _train() -> c.TrainConfig:
    vae = c.OptimConfig(
        batch=8,
        steps=3700,
        rate=0.02,
        vector_rate=2e-3,
        warmup=100,
        beta2=0.99,
        decay=0.0,
        clip=1.0,
        ema=0.998,
        log_every=50,
        save_every=500,
        minutes=0.0,
    )
    return c.TrainConfig(
        vae=vae,
        vae_image_steps=1500,
        vae_clip_latents=4,
        vae_segment_latents=4,
        vae_kl=1e-4,
        decoder=dataclasses.replace(vae, steps=1000, rate=0.01),
        dit=dataclasses.replace(vae, steps=5000, vector_rate=1e-3),
        dit_blocks=3,
        dit_shift=3.0,
        dit_clean=0.3,
        dit_drop_audio=0.05,
        dit_motion=0.5,
        dit_reference_span=(12, 12),
    )


def get_config() -> c.TrainingConfig:
    """The default run: live-avatar engine, log-mel sound, no text."""
    mel = _mel()
    return c.TrainingConfig(
        name="tiny",
        video=c.VideoConfig(height=96, width=96, fps=25, drawn=True),
        sound=mel,
        text=None,
        vae=c.VaeConfig(
            width=16,
            mult=(1, 3, 6),
            temporal=(True, True),
            res_blocks=1,
            res_frames=1,
            latent_channels=16,
            pixel_patch=2,
        ),
        dit=_dit(mel.features),
        stream=_stream(),
        mesh=c.MeshConfig(streams=1, data=1, stages=1, tensor=1, driver="spmd"),
        data=c.DataConfig(seed=0, clips=2400, video_frames=96, workers=2),
        train=_train(),
    )
