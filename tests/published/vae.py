"""The Wan 2.1 VAE: encode, decode, and both in a stream."""

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.io.convert import wan_vae
from avatar_jax.models import vae
from tests.published.case import Case, Outputs, frames_first, frames_last

ENCODE_FIRST, ENCODE_STEP, DECODE_FIRST, DECODE_STEP = (
    jax.jit(each, static_argnames="cfg")
    for each in (vae.encode_first, vae.encode_step, vae.decode_first, vae.decode_step)
)


def autoencoder(case: Case) -> dict[str, float]:
    """Every tensor of the case, streams cut where the case cuts them."""
    io = case.tensors()
    p, cfg = wan_vae.load(case.published(), origin=str(case.folder))
    encode = jax.jit(lambda x: vae.encode(p, x, cfg=cfg))
    decode = jax.jit(lambda z: vae.decode(p, z, cfg=cfg))
    clip = frames_last(io["enc17.video"])
    outputs: Outputs = {
        "mean": p["stats"]["mean"],
        "std": p["stats"]["std"],
        "enc17.latent": frames_first(encode(clip))[0],
        "enc1.latent": frames_first(encode(clip[:, :1]))[0],
        "enc5rep.latent": frames_first(encode(np.repeat(clip[:, :1], 5, 1)))[0],
        "dec.video": frames_first(decode(frames_last(io["dec.z"])))[0],
    }
    outputs |= _streamed_encode(p, clip, io, cfg) | _streamed_decode(p, case, cfg)
    return case.worst(outputs)


def _streamed_encode(p: dict, clip: np.ndarray, io: dict, cfg) -> Outputs:
    first, tail = ENCODE_FIRST(p, jnp.asarray(clip[:, :1]), cfg=cfg)
    latents, at, outputs = [first], 1, {}
    for chunk in range(2):
        frames = 4 * (io[f"stream_enc.chunk{chunk}"].shape[1] - len(latents))
        z, tail = ENCODE_STEP(p, tail, jnp.asarray(clip[:, at : at + frames]), cfg=cfg)
        outputs[f"stream_enc.chunk{chunk}"] = frames_first(jnp.concatenate([*latents, z], 1))[0]
        latents, at = [], at + frames
    return outputs


def _streamed_decode(p: dict, case: Case, cfg) -> Outputs:
    z, outputs, at, tail = frames_last(case.tensors()["stream.z"]), {}, 0, None
    for chunk, length in enumerate(case.about["stream_chunks"]):
        piece, at = jnp.asarray(z[:, at : at + length]), at + length
        if tail is None:
            opened, tail = DECODE_FIRST(p, piece[:, :1], cfg=cfg)
            rest, tail = DECODE_STEP(p, tail, piece[:, 1:], cfg=cfg)
            frames = jnp.concatenate([opened, rest], 1)
        else:
            frames, tail = DECODE_STEP(p, tail, piece, cfg=cfg)
        outputs[f"stream.chunk{chunk}"] = frames_first(frames)[0]
    return outputs
