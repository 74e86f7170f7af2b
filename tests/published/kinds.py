"""Every kind of golden case: what runs it, and what its negative control nudges."""

import json
import pathlib
from collections.abc import Callable

from tests.published import dmd, flow, live_avatar, lora, s2v, self_forcing, sound, text, vae, wan
from tests.published.case import Case

# A published weight, or an input where there are no weights.
KINDS: dict[str, tuple[Callable[[Case], dict[str, float]], str]] = {
    "wan_t2v_dit": (wan.text_to_video, "blocks.0.self_attn.k.weight"),
    "wan_i2v_dit": (wan.image_to_video, "blocks.1.ffn.0.weight"),
    "wan_i2v_clip_dit": (wan.image_to_video_clip, "blocks.0.cross_attn.k_img.weight"),
    "wan_s2v_dit": (s2v.speech_to_video, "frame_packer.proj_4x.weight"),
    "liveavatar_causal_block": (live_avatar.causal_block, "blocks.0.self_attn.v.weight"),
    "wan_vae": (vae.autoencoder, "decoder.upsamples.3.time_conv.weight"),
    "audio_features": (sound.features, "wav2vec2.encoder.pos_conv_embed.conv.weight_g"),
    "audio_modules": (sound.modules, "audio_injector.injector_adain_layers.0.linear.weight"),
    "umt5": (text.encoder, "blocks.0.pos_embedding.embedding.weight"),
    "flow_match": (flow.schedules, "x_T"),
    "lora_merge": (lora.merge, "blocks.0.ffn.2.weight"),
    "self_forcing_causal": (self_forcing.causal, "blocks.1.cross_attn.v.weight"),
    "self_forcing_dmd": (dmd.matching, "blocks.0.self_attn.q.weight"),
}


def kind_of(folder: pathlib.Path) -> str:
    """The kind of a case; an unknown one is an error, never a skip."""
    name = json.loads((folder / "case.json").read_text())["case"]
    assert name in KINDS, f"{folder}: no way to run a case of kind {name!r}"
    return name
