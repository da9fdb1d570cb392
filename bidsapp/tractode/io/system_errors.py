"""What the operating system says went wrong, in our words: a full or broken disk, no memory, no permission."""

from __future__ import annotations

import errno

from tractode.errors import InputOutputError, OutOfMemoryError, OutputError, TractodeError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENXIO, errno.ESTALE)


def translated(error: OSError) -> TractodeError | None:
    """The error a user should meet, or ``None`` where the system's error can only be a mistake of ours."""
    where = error.filename or None
    if error.errno in _DISK:
        return InputOutputError(
            f"Reading or writing failed ({error.strerror})",
            id="E-IO",
            path=where,
            needed="free space on a working disk",
            fix="free space or check the disk, and run the same command again; it resumes",
        )
    if error.errno == errno.ENOMEM:
        return OutOfMemoryError(
            f"Memory ran out ({error.strerror})",
            id="E-MEM-MAIN",
            fix="give more memory, or fewer processes with --nprocs",
        )
    if error.errno == errno.EROFS:
        return OutputError(
            f"The file cannot be written ({error.strerror})",
            id="E-OUT-READONLY",
            path=where,
            needed="output and work folders that can be written",
            fix="give others",
        )
    return None
