"""Which folders a run may use: the output outside the input, and a private work folder that is ours to delete."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from tractode import __version__
from tractode.errors import InvalidDatasetError, MissingInputError, OutputError
from tractode.settings import Settings

MARKER = ".tractode-work"


def check_input(bids_dir: Path) -> None:
    """The input is a folder that can be read.

    Raises
    ------
    MissingInputError
        It does not exist or may not be read.
    InvalidDatasetError
        It is not a folder.
    """
    if not bids_dir.exists():
        raise MissingInputError(
            "The input folder does not exist",
            id="E-BIDS-MISSING",
            path=bids_dir,
            needed="the root folder of a BIDS dataset",
            fix="check the first argument (in a container: that the folder is mounted)",
        )
    if not bids_dir.is_dir():
        raise InvalidDatasetError(
            "The input is not a folder", id="E-BIDS-FOLDER", path=bids_dir, needed="the root folder of a BIDS dataset"
        )
    if not os.access(bids_dir, os.R_OK | os.X_OK):
        raise MissingInputError(
            "The input folder cannot be read", id="E-BIDS-PERMISSION", path=bids_dir, needed="permission to read it"
        )


def check_apart(settings: Settings) -> None:
    """Output and work folders lie outside the input; names, ``..`` and links are resolved first.

    Raises
    ------
    OutputError
        One of them is the input or lies inside it, or both are one folder.
    """
    bids_dir, output_dir, work_dir = (
        path.resolve() for path in (settings.bids_dir, settings.output_dir, settings.work_dir)
    )
    for what, folder, given in (("output", output_dir, settings.output_dir), ("work", work_dir, settings.work_dir)):
        if folder == bids_dir or bids_dir in folder.parents:
            relation = "is" if folder == bids_dir else "lies inside"
            raise OutputError(
                f"The {what} folder {relation} the input {bids_dir}",
                id="E-OUT-OUTPUT-IN-INPUT" if what == "output" else "E-OUT-WORK-IN-INPUT",
                path=given,
                needed="a folder outside the input dataset, which is never written to",
                fix=f"give another folder, for example {bids_dir.parent / ('derivatives-tractode' if what == 'output' else 'work')}",
            )
    if work_dir == output_dir:
        raise OutputError(
            "The work folder is the output folder",
            id="E-OUT-WORK-IS-OUTPUT",
            path=settings.work_dir,
            needed="two different folders",
            fix="leave out --work-dir or give another folder",
        )


def check_output(output_dir: Path) -> None:
    """The output folder exists or can be made, and can be written.

    Raises
    ------
    OutputError
        It cannot.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The output folder cannot be made ({error.strerror})",
            id="E-OUT-CREATE",
            path=output_dir,
            needed="a folder that can be written",
            fix="choose another output folder",
        ) from None
    try:
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise OutputError(
            f"The output folder cannot be written ({error.strerror})",
            id="E-OUT-READONLY",
            path=output_dir,
            needed="a folder that can be written",
            fix="choose another output folder or change its permissions",
        ) from None


def default_work_dir() -> Path:
    """One folder per user under ``$TMPDIR``: nothing in it is needed again, so it need not be kept or shared."""
    return Path(tempfile.gettempdir()) / f"tractode-work-{os.getuid()}"


def make_run_dir(work_dir: Path) -> Path:
    """A fresh private folder for one run inside the work folder, which is made, or taken if it is ours.

    nipype leaves pickles in it, and reading a planted pickle runs its code: hence mode 0700, no folder of another
    user, no folder all may write to, and never a second use of what an earlier run left.

    Raises
    ------
    OutputError
        The work folder belongs to another user, is open to all, or cannot be made.
    """
    try:
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = work_dir.stat()
    except OSError as error:
        raise OutputError(
            f"The work folder cannot be made ({error.strerror})",
            id="E-WORK-CREATE",
            path=work_dir,
            needed="a folder that can be written",
            fix="give one with --work-dir",
        ) from None
    if info.st_uid != os.getuid():
        raise OutputError(
            f"The work folder belongs to another user (uid {info.st_uid}, you are {os.getuid()})",
            id="E-WORK-OWNER",
            path=work_dir,
            needed="a work folder of your own",
            fix=f"give a new folder, for example --work-dir {work_dir / f'tractode-{os.getuid()}'}",
        )
    is_ours = (work_dir / MARKER).is_file()
    is_open = bool(info.st_mode & stat.S_IWOTH) and not info.st_mode & stat.S_ISVTX
    try:
        if is_ours or not any(work_dir.iterdir()):
            work_dir.chmod(0o700)
            (work_dir / MARKER).write_text(f"{__version__}\n")
        elif is_open:
            raise OutputError(
                "The work folder holds other files and everybody may write to it",
                id="E-WORK-OPEN",
                path=work_dir,
                needed="a folder that only you can write to",
                fix=f"chmod go-w {work_dir}, or give a new folder",
            )
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=work_dir))
        (folder / MARKER).write_text(f"{__version__}\n")
    except OSError as error:
        raise OutputError(
            f"The work folder cannot be written ({error.strerror})",
            id="E-WORK-READONLY",
            path=work_dir,
            needed="a folder that can be written",
            fix="give another one with --work-dir",
        ) from None
    return folder


def remove_run_dir(folder: Path) -> None:
    """Delete a folder of `make_run_dir`; one without our marker is left alone."""
    if (folder / MARKER).is_file() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
