"""The platform a run uses, settled before JAX starts: which backend, and where compiled programs are kept.

Standard library only at module level: `setup.sh` runs this file to learn the device before anything is
installed, and `configure_platform` has to act before JAX initialises its backends.
"""

import glob
import importlib.util
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

# Any of these means that an NVIDIA driver is loaded; the last one is its form under WSL 2.
NVIDIA_PATHS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/usr/lib/wsl/lib/libcuda.so.1")
GOOGLE_PCI_VENDOR = "0x1ae0"
DEVICE_OF = {"cuda": "cuda12", "tpu": "tpu"}  # JAX platform -> the DEVICE that setup.sh installs it for


def has_nvidia() -> bool:
    """Whether this machine has an NVIDIA GPU with a loaded driver, hidden by CUDA_VISIBLE_DEVICES or not."""
    return any(os.path.exists(path) for path in NVIDIA_PATHS) or _nvidia_smi_lists_gpu()


def has_tpu() -> bool:
    """Whether TPU chips are attached. A VFIO group alone may be any PCI device: it needs Google's vendor."""
    if glob.glob("/dev/accel[0-9]*"):
        return True
    vendors = (Path(path).read_text().strip() for path in glob.glob("/sys/bus/pci/devices/*/vendor"))
    return bool(glob.glob("/dev/vfio/[0-9]*")) and GOOGLE_PCI_VENDOR in vendors


def detect_device() -> str:
    """The JAX this machine wants: `cuda12`, `tpu` or `cpu`."""
    if sys.platform == "linux" and has_nvidia():
        return "cuda12"
    return "tpu" if has_tpu() else "cpu"


def configure_platform() -> str:
    """Choose the backends JAX may start, so that an absent accelerator is one line instead of a stack trace.

    Call it first in a door, before JAX touches a device (importing JAX before is fine). If JAX_PLATFORMS is
    unset, it becomes the accelerators that are both attached and installed, and `cpu`.

    Returns:
      One line to log, empty where attached and installed agree.

    Raises:
      ValueError: JAX_PLATFORMS asks for a platform that this machine or this installation does not have.
    """
    asked = [name for name in os.environ.get("JAX_PLATFORMS", "").lower().split(",") if name]
    for name in asked:
        _require("cuda" if name == "gpu" else name)
    if asked or _has_other_plugin():
        return ""
    installed = {name for name in DEVICE_OF if _is_installed(name)}
    missing = {name: _missing_device(name) for name in DEVICE_OF}
    platforms = ",".join([*(name for name in DEVICE_OF if name in installed and not missing[name]), "cpu"])
    notes = [reason for name, reason in missing.items() if reason and name in installed]
    notes += [_missing_plugin(name) for name, reason in missing.items() if not reason and name not in installed]
    _set_platforms(platforms)
    return f"{', '.join(notes)}: JAX runs on {platforms} (JAX_PLATFORMS overrides)" if notes else ""


def compiler_options(platform: str, program: str) -> dict[str, bool | int]:
    """XLA's options for a program ("block", "prefill", "teacher", "decode") on a platform, as `jax.jit` takes them.

    On GPU products go to cuBLASLt, whose epilogues add bias and GELU in the same kernel, and are not merged, because
    merging concatenates their weights in every call; the VAE's convolutions keep channels last, as they are written.
    """
    if platform != "gpu":
        return {}
    options: dict[str, bool | int] = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}
    return options | ({"xla_gpu_force_conv_nhwc": True} if program == "decode" else {})


def enable_compile_cache(path: str | None = None) -> Path | None:
    """Keep compiled programs on disk, so that the second run starts at once.

    Args:
      path: the folder; None: JAX_COMPILATION_CACHE_DIR or else `~/.cache/avatar_jax/xla`; '': no cache.

    Returns:
      The folder in use, None without a cache (also where the default folder cannot be written).

    Raises:
      ValueError: the folder that was asked for cannot be created or written.
    """
    import jax  # here, not above: configure_platform comes before JAX

    if path == "":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    asked = path or os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    try:
        folder = Path(asked).expanduser() if asked else _default_cache()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # cached programs are code: nobody else's business
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("not writable")
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        if asked:
            raise ValueError(f"compile cache folder {asked!r}: {error}; give another or '' for none") from error
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avatar_jax" / "xla"


def _nvidia_smi_lists_gpu() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        done = subprocess.run([program, "-L"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b"GPU" in done.stdout


def _is_installed(name: str) -> bool:
    if name == "tpu":
        return importlib.util.find_spec("libtpu") is not None
    return any(plugin.startswith("xla_cuda") for plugin in _plugins())


def _plugins() -> list[str]:
    package = importlib.util.find_spec("jax_plugins")
    folders = package.submodule_search_locations if package else None
    return [module.name for module in pkgutil.iter_modules(folders)] if folders else []


def _has_other_plugin() -> bool:
    """Whether an accelerator that this file does not know is installed; JAX then chooses alone."""
    return any(not plugin.startswith("xla_cuda") for plugin in _plugins())


def _missing_device(name: str) -> str:
    """Why the platform has no device, or '' where it has one or is none of ours to judge."""
    if name == "cuda" and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    if name == "cuda" and not has_nvidia():
        return "no NVIDIA device node"
    return "no TPU device node" if name == "tpu" and not has_tpu() else ""


def _missing_plugin(name: str) -> str:
    return f"JAX is installed without {name} (DEVICE={DEVICE_OF[name]} make install)"


def _require(name: str) -> None:
    if name not in DEVICE_OF or _has_other_plugin():
        return
    reason = _missing_device(name) or ("" if _is_installed(name) else _missing_plugin(name))
    if reason:
        raise ValueError(f"JAX_PLATFORMS asks for {name}, but: {reason}; unset it or set JAX_PLATFORMS=cpu")


def _set_platforms(platforms: str) -> None:
    os.environ["JAX_PLATFORMS"] = platforms  # also for child processes
    if "jax" in sys.modules:  # too late for its environment variable, not for its configuration
        sys.modules["jax"].config.update("jax_platforms", platforms)


if __name__ == "__main__":
    sys.stdout.write(detect_device() + "\n")
