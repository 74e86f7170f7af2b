"""Every attention kernel that runs here against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.kernels import reference, splash
from avatar_jax.nn import attention


def _drawn(queries: int, keys: int, size: int = 128) -> tuple[jax.Array, ...]:
    draws = jax.random.split(jax.random.key(queries), 3)
    return tuple(jax.random.normal(key, (2, n, 2, size)) for key, n in zip(draws, (queries, keys, keys), strict=True))


def _counted(keys: int, count: int | None) -> jax.Array | None:
    return None if count is None else (jnp.arange(keys) < count)[None, None, None]


@pytest.mark.parametrize(("queries", "keys", "count"), [(72, 5, None), (130, 300, None), (130, 300, 170), (64, 700, 1)])
def test_splash_equals_the_formula(queries: int, keys: int, count: int | None):
    """Lengths that fill no tile, and keys that do not count."""
    q, k, v = _drawn(queries, keys)
    seen = None if count is None else jnp.int32(count)
    found = splash.attention(q, k, v, count=seen, interpret=True)
    expected = reference.attention(q, k, v, _counted(keys, count))
    assert float(jnp.abs(expected).mean()) > 0.02
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_splash_has_the_gradient_of_the_formula():
    drawn = _drawn(72, 140)

    def loss(attend):
        return jax.jit(jax.grad(lambda q, k, v: jnp.square(attend(q, k, v)).sum(), argnums=(0, 1, 2)))

    found = loss(lambda q, k, v: splash.attention(q, k, v, count=jnp.int32(100), interpret=True))(*drawn)
    expected = loss(lambda q, k, v: reference.attention(q, k, v, _counted(140, 100)))(*drawn)
    for one, other in zip(found, expected, strict=True):
        assert float(jnp.abs(other).mean()) > 1e-3
        np.testing.assert_allclose(one, other, atol=5e-5)


@pytest.mark.parametrize("kernel", ["reference", "xla", "auto"])
def test_a_count_is_a_mask(kernel: str):
    q, k, v = _drawn(7, 12, 8)
    by_count = attention.attend(q, k, v, kernel=kernel, count=jnp.int32(5))
    np.testing.assert_allclose(by_count, reference.attention(q, k, v, _counted(12, 5)), atol=1e-6)
    both = attention.attend(q, k, v, kernel=kernel, count=jnp.int32(5), mask=jnp.arange(12) > 2)
    np.testing.assert_allclose(both, reference.attention(q, k[:, :5], v[:, :5], jnp.arange(5) > 2), atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "half", "masked", "kernel"),
    [
        ("cpu", True, False, "reference"),
        ("gpu", True, False, "cudnn"),
        ("gpu", True, True, "cudnn"),
        ("gpu", False, False, "xla"),
        ("tpu", True, False, "splash"),
        ("tpu", False, False, "splash"),
        ("tpu", True, True, "xla"),
        ("other", True, False, "xla"),
    ],
)
def test_auto(platform: str, half: bool, masked: bool, kernel: str):
    assert attention.resolve("auto", platform, half=half, masked=masked) == kernel


def test_refusals():
    q, k, v = _drawn(8, 8, 64)
    with pytest.raises(ValueError, match="must be 'auto' or one of"):
        attention.attend(q, k, v, kernel="fast")
    with pytest.raises(ValueError, match="multiple of 128"):
        attention.attend(q, k, v, kernel="splash")
    with pytest.raises(ValueError, match="no dense mask"):
        attention.attend(q, k, v, kernel="splash", mask=jnp.ones((1, 1, 8, 8), bool))
