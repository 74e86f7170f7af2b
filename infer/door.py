"""How a main starts and ends: flags, one clear line for bad input, exit codes.

0: done. 1: a bug, with its traceback. 2: bad input, one line on stderr. 3: another process of the run is lost, one line
on stderr. 130: Ctrl-C, one line on stderr.
"""

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from logging import ERROR
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from avatar_jax.core import fields, platform

BAD_INPUT, LOST, INTERRUPTED = 2, 3, 130
OVERRIDE = re.compile(r"--?(?:no)?(config\.[^=]+)")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C with something worth keeping; the message says what."""


def say(line: str) -> None:
    """One line on stderr, whatever the message holds."""
    sys.stderr.write(" ".join(line.split()) + "\n")


def load_config(path: str) -> Any:
    """What a config module's `get_config` returns. Raises ValueError if it cannot be loaded."""
    try:
        spec = importlib.util.spec_from_file_location("_config", path)
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config()
    except FileNotFoundError as error:
        raise ValueError(f"--config={path}: no such file; configurations are in configs/") from error
    except Exception as error:  # it is the user's program: anything can go wrong in it
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"--config={path}: not a configuration ({reason}); see configs/tiny.py") from error


def check_overrides(argv: Sequence[str], cfg: Any) -> None:
    """Refuses `--config.x.y` flags that name no field of `cfg`: ValueError with the nearest names."""
    known = fields.field_names(cfg)
    overrides = [match.group(1) for match in map(OVERRIDE.match, argv) if match]
    for field in overrides:
        if field not in known:
            near = " or ".join("--" + name for name in fields.nearest_fields(cfg, field))
            advice = f"did you mean {near}?" if near else "see configs/tiny.py"
            raise ValueError(f"--{field}: no such field; {advice}")


def define_config(default: str) -> flags.FlagHolder:
    """Defines `--config` and its overrides, within the `define` of `run`. Raises ValueError if it is bad.

    ml_collections reads `sys.argv` while it defines the flag, and raises there: hence not at import.
    """
    named = [re.match(r"--?config(?:=(.*))?$", argument) for argument in sys.argv]
    paths = [match.group(1) or "".join(sys.argv[i + 1 : i + 2]) for i, match in enumerate(named) if match]
    check_overrides(sys.argv[1:], load_config(paths[-1] if paths else default))
    return config_flags.DEFINE_config_file("config", default, "The run's configuration module.")


def _worth_saying(record: Any) -> bool:
    """Everything but Orbax's account of every step of every save; --verbosity=1 shows that too."""
    return logging.get_verbosity() > logging.INFO or record.levelno >= ERROR or "/orbax/" not in record.pathname


def _parse(argv: Sequence[str], define: Callable[[], None]) -> list[str]:
    try:
        define()
        left = flags.FLAGS(argv)
        if left[1:]:
            raise ValueError(f"{left[1]}: unexpected argument; options are --name=value (see --help)")
        return left
    except (flags.Error, ValueError) as error:
        say(str(error))
        sys.exit(BAD_INPUT)


def _guard(main: Callable[[], None]) -> int:
    try:
        main()
    except ValueError as error:
        logging.debug("bad input", exc_info=True)  # --verbosity=1 shows where it was found
        say(str(error))
        return BAD_INPUT
    except KeyboardInterrupt as error:
        say(str(error) or "interrupted")
        return INTERRUPTED
    return 0


def run(main: Callable[[], None], define: Callable[[], None]) -> None:
    """Runs a main under absl and exits.

    Args:
        main: the program. ValueError (InputError, an impossible configuration) is bad input.
        define: defines the flags.
    """
    logging.get_absl_logger().addFilter(_worth_saying)
    app.run(lambda _: _guard(main), flags_parser=lambda argv: _parse(argv, define))


def start_jax(cache: str | None = None) -> None:
    """Settles which devices JAX uses and where it keeps compiled programs, before it touches one.

    Raises ValueError if the platform or the cache folder that was asked for is not to be had.
    """
    note = platform.configure_platform()
    if note:
        say(note)
    platform.enable_compile_cache(cache)


def embedded(name: str) -> Path:
    """A file or folder that comes with the package."""
    import avatar_jax

    return Path(avatar_jax.__file__).parent / "assets" / name
