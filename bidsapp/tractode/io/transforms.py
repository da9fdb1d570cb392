"""Transforms on disk: one function that reads any kind, and the readers and writers of each.

ITK composite ``.h5`` (`itk_transforms`), ITK warp NIfTI (`itk_warps`), ITK affine ``.mat`` and text (`itk_linear`), X5, the BIDS
draft (`x5_transforms`). Every file says how points of the fixed space go to the moving space, which is what resampling needs.
"""

from __future__ import annotations

from pathlib import Path

import h5py

from tractode.errors import InputDataError, MissingInputError
from tractode.fields.transform import Transform
from tractode.io.itk_linear import read_itk_linear
from tractode.io.itk_transforms import read_itk, write_itk
from tractode.io.itk_warps import read_warp, write_warp
from tractode.io.transform_parts import Tables, simple_parts, unreadable
from tractode.io.x5_transforms import read_x5, write_x5

__all__ = [
    "Tables", "read_itk", "read_itk_linear", "read_transform", "read_warp", "read_x5", "simple_parts", "write_itk",
    "write_warp", "write_x5",
]  # fmt: skip

_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_transform(path: Path, source: str, target: str) -> Transform:
    """A transform file of ITK, ANTs, fMRIPrep or ours, known by its content: points of ``source`` → points of ``target``.

    Parameters
    ----------
    source, target
        Names for the two spaces. A file ``from-A_to-B_mode-image_xfm`` maps points of B to points of A; so does a warp or affine
        that ``antsApplyTransforms`` uses to resample A onto B.

    Raises
    ------
    MissingInputError
        E-XFM-MISSING: there is no such file.
    InputDataError
        E-XFM-KIND: none of the known kinds; E-XFM-READ and others of the readers: damaged, or a kind with parts not supported.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(348)
    except FileNotFoundError as error:
        raise MissingInputError(
            "The transform is not there", id="E-XFM-MISSING", path=path, needed="a transform file", fix="check its name"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if start.startswith(_HDF5):
        return read_x5(path, source, target) if _is_x5(path) else read_itk(path, source, target)
    if path.suffix == ".mat" or start.startswith(b"#Insight Transform File"):
        return read_itk_linear(path, source, target)
    if path.name.endswith((".nii", ".nii.gz")):
        return read_warp(path, source, target)
    if path.suffix in (".h5", ".x5"):
        raise unreadable(path, ValueError("it is not an HDF5 file"))
    raise InputDataError(
        "The file is no transform of a known kind",
        id="E-XFM-KIND",
        path=path,
        needed="an ITK composite .h5, warp .nii.gz, affine .mat or .txt, or X5",
        fix="convert it to ITK's convention with the program that made it",
    )


def _is_x5(path: Path) -> bool:
    """X5 names its format in an attribute of the root; ITK has none there."""
    try:
        with h5py.File(path, "r") as file:
            return "Format" in file.attrs
    except (OSError, KeyError) as error:
        raise unreadable(path, error) from error
