"""The files around the code agree: one list of packages, a lock covering it, a set-up fitting the device."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def requirements(name: str) -> list[str]:
    """The requirement lines of a file, without comments."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line]


def package(requirement: str) -> str:
    """The normalised name at the start of a requirement: `ml_collections>=1.1` -> `ml-collections`."""
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return found.group().lower().replace("_", "-")


def set_up(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "setup.sh", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_the_package_depends_on_the_list_with_plain_jax():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [line.replace("jax[cuda12]", "jax") for line in requirements("requirements.txt")]
    assert sorted(project["dependencies"]) == sorted(listed)


def test_every_listed_package_is_locked_exactly():
    locked = requirements("constraints.txt")
    assert all(re.match(r"[\w.-]+==\S+", line) for line in locked)
    listed = requirements("requirements.txt") + requirements("requirements-dev.txt")
    assert {package(line) for line in listed} <= {package(line) for line in locked}


def test_lists_name_no_registry():
    names = ("requirements.txt", "requirements-dev.txt", "requirements-parity.txt", "constraints.txt")
    text = "".join((ROOT / name).read_text() for name in names)
    assert "://" not in text
    assert "--" not in text


@pytest.mark.parametrize(("device", "line"), [("cpu", "jax"), ("cuda12", "jax[cuda12]"), ("tpu", "jax[tpu]")])
def test_set_up_installs_the_jax_of_the_device(device: str, line: str):
    done = set_up("--print", DEVICE=device)
    first, *others = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert first.startswith(f"{line}>=")
    assert others == requirements("requirements.txt")[1:]
    assert re.search(r"about \d+ MB to download", done.stderr)


def test_parity_has_its_own_libraries_pinned():
    libraries = requirements("requirements-parity.txt")
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in libraries)
    assert set(libraries) <= set(set_up("--parity", "--print").stdout.splitlines())
    assert not set(libraries) & set(set_up("--dev", "--print").stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        ((), {"DEVICE": "abacus"}, "DEVICE=abacus is none of cpu, cuda12, tpu"),
        ((), {"PYTHON": "/no/python"}, "PYTHON=/no/python is not a working Python 3.11 to 3.14"),
        (("--what",), {}, "setup.sh [--dev]"),
    ],
)
def test_set_up_refuses_nonsense_in_words(arguments: tuple[str, ...], environment: dict[str, str], reason: str):
    done = set_up(*arguments, **environment)
    assert done.returncode == 2
    assert reason in done.stdout + done.stderr
