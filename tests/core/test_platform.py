"""The device is detected from its nodes, and an absent accelerator is one line, never a stack trace."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from avatar_jax.core import platform

ROOT = Path(__file__).parents[2]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine to order: machine(nvidia=, tpu=, installed=), with JAX_PLATFORMS unset and JAX left alone."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)

    def order(*, nvidia: bool = False, tpu: bool = False, installed: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(platform, "has_nvidia", lambda: nvidia)
        monkeypatch.setattr(platform, "has_tpu", lambda: tpu)
        monkeypatch.setattr(platform, "_is_installed", lambda name: name in installed)

    return order


@pytest.mark.parametrize(
    ("nvidia", "tpu", "device"), [(True, False, "cuda12"), (False, True, "tpu"), (False, False, "cpu")]
)
@pytest.mark.skipif(sys.platform != "linux", reason="accelerators are looked for on Linux only")
def test_detected_device(machine, nvidia: bool, tpu: bool, device: str):
    machine(nvidia=nvidia, tpu=tpu)
    assert platform.detect_device() == device


def test_nvidia_is_found_by_any_of_its_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    node = tmp_path / "nvidiactl"
    monkeypatch.setattr(platform, "NVIDIA_PATHS", (str(node),))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not platform.has_nvidia()
    node.touch()
    assert platform.has_nvidia()


@pytest.mark.parametrize(("listing", "found"), [("echo 'GPU 0: NVIDIA'", True), ("exit 9", False)])
def test_nvidia_smi_is_the_last_witness(monkeypatch, tmp_path: Path, listing: str, found: bool):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{listing}\n")
    program.chmod(0o755)
    monkeypatch.setattr(platform, "NVIDIA_PATHS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert platform.has_nvidia() is found


@pytest.mark.parametrize(
    ("ordered", "platforms", "note"),
    [
        ({}, "cpu", ""),
        ({"installed": ("cuda",)}, "cpu", "no NVIDIA device node: JAX runs on cpu"),
        ({"installed": ("tpu",)}, "cpu", "no TPU device node: JAX runs on cpu"),
        ({"nvidia": True, "installed": ("cuda",)}, "cuda,cpu", ""),
        ({"nvidia": True}, "cpu", "JAX is installed without cuda (DEVICE=cuda12 make install)"),
        (
            {"tpu": True, "installed": ("cuda", "tpu")},
            "tpu,cpu",
            "no NVIDIA device node: JAX runs on tpu,cpu",
        ),
    ],
)
def test_unset_platforms_become_what_works(machine, ordered: dict, platforms: str, note: str):
    machine(**ordered)
    assert platform.configure_platform().startswith(note)
    assert os.environ["JAX_PLATFORMS"] == platforms
    assert platform.configure_platform() == "", "the choice stands: a second call has nothing to say"


def test_hidden_gpu_counts_as_none(machine, monkeypatch: pytest.MonkeyPatch):
    machine(nvidia=True, installed=("cuda",))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hides every GPU" in platform.configure_platform()
    assert os.environ["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize("asked", ["cuda", "gpu", "cuda,cpu", "tpu"])
def test_asking_for_an_absent_accelerator_is_refused(machine, monkeypatch, asked: str):
    machine(installed=("cuda", "tpu"))
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    with pytest.raises(ValueError, match=r"JAX_PLATFORMS asks for .*device node; unset it or set") as error:
        platform.configure_platform()
    assert "\n" not in str(error.value)


def test_asking_for_cuda_without_its_plugin_names_the_fix(machine, monkeypatch: pytest.MonkeyPatch):
    machine(nvidia=True)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(ValueError, match="DEVICE=cuda12 make install"):
        platform.configure_platform()


def test_an_explicit_choice_is_left_alone(machine, monkeypatch: pytest.MonkeyPatch):
    machine(nvidia=True, installed=("cuda",))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert platform.configure_platform() == ""
    assert os.environ["JAX_PLATFORMS"] == "cpu"


def test_a_fresh_process_falls_back_without_a_trace():
    """The real thing: JAX in a new process, no JAX_PLATFORMS, whatever this machine has."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    code = (
        "from avatar_jax.core.platform import configure_platform; configure_platform()\n"
        "import jax; assert jax.devices()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_detection_needs_only_the_standard_library():
    """setup.sh runs the file before anything is installed: -S leaves site-packages out."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "avatar_jax/core/platform.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() in ("cpu", "cuda12", "tpu"), done.stderr


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What would be set in jax.config, without touching it."""
    changed: dict = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return changed


def test_the_default_cache_is_private(settings: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "avatar_jax" / "xla"
    assert platform.enable_compile_cache() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert settings["jax_compilation_cache_dir"] == str(folder)
    assert settings["jax_persistent_cache_min_compile_time_secs"] == 0.0


def test_an_empty_path_disables_the_cache(settings: dict):
    assert platform.enable_compile_cache("") is None
    assert settings == {"jax_enable_compilation_cache": False}


def test_an_unusable_cache_folder_is_an_error_only_when_asked_for(settings: dict, monkeypatch, tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="compile cache folder"):
        platform.enable_compile_cache(str(file / "xla"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert platform.enable_compile_cache() is None
    assert not settings
