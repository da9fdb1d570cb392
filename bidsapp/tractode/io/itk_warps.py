"""Displacement-field warps of ITK and ANTs: ``*Warp.nii.gz``, a 5-D NIfTI ``(i, j, k, 1, 3)`` of vectors.

The vectors are millimetres in LPS whatever the axes of the image are, the intent code is 1007 (vector), and the field is that
of ``x ↦ x + u(x)``, x in the fixed space: linear between voxel centres, 0 beyond half a voxel outside the outermost ones.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from tractode.errors import InputDataError
from tractode.fields.image import ImageGrid
from tractode.fields.transform import Displacement, Transform
from tractode.io.transform_parts import LPS, unreadable

_VECTOR = 1007
_SCANNER = 1


def read_warp(path: Path, source: str, target: str) -> Displacement:
    """A warp NIfTI as a displacement from ``source`` (fixed) to ``target`` (moving).

    Raises
    ------
    InputDataError
        E-XFM-READ: not a whole NIfTI. E-XFM-INTENT: its intent is not a vector (a warp of FSL or SPM, an image).
        E-XFM-SHAPE: not one vector of three components a voxel. E-XFM-NONFINITE: NaN or infinity in it.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        values = np.asanyarray(image.dataobj, dtype=np.float32)
        intent = int(image.header["intent_code"])
    except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise unreadable(path, error) from error
    if values.ndim != 5 or values.shape[3:] != (1, 3):
        raise InputDataError(
            f"the image is {' × '.join(map(str, values.shape))}",
            id="E-XFM-SHAPE",
            path=path,
            needed="i × j × k × 1 × 3, one displacement a voxel, as ITK and ANTs write it",
            fix="convert the warp to ITK's convention with the program that made it",
        )
    if intent != _VECTOR:
        raise InputDataError(
            f"the intent code is {intent}",
            id="E-XFM-INTENT",
            path=path,
            needed=f"{_VECTOR} (vector): displacements in LPS millimetres",
            fix="convert the warp to ITK's convention; those of FSL, SPM and AFNI mean other things",
        )
    if not np.isfinite(values).all():
        raise InputDataError(
            f"{int((~np.isfinite(values)).sum())} numbers are NaN or infinite",
            id="E-XFM-NONFINITE",
            path=path,
            needed="finite displacements",
            fix="run the registration again",
        )
    i, j, k = values.shape[:3]
    grid = ImageGrid((i, j, k), torch.from_numpy(np.array(image.affine, dtype=np.float64)), source)
    vectors = np.ascontiguousarray(np.moveaxis(values[:, :, :, 0] * LPS[:3], -1, 0))
    return Displacement(grid, torch.from_numpy(vectors), source, target)


def write_warp(path: Path, transform: Transform, reference: ImageGrid) -> None:
    """The whole transform as one displacement field on ``reference``; beyond it the file says "stay".

    Resampling onto the reference with it is resampling with the transform itself, to the last float32 digit. Points between
    the reference's voxel centres are interpolated: write the composite ``.h5`` where an affine must hold everywhere.

    Raises
    ------
    InputDataError
        E-XFM-SHEAR: the axes of the reference are not perpendicular.
    """
    check_perpendicular(reference)
    points = reference.centres(torch.float64)
    vectors = (transform.map(points) - points).detach().cpu().numpy() * LPS[:3]
    stored = vectors.astype("<f4")[:, :, :, None, :]
    header = nib.Nifti1Image(np.broadcast_to(np.zeros((), np.float32), stored.shape), reference.affine.numpy()).header
    header.set_intent(_VECTOR)
    header.set_sform(reference.affine.numpy(), _SCANNER)
    header.set_qform(reference.affine.numpy(), _SCANNER)
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(1, 0)
    header["vox_offset"] = 352
    head = io.BytesIO()
    header.write_to(head)
    body = head.getvalue().ljust(352, b"\0") + stored.tobytes("F")
    if path.name.endswith(".gz"):
        # No name and no time inside: the same transform gives the same bytes.
        with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=5, fileobj=file, mtime=0) as stream:
            stream.write(body)
    else:
        path.write_bytes(body)


def check_perpendicular(grid: ImageGrid) -> None:
    """Refuse a grid whose axes are not perpendicular, which ITK cannot express."""
    affine = grid.affine[:3, :3]
    direction = affine / affine.norm(dim=0)
    if not torch.allclose(direction.T @ direction, torch.eye(3, dtype=direction.dtype), atol=1e-4):
        raise InputDataError(
            "The grid of a displacement is sheared, which ITK cannot express",
            id="E-XFM-SHEAR",
            needed="a grid with perpendicular axes",
            fix="resample the image onto a grid without shear",
        )
