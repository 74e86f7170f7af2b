"""Sound: wav2vec2 features and their bucketing, the causal audio encoder, the injector."""

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import spec as specs
from avatar_jax.core import tree
from avatar_jax.core.config import DitConfig
from avatar_jax.io.convert import table, wan
from avatar_jax.io.convert import wav2vec as convert
from avatar_jax.models import audio, wav2vec
from avatar_jax.nn import attention, dense, norm
from tests.published.case import Case, Outputs
from tests.published.s2v import CONTEXT, voice_of
from tests.published.wan import sound_only


def modules(case: Case) -> dict[str, float]:
    """The causal audio encoder and one injector, alone."""
    about, io = case.about, case.tensors()
    cfg = sound_only(about["config"])
    full = wan.table(cfg)
    spec = {"audio": {"encoder": audio.encoder_spec(cfg), "injectors": audio.injector_spec(cfg)}}
    sources = {path: full[path] for path in tree.flatten(spec)}
    p = table.load(sources, spec, case.published(), origin=str(case.folder))
    specs.check(spec, p)
    whole = voice_of(p, io["audio"], cfg, CONTEXT)
    sound = np.moveaxis(io["audio"], -1, 1)
    padded = jnp.asarray(np.concatenate([np.repeat(sound[:, :1], CONTEXT, 1), sound], 1))
    everything = audio.encode(p["audio"]["encoder"], padded, context=0, cfg=cfg)
    odd = audio.encode(p["audio"]["encoder"], jnp.asarray(np.moveaxis(io["audio_odd"], -1, 1)), context=0, cfg=cfg)
    hidden = jnp.asarray(io["hidden"]).reshape(1, about["frames"], about["tokens_per_frame"], -1)
    injector = jax.tree.map(lambda leaf: leaf[0], p["audio"]["injectors"])
    after = audio.inject(injector, hidden, (audio.hear(injector, whole, cfg=cfg),), cfg=cfg).reshape(io["hidden"].shape)
    shift, scale = jnp.split(dense.apply(injector["adain"], jax.nn.silu(whole.whole))[:, :, None], 2, -1)
    outputs: Outputs = {
        "local": whole.local,
        "global": whole.whole[:, :, None],
        "local_all": everything.local,
        "global_all": everything.whole[:, :, None],
        "local_odd": odd.local,
        "global_odd": odd.whole[:, :, None],
        "hidden_out": after,
        "residual": after - io["hidden"],
        "residual_noadain": _plain(injector["attention"], hidden, whole, cfg).reshape(io["hidden"].shape),
        "adain_out": (norm.layer_norm(hidden, norm.TORCH_EPS) * (1.0 + scale) + shift)[0],
    }
    return case.worst(outputs)


def _plain(p: dict, hidden: jax.Array, voice: audio.Voice, cfg: DitConfig) -> jax.Array:
    """The injector's attention under a plain norm, for comparison: no published model runs it so."""
    h = norm.layer_norm(hidden, cfg.eps)[0]
    memory = attention.keys_values(p, voice.local[0], heads=cfg.heads, eps=cfg.eps)
    return attention.cross(p, h, [memory], heads=cfg.heads, eps=cfg.eps, kernel="reference")


def features(case: Case) -> dict[str, float]:
    """From the waveform to the transformer's input, at both frame rates."""
    io, params, published = case.tensors(), case.about["params"], case.published()
    cfg = convert.config(case.about["config"])
    p = table.load(convert.table(cfg, published), wav2vec.spec(cfg), published, origin=str(case.folder))
    values = jnp.asarray(wav2vec.normalise(io["waveform"]))[None]
    states = np.asarray(wav2vec.apply(p, values, cfg=cfg))[:, 0]
    assert states.shape[1] == wav2vec.steps_of(values.shape[1], cfg)
    between = wav2vec.resample(states)
    outputs: Outputs = {
        "input_values": values,
        "conv_features": wav2vec.convolve(p, values, cfg=cfg).transpose(0, 2, 1),
        "hidden_states": states,
        "logits": (states[-1] @ published.read("lm_head.weight").T + published.read("lm_head.bias"))[None],
        "feat_30fps": between,
        "feat_30fps_lastlayer": between[-1:],
    }
    for name, count, fps in (("25fps", "num_repeat", params["fps"]), ("16fps", "num_repeat_16fps", 16)):
        clip = params["batch_frames"]
        frames = wav2vec.clip_frames(states.shape[1], fps=fps, clip=clip)
        indices = wav2vec.frame_indices(0, frames, fps=fps)
        outputs[f"audio_emb_{name}"] = wav2vec.read(states, wav2vec.places(indices, states.shape[1])).transpose(
            0, 2, 1
        )[None]
        outputs[count] = np.array([frames // clip])
    return case.worst(outputs)
