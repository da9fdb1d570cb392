"""Look at a file's first bytes before believing its name: missing, not fetched, an HTML page, empty."""

from __future__ import annotations

from pathlib import Path

from tractode.errors import InputDataError, InputOutputError, MissingInputError

_HTML = (b"<!doctype html", b"<html", b"<head", b"<?xml")


def check_content(path: Path) -> None:
    """Raise unless ``path`` is a regular, non-empty file that holds data and not a stand-in for it.

    Raises
    ------
    MissingInputError
        No such file, a dangling link, a git-lfs or git-annex pointer, or a web page saved under the name of the data.
    InputDataError
        The file is empty, or not a file.
    """
    _check_present(path)
    first = first_bytes(path, 1024)
    if not first:
        raise InputDataError(
            "the file is empty (0 bytes)",
            id="E-FILE-EMPTY",
            path=path,
            needed="the file's content",
            fix="copy or convert the file again",
        )
    if first.startswith(b"version https://git-lfs.github.com/spec"):
        raise MissingInputError(
            "this is a git-lfs pointer, not the data",
            id="E-FILE-LFS",
            path=path,
            needed="the file's content",
            fix=f"git lfs pull --include '{path.name}'",
        )
    if first.startswith(b"/annex/objects/"):
        raise MissingInputError(
            "this is a git-annex pointer, not the data",
            id="E-FILE-ANNEX",
            path=path,
            needed="the file's content",
            fix=f"datalad get '{path}'",
        )
    if first.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_HTML):
        raise MissingInputError(
            "this is an HTML or XML page saved under the name of the data",
            id="E-FILE-HTML",
            path=path,
            needed="the file's content",
            fix="download the file again; the server answered with a page",
        )


def first_bytes(path: Path, count: int) -> bytes:
    """The first ``count`` bytes; a broken disk or a forbidden file in our words."""
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except PermissionError as error:
        raise MissingInputError(
            "the file may not be read (permission denied)",
            id="E-FILE-PERMISSION",
            path=path,
            needed="read permission",
            fix=f"chmod +r '{path}'",
        ) from error
    except OSError as error:
        raise broken(error, path) from error


def broken(error: OSError, path: Path) -> InputOutputError:
    """A failing read as an error of ours."""
    return InputOutputError(
        f"reading failed ({error.strerror})",
        id="E-IO-READ",
        path=path,
        needed="a disk that can be read",
        fix="check the disk or the network mount and run the same command again",
    )


def _check_present(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise MissingInputError(
            "the content was not fetched (the link points at nothing)",
            id="E-FILE-ANNEX",
            path=path,
            needed="the file's content",
            fix=f"datalad get '{path}'",
        )
    if not path.exists():
        raise MissingInputError(
            "the file does not exist",
            id="E-FILE-MISSING",
            path=path,
            needed="the file",
            fix="add the file under this name",
        )
    if not path.is_file():
        # A FIFO would block for ever, a folder would fail with an error of the operating system.
        raise InputDataError(
            "this is not a regular file",
            id="E-FILE-KIND",
            path=path,
            needed="a regular file",
            fix="put the file itself at this path",
        )
