"""Stage two of Live Avatar, 14B: a student of four steps, its teacher and its fake score on one base.

Data:     python -m train.prepare --config=configs/distill_14b.py --videos=videos --checkpoint=weights/s2v_14b \\
              --workdir=runs/14b/latents
Train:    python -m train.distill --config=configs/distill_14b.py --latents=runs/14b/latents \\
              --teacher=weights/teacher.safetensors --workdir=runs/14b/distill
Devices:  16 TPU v5p, or 32 v6e with --config.train.mesh.tensor=8: it fits, as compiled ahead of time
          (docs/training.md). Never run.

As published (live_avatar.md section 7.1): clips of 84 frames at 720 x 400 pixels' worth, 7 blocks of 3 latents over a
window of 4 blocks, adapters of rank 128 and alpha 64, no motion in this stage, 500 steps of the student; as
Self-Forcing has it (7.3): shift 5, guidance 4, the student once in five steps. Departures: Muon moves the adapters'
matrices, at rates that nobody has tried, AdamW the rest at the published ones; a batch of 4 instead of 128, more with
train.mesh.data.
"""

import dataclasses

from avatar_jax.core import config as c
from configs import live_avatar_14b


def _optim(steps: int, rate: float) -> c.OptimConfig:
    return c.OptimConfig(
        batch=4,
        steps=steps,
        rate=10 * rate,
        vector_rate=rate,
        warmup=0,
        beta2=0.999,
        decay=0.0,
        clip=10.0,
        ema=0.99,
        log_every=10,
        save_every=50,
        minutes=0.0,
    )


def _train() -> c.TrainConfig:
    none = _optim(0, 0.0)  # of stages that this network has behind it
    student, fake = _optim(500, 1e-5), _optim(2500, 2e-6)
    return c.TrainConfig(
        vae=none,
        vae_image_steps=0,
        vae_clip_latents=0,
        vae_segment_latents=0,
        vae_kl=0.0,
        decoder=none,
        dit=none,
        dit_blocks=7,
        dit_shift=5.0,
        dit_clean=0.0,
        dit_drop_audio=0.0,
        dit_motion=0.0,
        dit_reference_span=(4, 30),
        distill=c.DistillConfig(
            student=student,
            fake=fake,
            rank=128,
            alpha=64.0,
            every=5,
            blocks=7,
            guidance=4.0,
            shift=5.0,
            anchored=0.3,
        ),
        mesh=c.TrainMesh(fsdp=4, tensor=4),
    )


def get_config() -> c.TrainingConfig:
    """The streaming run's networks, trained."""
    run = live_avatar_14b.get_config()
    given = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    given |= {
        "name": "distill_14b",
        "video": dataclasses.replace(run.video, area=0),
        "dit": dataclasses.replace(run.dit, layer_loop="fold", remat="layer"),
        "stream": dataclasses.replace(run.stream, motion=False),
    }
    data = c.DataConfig(seed=0, clips=0, video_frames=84, workers=8)
    return c.TrainingConfig(**given, data=data, train=_train())
