"""Devices to compile for that are not attached: their descriptions, their compilers, and what stands in for them."""

import contextlib
import dataclasses
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from avatar_jax.io.errors import InputError
from infer import door

FOLDER = Path(".targets")  # where `make compile` installs the compilers, one folder a platform
CUDNN = 91200  # the version that the target descriptions name


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device."""

    name: str
    platform: str  # "gpu", "tpu" or "cpu"
    memory_gb: float  # of one device, 10^9 bytes
    topologies: dict[int, str] = dataclasses.field(default_factory=dict)  # by number of devices

    def exists(self, count: int) -> bool:
        """Whether so many of them can be described together."""
        return not self.topologies or count in self.topologies


COUNTS = (1, 2, 4, 8)  # devices that a program may be split over: 40 heads divide by them
FLAT = {1: "2x2", 2: "2x2", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8"}
DEEP = {1: "2x2x1", 2: "2x2x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4"}
TARGETS = {
    target.name: target
    for target in (
        Target("h200", "gpu", 141.0),
        Target("h100", "gpu", 80.0),
        Target("v5p", "tpu", 95.0, {n: f"v5p:{shape}" for n, shape in DEEP.items()}),
        Target("v6e", "tpu", 32.0, {n: f"v6e:{shape}" for n, shape in FLAT.items()}),
        Target("v5e", "tpu", 16.0, {n: f"v5e:{shape}" for n, shape in FLAT.items()}),
        Target("cpu", "cpu", 16.0),
    )
}


def packages(target: Target) -> list[str]:
    """The compiler's packages, of the versions that fit the installed JAX."""
    version = importlib.metadata.version("jax")
    if target.platform == "gpu":
        return [f"jax-cuda13-pjrt=={version}", f"jax-cuda13-plugin=={version}"]
    if target.platform == "tpu":
        wanted = importlib.metadata.requires("jax") or []
        return [line.partition(";")[0].strip() for line in wanted if line.startswith("libtpu")][:1]
    return []


def missing(target: Target) -> list[str]:
    """What pip must install, `--target` folder included; empty if `FOLDER` holds the compiler already."""
    folder = FOLDER / target.platform
    wanted = [name.replace("-", "_").replace("==", "-").removesuffix("*") for name in packages(target)]
    if all(any(folder.glob(f"{name}*.dist-info")) for name in wanted):
        return []
    return ["--upgrade", "--target", str(folder), *packages(target)]


def prepare(target: Target, plugins: str | None) -> None:
    """Makes the compiler importable, before JAX looks for its backends. This process's own devices are the CPU's."""
    import jax

    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")  # read from the environment when JAX was imported
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no TPU, so no metadata server to ask
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    folder = Path(plugins) if plugins else FOLDER / target.platform
    if plugins and not folder.is_dir():
        raise InputError(f"--plugins={plugins}: no such folder; {_advice(target, plugins)}")
    if folder.is_dir():  # JAX finds compilers among the importable packages
        sys.path.insert(0, str(folder.resolve()))
        importlib.invalidate_caches()


def _advice(target: Target, folder: str) -> str:
    names = " ".join(f"'{name}'" for name in packages(target))
    return f"pip install --no-deps --target {folder} {names}, or make compile TARGET={target.name}"


def devices(target: Target, count: int) -> list[Any]:
    """The devices to compile for. Raises InputError if their compiler is not installed."""
    import jax
    from jax.experimental import topologies

    if target.platform == "cpu":
        return jax.devices("cpu")[:count]
    try:
        if target.platform == "gpu":
            description = door.embedded(f"targets/{target.name}.txtpb").read_text()
            topology = topologies.get_topology_desc(platform="cuda", target_config=description, topology=f"1x1x{count}")
        else:
            topology = topologies.get_topology_desc(platform="tpu", topology_name=target.topologies[count])
    except (RuntimeError, NotImplementedError) as error:
        if "lockfile" in str(error):
            raise InputError(f"another process is compiling for {target.name}; wait until it ends") from error
        advice = _advice(target, str(FOLDER / target.platform))
        raise InputError(f"no compiler for {target.name} here ({error}): {advice}") from error
    return list(topology.devices[:count])


@contextlib.contextmanager
def present(target: Target) -> Iterator[None]:
    """Answers JAX's questions about an absent GPU as the target would: without it cuDNN attention is not lowered."""
    if target.platform != "gpu":
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo as probes

    with (
        mock.patch.object(probes, "check_cudnn_version", lambda: CUDNN),
        mock.patch.object(probes, "check_compute_capability", lambda capability: float(capability) <= 9.0),
        mock.patch.object(probes, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0"),
    ):
        yield


if __name__ == "__main__":
    sys.stdout.write(" ".join(missing(TARGETS[sys.argv[1]])) + "\n" if sys.argv[1:] else "")
