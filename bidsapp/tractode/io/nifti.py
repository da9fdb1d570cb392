"""NIfTI files ↔ `Image`: read once and whole, in the stored axis order; written with reproducible bytes.

NIfTI-1: Cox et al. 2004, https://nifti.nimh.nih.gov/nifti-1. Nothing is reoriented or resampled on the way in.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
import torch

from tractode.errors import InputDataError, OutOfMemoryError
from tractode.fields import Image, ImageGrid
from tractode.io.nifti_affine import choose_affine
from tractode.io.nifti_header import Header, read_header
from tractode.io.notes import Note, warning
from tractode.io.problems import Problems
from tractode.io.stream import ByteSource

# A gzip file may go on after the last voxel; past this much it is no padding.
_LARGEST_TAIL = 1 << 24
_SCANNER, _MNI, _OTHER_TEMPLATE = 1, 4, 5


@dataclass(frozen=True)
class StoredImage:
    """A file as it was stored: ``values`` may hold NaN or infinity; ``n_dimensions`` is without trailing ones."""

    image: Image
    n_dimensions: int
    notes: tuple[Note, ...]


def read_image(path: Path, space: str, *, assume_orientation: bool = False) -> tuple[Image, list[Note]]:
    """A 3-D or 4-D image as float32, channels first, in the stored axis order; values that are not finite become 0.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``, NIfTI-1 or NIfTI-2, any real data type, either byte order.
    space
        The name of the space, for the grid.
    assume_orientation
        Take an image whose qform and sform codes are both 0 as LAS; refused otherwise.

    Raises
    ------
    MissingInputError
        The file is absent or was not fetched.
    InputDataError
        Anything about the file that cannot be trusted; all that was found wrong, in one message.
    """
    stored = read_stored(path, space, assume_orientation=assume_orientation)
    values, notes = stored.image.values, list(stored.notes)
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        count = int((~finite).sum())
        notes.append(
            warning(
                "W-IMG-NONFINITE",
                f"{path.name}: {count} values ({100 * count / values.numel():.3g} %) are NaN or infinite; 0 is used there",
            )
        )
        values = torch.where(finite, values, 0.0)
    return Image(stored.image.grid, values), notes


def read_volume(path: Path, space: str, *, assume_orientation: bool = False) -> tuple[Image, list[Note]]:
    """`read_image` for what must be one volume (a T1w, a mask): a fourth dimension of 1 is dropped, more refused."""
    image, notes = read_image(path, space, assume_orientation=assume_orientation)
    if image.values.shape[0] != 1:
        raise InputDataError(
            f"the image has {image.values.shape[0]} volumes",
            id="E-IMG-VOLUMES",
            path=path,
            needed="one volume",
            fix="choose or average the volumes of the repeated scan, or split them into runs",
        )
    if float(image.values.min()) == float(image.values.max()):
        raise InputDataError(
            f"every voxel is {float(image.values.min()):g}",
            id="E-IMG-CONSTANT",
            path=path,
            needed="an image",
            fix="convert the file again from its source",
        )
    return image, notes


def read_stored(path: Path, space: str, *, assume_orientation: bool = False) -> StoredImage:
    """The whole file, checked, values as stored (NaN and infinity kept): the ground of the other readers."""
    problems = Problems()
    with ByteSource(path) as source:
        header = read_header(source)
        # The orientation and the data are judged separately, so that one message tells both.
        placed = problems.attempt(
            choose_affine, header.fields, header.shape, path, assume_orientation=assume_orientation
        )
        raw = problems.attempt(_read_voxels, source, header)
    problems.raise_any()
    assert placed is not None
    assert raw is not None
    (affine, notes), (values, extra) = placed, raw
    if extra or source.trailing:
        notes.append(
            warning("W-IMG-TRAILING", f"{path.name}: {extra + source.trailing} bytes follow the image and were ignored")
        )
    shape = header.shape[:3]
    grid = ImageGrid((shape[0], shape[1], shape[2]), torch.tensor(affine), space)
    return StoredImage(Image(grid, values), len(header.shape), tuple(notes))


def _read_voxels(source: ByteSource, header: Header) -> tuple[torch.Tensor, int]:
    """Scaled float32 values ``(c, i, j, k)`` and how many bytes follow them; the file is read to its end.

    Volume by volume: beside the values there is never more than one volume as it was stored.
    """
    try:
        out = np.empty((header.n_volumes, *header.shape[:3]), np.float32)
    except MemoryError as error:
        raise OutOfMemoryError(
            f"an image of {header.n_bytes / 1e9:.1f} GB does not fit in memory",
            id="E-MEM-IMAGE",
            path=source.path,
            needed="more memory",
            fix="run on a machine with more memory",
        ) from error
    for n, volume in enumerate(stored_volumes(source, header)):
        out[n] = volume
    return torch.from_numpy(out), close_voxels(source, header)


def stored_volumes(source: ByteSource, header: Header) -> Iterator[np.ndarray]:
    """The scaled volumes ``(i, j, k)``, float32, one after another; the next one may overwrite the one before."""
    i, j, k = header.shape[:3]
    size = header.n_bytes // header.n_volumes
    buffer = np.empty(size, np.uint8)
    for n in range(header.n_volumes):
        count = source.read_into(memoryview(buffer.data))
        if count < size:
            raise InputDataError(
                f"the file holds {n * size + count} bytes of voxels, the header announces {header.n_bytes}",
                id="E-IMG-SHORT",
                path=source.path,
                needed="a whole file",
                fix="copy or convert the file again",
            )
        volume = buffer.view(header.dtype).reshape(k, j, i).T  # first axis fastest on disk
        with np.errstate(over="ignore", invalid="ignore"):
            if (header.slope, header.intercept) != (1.0, 0.0):
                volume = volume * header.slope + header.intercept
            scaled = volume.astype(np.float32, copy=False)
        yield scaled


def close_voxels(source: ByteSource, header: Header) -> int:
    """Read on to the end of the file, so that its checksums are compared; how many bytes followed the voxels."""
    extra = source.drain(_LARGEST_TAIL)
    if extra and header.has_uncounted_extension:
        raise InputDataError(
            f"the header extensions do not end where vox_offset ({header.offset}) says that the voxels start",
            id="E-IMG-EXTENSION",
            path=source.path,
            needed="a vox_offset that counts the header extensions",
            fix="convert the file again from its source",
        )
    if extra > _LARGEST_TAIL:
        raise InputDataError(
            f"more than {_LARGEST_TAIL} bytes follow the {header.n_bytes} that the header announces",
            id="E-IMG-LONG",
            path=source.path,
            needed="a header that agrees with the file's size",
            fix="convert the file again from its source",
        )
    return extra


def write_image(
    path: Path, image: Image, *, dtype: np.dtype | type | str | None = None, sform_code: int | None = None
) -> None:
    """Write ``.nii.gz`` or ``.nii`` (NIfTI-1): same image, same bytes; not atomic by itself.

    Parameters
    ----------
    path
        Where to write; its folder exists.
    image
        One channel becomes 3-D, several 4-D.
    dtype
        Stored type; by default float32 for numbers, uint8 for booleans, int32 for integers. Never scaled.
    sform_code
        Code of both qform and sform; by default 1 (scanner) for the space of a participant, 4 for an MNI template,
        5 for another.
    """
    values = image.values.detach().cpu().numpy()
    stored = np.dtype(dtype or _stored_type(values.dtype))
    write_volumes(path, image.grid, values, len(values), stored, sform_code=sform_code)


def write_volumes(
    path: Path,
    grid: ImageGrid,
    volumes: Iterable[np.ndarray],
    n_volumes: int,
    dtype: np.dtype | type | str = np.float32,
    *,
    sform_code: int | None = None,
) -> None:
    """`write_image` of volumes ``(i, j, k)`` that come one after another, so that no more than one is needed at a time."""
    stored = np.dtype(dtype)
    shape = grid.shape if n_volumes == 1 else (*grid.shape, n_volumes)
    header = nib.Nifti1Image(np.broadcast_to(np.zeros((), stored), shape), grid.affine.numpy()).header
    code = sform_code if sform_code is not None else _code_of(grid.space)
    header.set_sform(grid.affine.numpy(), code)
    header.set_qform(grid.affine.numpy(), code)
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    with ExitStack() as stack:
        stream: BinaryIO | gzip.GzipFile = stack.enter_context(path.open("wb"))
        if path.name.endswith(".gz"):
            # No name and no time in the gzip header, and a fixed level: the bytes depend on the image alone.
            stream = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=5, fileobj=stream, mtime=0))
        head = io.BytesIO()
        header["vox_offset"] = 352
        header.write_to(head)
        stream.write(head.getvalue().ljust(352, b"\0"))
        for volume in volumes:
            stream.write(np.asfortranarray(volume, dtype=stored.newbyteorder("<")).tobytes("F"))


def _stored_type(dtype: np.dtype) -> type:
    if dtype == np.bool_:
        return np.uint8
    return np.int32 if np.issubdtype(dtype, np.integer) else np.float32


def _code_of(space: str) -> int:
    if space.startswith("sub-"):
        return _SCANNER
    return _MNI if space.startswith("MNI") else _OTHER_TEMPLATE
