"""The geometry of the published networks (live_avatar.md sections 0 to 4), for the configurations that run them."""

import dataclasses

from avatar_jax.core.config import DitConfig, Umt5Config, VaeConfig, Wav2Vec2Config

WAN_VAE = VaeConfig(
    width=96,
    mult=(1, 2, 4, 4),
    temporal=(False, True, True),
    res_blocks=2,
    res_frames=3,
    latent_channels=16,
    pixel_patch=1,
)
UMT5_XXL = Umt5Config(
    vocabulary=256384,
    width=4096,
    attention_width=4096,
    heads=64,
    layers=24,
    ffn=10240,
    buckets=32,
    reach=128,
    eps=1e-6,
)
WAV2VEC2_XLSR = Wav2Vec2Config(  # wav2vec2-large-xlsr-53
    audio_hz=16000,
    convolutions=((512, 10, 5), (512, 3, 2), (512, 3, 2), (512, 3, 2), (512, 3, 2), (512, 2, 2), (512, 2, 2)),
    width=1024,
    heads=16,
    layers=24,
    ffn=4096,
    position_kernel=128,
    position_groups=16,
    eps=1e-5,
)
T2V_1B3 = DitConfig(
    width=1536,
    heads=12,
    layers=30,
    ffn=8960,
    freq=256,
    patch=2,
    latent_channels=16,
    condition_channels=0,
    token_types=False,
    pose=False,
    motion_latents=0,
    text_width=4096,
    text_tokens=512,
    image_width=0,
    audio_width=0,
    audio_layers=0,
    audio_tokens=0,
    audio_inject=(),
    eps=1e-6,
    rope_theta=10000.0,
    layer_loop="unroll",
    compute_dtype="bfloat16",
    attention="auto",
)
T2V_14B = dataclasses.replace(T2V_1B3, width=5120, heads=40, layers=40, ffn=13824)
S2V_14B = dataclasses.replace(
    T2V_14B,
    token_types=True,
    pose=True,
    motion_latents=19,
    audio_width=1024,
    audio_layers=25,
    audio_tokens=4,
    audio_inject=(0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39),
)
