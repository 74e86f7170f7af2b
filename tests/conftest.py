"""What every test shares: eight virtual devices, a compile cache, and where golden cases and samples lie."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# All before JAX is imported. The suite proves the same on every machine, so it runs on the CPU unless told
# otherwise. Eight virtual CPU devices share one thread pool: one-device programs keep their speed (measured).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("XDG_CONFIG_HOME", str(ROOT / ".pytest_cache" / "config"))  # certificates made by tests
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax  # noqa: E402, reads the environment above


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs() -> Iterator[None]:
    """Compiled programs hold up to a gigabyte a module: no later module uses them."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden cases: GOLDEN_DIR, or the cases of this repository."""
    folder = Path(os.environ.get("GOLDEN_DIR", ROOT / "tests" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden cases in {folder} (GOLDEN_DIR names another folder)")
    return folder


@pytest.fixture(scope="session")
def samples_dir() -> Path:
    """Real recordings and portraits: AVATAR_SAMPLES, or `shared/samples` beside the repository."""
    folder = Path(os.environ.get("AVATAR_SAMPLES", ROOT.parent / "shared" / "samples"))
    if not folder.is_dir():
        pytest.skip(f"no sample recordings in {folder} (AVATAR_SAMPLES names another folder)")
    return folder
