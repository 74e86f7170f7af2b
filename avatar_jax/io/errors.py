"""The one error of bad input files, and the one way to open them."""

import os
import stat
from typing import BinaryIO


class InputError(ValueError):
    """A file that cannot be used, or an output that cannot be written: one line, the thing and the fix."""


def open_input(path: str | os.PathLike[str], *, kind: str) -> BinaryIO:
    """Opens a regular, non-empty file for reading.

    Only regular files: a pipe or a device could block for ever, and decoders need to seek. Returns a file
    object, so that decoders never see the name: they can neither trust its extension nor resolve it as an
    address.

    Args:
        path: the file.
        kind: what it should hold ("recording", "portrait"), for the message.

    Raises:
        InputError: missing, unreadable, a directory, not a regular file, or empty.
    """
    file = _open(path, kind)
    if os.fstat(file.fileno()).st_size == 0:
        file.close()
        raise InputError(f"{path}: is empty (0 bytes); give a {kind} with content")
    return file


def _open(path: str | os.PathLike[str], kind: str) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path of the {kind}") from error
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read (permission denied); make the {kind} readable") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check the path of the {kind}") from error
    except ValueError as error:  # a NUL or a character that the file system cannot encode
        raise InputError(f"{path!r}: is not a file name ({error})") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a directory; name the {kind} file itself")
    raise InputError(f"{path}: is not a regular file; save the {kind} to a file first")
