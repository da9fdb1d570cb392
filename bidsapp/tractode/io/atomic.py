"""Writing that never leaves half a file under a final name: temporary file → fsync → rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tractode.errors import InputOutputError, OutputError

TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """A temporary path beside ``final``, with its extension, renamed onto it when the block ends without an error.

    Raises
    ------
    OutputError
        The folder cannot be written.
    InputOutputError
        The disk is full or broken; the temporary file is gone.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=final.parent))
    except OSError as error:
        raise _translated(error, final) from error
    # The same name in a temporary folder: writers choose formats by the whole extension.
    temporary = folder / final.name
    try:
        yield temporary
        _sync(temporary)
        # mkdtemp makes 0700 folders and the file inherits the umask; nothing to widen here.
        os.replace(temporary, final)
        _sync(final.parent)
    except OSError as error:
        raise _translated(error, final) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(final: Path, text: str) -> None:
    """A whole text file, UTF-8, atomically."""
    with atomic_path(final) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translated(error: OSError, final: Path) -> InputOutputError | OutputError:
    if error.errno in (13, 30, 1):  # EACCES, EROFS, EPERM
        return OutputError(
            f"The folder cannot be written ({error.strerror})",
            id="E-OUT-READONLY",
            path=final,
            needed="a writable output folder",
            fix="choose another output folder or change its permissions",
        )
    return InputOutputError(
        f"Writing failed ({error.strerror})",
        id="E-IO-WRITE",
        path=final,
        needed="enough free space on a working disk",
        fix="free space (see --dry-run for the estimate) and run the same command again; it resumes",
    )
