"""The VAE streams exactly: any split of a clip, encoded or decoded in pieces, equals one shot."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import spec
from avatar_jax.models import vae
from avatar_jax.nn import conv
from configs.tiny import get_config

CFG = dataclasses.replace(get_config().vae, res_frames=3, width=8, mult=(1, 2, 2), latent_channels=4)
FRAMES = 17
ENCODE, ENCODE_FIRST, ENCODE_STEP, DECODE, DECODE_FIRST, DECODE_STEP = (
    jax.jit(each, static_argnames="cfg")
    for each in (vae.encode, vae.encode_first, vae.encode_step, vae.decode, vae.decode_first, vae.decode_step)
)


@pytest.fixture(scope="module")
def weights() -> dict:
    p = spec.init(vae.spec(CFG), jax.random.key(0))
    # attention starts at zero by design; give it something to say
    for side in ("encoder", "decoder"):
        proj = p[side]["middle"]["attention"]["proj"]
        proj["w"] = 0.3 * jax.random.normal(jax.random.key(3), proj["w"].shape)
    p["stats"] = {"mean": jnp.full((4,), 0.3), "std": jnp.full((4,), 1.7)}
    return p


@pytest.fixture(scope="module")
def clip() -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (2, FRAMES, 16, 24, 3), minval=-1.0)


@pytest.mark.parametrize("pieces", [(4, 4, 4, 4), (8, 4, 4), (12, 4), (16,)])
def test_streamed_encode_equals_one_shot(weights, clip, pieces):
    whole = ENCODE(weights, clip, cfg=CFG)
    z, tail = ENCODE_FIRST(weights, clip[:, :1], cfg=CFG)
    out, at = [z], 1
    for frames in pieces:
        z, tail = ENCODE_STEP(weights, tail, clip[:, at : at + frames], cfg=CFG)
        out, at = [*out, z], at + frames
    assert whole.shape == (2, 5, 2, 3, 4) and float(jnp.abs(whole).mean()) > 0.05
    np.testing.assert_allclose(jnp.concatenate(out, 1), whole, atol=1e-5)


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1), (3, 1), (1, 2, 1), (4,)])
def test_streamed_decode_equals_one_shot(weights, pieces):
    z = jax.random.normal(jax.random.key(2), (2, 5, 2, 3, 4))
    whole = DECODE(weights, z, cfg=CFG)
    x, tail = DECODE_FIRST(weights, z[:, :1], cfg=CFG)
    out, at = [x], 1
    for frames in pieces:
        x, tail = DECODE_STEP(weights, tail, z[:, at : at + frames], cfg=CFG)
        out, at = [*out, x], at + frames
    assert whole.shape == (2, FRAMES, 16, 24, 3) and float(jnp.abs(whole).mean()) > 0.05
    np.testing.assert_allclose(jnp.concatenate(out, 1), whole, atol=1e-5)


def test_the_past_never_sees_the_future(weights, clip):
    changed = clip.at[:, 9:].add(0.5)
    before, after = ENCODE(weights, clip, cfg=CFG), ENCODE(weights, changed, cfg=CFG)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert float(jnp.abs(before[:, 3:] - after[:, 3:]).max()) > 1e-3


def test_causal_convolution_equals_the_native_one():
    p = spec.init(conv.spec((3, 3, 3), 5, 7), jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 6, 8, 9, 5))
    layout = ("NDHWC", "DHWIO", "NDHWC")
    padding = ((2, 0), (1, 1), (1, 1))
    native = jax.lax.conv_general_dilated(x, p["w"], (1, 1, 1), padding, dimension_numbers=layout) + p["b"]
    np.testing.assert_allclose(conv.causal(p, x, None)[0], native, atol=1e-4)
    first, history = conv.causal(p, x[:, :1], None)
    rest, _ = conv.causal(p, x[:, 1:], history)
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), native, atol=1e-4)


def test_pixels_fold_and_unfold():
    x = jax.random.normal(jax.random.key(1), (2, 3, 8, 12, 3))
    folded = vae.fold_pixels(x, 2)
    assert folded.shape == (2, 3, 4, 6, 12)
    np.testing.assert_array_equal(vae.unfold_pixels(folded, 2), x)


def test_wan_geometry_has_the_published_size():
    wan = dataclasses.replace(
        CFG,
        width=96,
        mult=(1, 2, 4, 4),
        temporal=(False, True, True),
        res_blocks=2,
        latent_channels=16,
        pixel_patch=1,
    )
    tree = vae.spec(wan)
    weights_alone = {name: part for name, part in tree.items() if name != "stats"}
    assert spec.count(weights_alone) == 126_892_531  # live_avatar.md section 14


def test_an_untrained_vae_holds_its_newest_frame():
    """Time starts as repetition: a still clip is the still image, whatever the weights."""
    p = spec.init(vae.spec(CFG), jax.random.key(0))
    still = jnp.tile(jax.random.uniform(jax.random.key(1), (1, 1, 16, 16, 3)), (1, 9, 1, 1, 1))
    z = ENCODE(p, still, cfg=CFG)
    np.testing.assert_allclose(z[:, 1:], jnp.repeat(z[:, :1], 2, 1), atol=1e-4)
    x = DECODE(p, z, cfg=CFG)
    np.testing.assert_allclose(x, jnp.repeat(x[:, :1], 9, 1), atol=1e-4)


def test_native_convolutions_equal_the_stored_form(weights, clip):
    """The form for GPU and TPU, in which the weights are laid out once at load."""
    native = vae.lay_out(weights, "gpu")
    assert native["decoder"]["conv"]["kernel"].shape == (16, 3, 3, 3, 4)
    assert vae.lay_out(weights, "cpu") is weights
    z = ENCODE(weights, clip, cfg=CFG)
    np.testing.assert_allclose(ENCODE(native, clip, cfg=CFG), z, atol=1e-5)
    np.testing.assert_allclose(DECODE(native, z, cfg=CFG), DECODE(weights, z, cfg=CFG), atol=1e-5)
