"""8-bit weights: how far a number may move, what a product must be, and a transformer that runs on them."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from avatar_jax.core import quant, tree
from avatar_jax.core.spec import Leaf, init
from avatar_jax.models import dit
from avatar_jax.nn import dense, kv
from tests.conftest import ROOT
from tests.published.case import Case
from tests.published.wan import call, network

MATRICES = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=3, max_side=5),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


def _meant(q: quant.QTensor) -> np.ndarray:
    """The matrix that a numpy QTensor stands for, float64."""
    scale = q.scale[..., None, None] if q.dtype == ml_dtypes.float8_e4m3fn else q.scale[..., None]
    return np.swapaxes(q.value.astype(np.float64) * scale, -1, -2)


@settings(max_examples=200, deadline=None)
@given(w=MATRICES)
def test_fp8_moves_a_weight_by_its_format_at_most(w: np.ndarray):
    """Three bits of mantissa: 2^-4 of the number, or half the smallest subnormal, 2^-10, in units of the scale."""
    q = quant.quantise(w, quant.FP8)
    scale = q.scale[..., None, None]
    wanted = np.minimum(448.0 / np.maximum(np.abs(w).max((-2, -1)), 1e-12), 448.0)
    np.testing.assert_allclose(q.scale, 1.0 / wanted, rtol=1e-6)
    bound = np.maximum(np.abs(w) * 2.0**-4, scale * 2.0**-10)
    assert (np.abs(_meant(q) - w) <= bound * (1 + 1e-5)).all()


@settings(max_examples=200, deadline=None)
@given(w=MATRICES)
def test_int8_moves_a_weight_by_half_a_step_at_most(w: np.ndarray):
    q = quant.quantise(w, quant.INT8)
    step = np.abs(w).max(-2, keepdims=True) / 127.0  # of each output channel
    assert (np.abs(_meant(q) - w) <= step * (0.5 + 1e-4) + 1e-13).all()
    assert np.abs(q.value.astype(int)).max() <= 127


def _emulated(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """live_avatar.md section 6.9 in float64: y = (qx qw) / (sx sw)."""
    sides = []
    for side in (x, w):
        scale = min(448.0 / max(float(np.abs(side).max()), 1e-12), 448.0)
        scaled = np.clip(side.astype(np.float32) * np.float32(scale), -448.0, 448.0)
        sides.append((scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float64), scale))
    (qx, sx), (qw, sw) = sides
    return qx @ qw / (sx * sw)


@pytest.mark.parametrize("spread", [0.02, 1.0, 700.0])
def test_a_layer_is_the_published_formula(spread: float):
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(2, 7, 33)), spread * rng.normal(size=(33, 19)), rng.normal(size=19)
    x, w, b = (array.astype(np.float32) for array in (x, w, b))
    q = {"w": quant.quantise(w, quant.FP8), "b": b}
    expected = _emulated(x, w) + b
    largest = np.abs(expected).max()
    assert np.abs(np.asarray(dense.apply(q, jnp.asarray(x))) - expected).max() <= 1e-6 * largest
    rounded = np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32))
    found = np.asarray(dense.apply(q, jnp.asarray(x).astype(jnp.bfloat16)).astype(jnp.float32))
    assert (
        np.abs(found - (_emulated(rounded, w) + b)).max() <= 2.0**-6 * largest
    )  # scales, sides and result in bfloat16


def test_int8_products_are_exact_sums():
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(5, 64)).astype(np.float32), rng.normal(size=(64, 9)).astype(np.float32)
    q = quant.quantise(w, quant.INT8)
    step = np.abs(x).max(-1, keepdims=True) / 127.0
    expected = np.round(x / step).astype(np.int64) @ q.value.T.astype(np.int64) * step * q.scale
    np.testing.assert_allclose(dense.apply({"w": q}, jnp.asarray(x)), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", quant.KINDS)
def test_layers_slice_and_stack_like_arrays(kind: str):
    stacked = quant.quantise(np.random.default_rng(2).normal(size=(3, 8, 6)).astype(np.float32), kind)
    x = jnp.ones((2, 8))
    scanned = jax.lax.scan(lambda carry, w: (carry, dense.apply({"w": w}, x)), 0, jax.tree.map(jnp.asarray, stacked))[1]
    for layer, one in enumerate(kv.unstack(stacked, 3)):
        assert one.shape == (8, 6)
        np.testing.assert_array_equal(dense.apply({"w": one}, x), scanned[layer])
    again = kv.stack(kv.unstack(stacked, 3))
    np.testing.assert_array_equal(again.value, stacked.value)
    np.testing.assert_array_equal(again.scale, stacked.scale)


def test_arrays_of_numpy_and_jax_become_the_same_bits():
    w = np.random.default_rng(3).normal(size=(2, 40, 30)).astype(np.float32)
    for kind in quant.KINDS:
        ours, theirs = quant.quantise(w, kind), quant.quantise(jnp.asarray(w), kind)
        assert isinstance(ours.value, np.ndarray) and isinstance(theirs.value, jax.Array)
        np.testing.assert_array_equal(ours.value, theirs.value)
        np.testing.assert_allclose(ours.scale, theirs.scale, rtol=2e-7)
    with pytest.raises(ValueError, match="quantise='int4': must be one of"):
        quant.quantise(w, "int4")


# Mean square error of a rounded factor: fp8 has half steps of 2^-4 of the binade, over sqrt(3), times 0.74 for numbers
# spread over the binade; int8 has steps of peak / 127, over sqrt(12), with a peak of three times the RMS. Both factors
# of a product are rounded, sums of random signs keep the ratio. Each of three blocks renews the stream at most once,
# through two layers in a row: sqrt(6) of a product's error.
FACTOR = {quant.FP8: 2**-4 / 3**0.5 * 0.74, quant.INT8: 3 / 127 / 12**0.5}


@pytest.mark.parametrize(("kind", "layer_loop"), [(quant.FP8, "scan"), (quant.FP8, "unroll"), (quant.INT8, "scan")])
def test_a_transformer_runs_on_8_bits(kind: str, layer_loop: str):
    case = Case(ROOT / "tests" / "golden" / "wan_i2v_clip_dit")
    p, cfg = network(case, layer_loop=layer_loop)
    io = case.tensors()
    q = dit.lay_out(quant.quantise_tree(dit.gather(p), kind), cfg)
    found = call(q, io["x"], io["t"], io["context"], cfg, known=io["y"], image=io["clip_fea"])
    error = float(np.sqrt(np.square(found - io["out"]).mean() / np.square(io["out"]).mean()))
    assert 1e-3 < error <= (2 * 6) ** 0.5 * FACTOR[kind], f"{kind}: {error:.4f} of the RMS"


def test_the_published_rule():
    """Section 6.9: attention, feed-forward, injectors with their adain; embeddings, head and final layer not."""
    spec = {
        "blocks": {"self": {"q": dense.spec(4, 4, (None, None))}, "ffn": {"in": dense.spec(4, 8, (None, None))}},
        "audio": {
            "injectors": {"adain": dense.spec(4, 8, (None, None))},
            "encoder": {"final": dense.spec(4, 4, (None, None))},
        },
        "text": {"in": dense.spec(4, 4, (None, None))},
        "head": {"out": dense.spec(4, 4, (None, None))},
        "time": {"projection": dense.spec(4, 4, (None, None))},
        "type": Leaf((3, 4), (None, None)),
    }
    flat = tree.flatten(quant.quantise_tree(init(spec, jax.random.key(0)), quant.FP8))
    assert {path for path, leaf in flat.items() if isinstance(leaf, quant.QTensor)} == {
        "blocks/self/q/w",
        "blocks/ffn/in/w",
        "audio/injectors/adain/w",
    }
