"""The header of a NIfTI-1 or NIfTI-2 file, checked field by field before any voxel is read or any memory taken.

NIfTI-1: Cox et al. 2004, https://nifti.nimh.nih.gov/nifti-1. Readers differ on broken headers (one refuses what
another accepts, and the reverse), so nothing here is repaired silently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from tractode.errors import InputDataError
from tractode.io.stream import ByteSource

_LAYOUTS = {348: nib.Nifti1Header.template_dtype, 540: nib.Nifti2Header.template_dtype}
_MAGIC = {348: b"n+1\0", 540: b"n+2\0\r\n\x1a\n"}
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_COMPLEX = {32: "complex64", 1792: "complex128", 2048: "complex256"}
_COLOUR = {128: "RGB", 2304: "RGBA"}
_RECONVERT = "convert the file again from its source"


@dataclass(frozen=True)
class Header:
    """What of the header the reader needs. ``fields`` is the raw record, for the orientation."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    fields: np.void
    has_uncounted_extension: bool = False

    @property
    def n_volumes(self) -> int:
        return self.shape[3] if len(self.shape) > 3 else 1

    @property
    def n_bytes(self) -> int:
        """Size of the voxel data."""
        # Python integers do not overflow, whatever the header claims.
        total = self.dtype.itemsize
        for size in self.shape:
            total *= size
        return total


def read_header(source: ByteSource) -> Header:
    """The checked header; ``source`` is left at the first voxel. Raises `InputDataError` on any invalid field."""
    path = source.path
    fields, n_read = _record(source)
    dtype = _data_type(fields, path)
    header = Header(_shape(fields, path), dtype, _offset(fields, n_read, path), *_scaling(fields, path), fields)
    if header.offset + header.n_bytes > source.largest_size:
        raise InputDataError(
            f"the header announces {_dimensions(header.shape)} voxels of {dtype.name}, {header.offset + header.n_bytes} bytes, and a file of {path.stat().st_size} bytes cannot hold more than {source.largest_size}",
            id="E-IMG-SIZE", path=path, needed="a header that agrees with the file's size", fix=_RECONVERT,
        )  # fmt: skip
    return replace(header, has_uncounted_extension=_skip_extensions(source, header, n_read))


def _record(source: ByteSource) -> tuple[np.void, int]:
    """The header as a record in its own byte order, and its length."""
    path = source.path
    first = source.read(4)
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    sizes = {order: int(np.frombuffer(first, order + "i4")[0]) if len(first) == 4 else 0 for order in orders}
    found: list[tuple[Literal["<", ">"], int]] = [(order, size) for order, size in sizes.items() if size in _LAYOUTS]
    if not found:
        raise InputDataError(
            f"this is not a NIfTI file (sizeof_hdr is {sizes['<']})",
            id="E-IMG-HEADER",
            path=path,
            needed="sizeof_hdr 348 (NIfTI-1) or 540 (NIfTI-2)",
            fix=_RECONVERT,
        )
    order, size = found[0]
    raw = first + source.read(size - 4)
    if len(raw) < size:
        raise InputDataError(
            f"the file ends inside its header ({len(raw)} of {size} bytes)",
            id="E-IMG-SHORT",
            path=path,
            needed="a whole file",
            fix="copy or convert the file again",
        )
    fields = np.frombuffer(raw, _LAYOUTS[size].newbyteorder(order))[0]
    magic = raw[344:348] if size == 348 else raw[4:12]
    if magic != _MAGIC[size]:
        pair = " (a header of an .hdr/.img pair)" if magic[:3] in (b"ni1", b"ni2") else ""
        raise InputDataError(
            f"the magic string is {magic!r}{pair}",
            id="E-IMG-MAGIC",
            path=path,
            needed=f"{_MAGIC[size]!r}, a single-file NIfTI",
            fix=_RECONVERT,
        )
    return fields, size


def _shape(fields: np.void, path: Path) -> tuple[int, ...]:
    """Sizes, at least three, without the trailing ones beyond the third."""
    dim = [int(n) for n in fields["dim"]]
    n = dim[0]
    if not 1 <= n <= 7 or min(dim[1 : n + 1]) < 1:
        raise InputDataError(
            f"the dimensions are {dim}",
            id="E-IMG-DIM",
            path=path,
            needed="1 to 7 dimensions, each at least 1",
            fix=_RECONVERT,
        )
    shape = dim[1 : n + 1] + [1] * (3 - n)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) > 4:
        raise InputDataError(
            f"the image has {len(shape)} dimensions, {_dimensions(tuple(shape))}",
            id="E-IMG-5D",
            path=path,
            needed="three dimensions, or four with volumes last",
            fix="split the image along its fifth dimension",
        )
    return tuple(shape)


def _data_type(fields: np.void, path: Path) -> np.dtype:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code in _COMPLEX:
        raise InputDataError(
            f"the voxels are {_COMPLEX[code]}",
            id="E-IMG-COMPLEX",
            path=path,
            needed="real numbers",
            fix="store magnitude and phase as part-mag and part-phase files",
        )
    if code in _COLOUR:
        raise InputDataError(
            f"the voxels are {_COLOUR[code]} colours",
            id="E-IMG-RGB",
            path=path,
            needed="one number a voxel",
            fix="convert the original series, not a colour map of it",
        )
    if code not in _TYPES:
        raise InputDataError(
            f"the data type code is {code}",
            id="E-IMG-DATATYPE",
            path=path,
            needed=f"one of {', '.join(map(str, _TYPES))}",
            fix=_RECONVERT,
        )
    plain = np.dtype(_TYPES[code])
    if bits != 8 * plain.itemsize:
        raise InputDataError(
            f"the header says {bits} bits a voxel and data type {code} ({plain.name}), which has {8 * plain.itemsize}",
            id="E-IMG-BITPIX",
            path=path,
            needed="bitpix and datatype that agree",
            fix=_RECONVERT,
        )
    return plain if fields["dim"].dtype.isnative else plain.newbyteorder()


def _offset(fields: np.void, n_header: int, path: Path) -> int:
    value = float(fields["vox_offset"])
    if not np.isfinite(value) or value != int(value) or value < n_header + 4:
        raise InputDataError(
            f"vox_offset is {value:g}",
            id="E-IMG-OFFSET",
            path=path,
            needed=f"a whole number, at least {n_header + 4}",
            fix=_RECONVERT,
        )
    return int(value)


def _scaling(fields: np.void, path: Path) -> tuple[float, float]:
    """Slope and intercept; a slope of 0, NaN or infinity means that the stored numbers are the values."""
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    if not np.isfinite(intercept):
        raise InputDataError(
            f"scl_slope is {slope:g} and scl_inter {intercept:g}",
            id="E-IMG-SCALE",
            path=path,
            needed="a finite scl_inter",
            fix=_RECONVERT,
        )
    return slope, intercept


def _skip_extensions(source: ByteSource, header: Header, n_read: int) -> bool:
    """Go to the first voxel; whether the header flags extensions that ``vox_offset`` leaves no room for.

    Then the voxels start either where it says (only the flag is wrong) or behind the extensions: the file's length tells.
    """
    between = source.read(header.offset - n_read)
    if between[:1] in (b"", b"\0"):
        return False
    order, position = ("<" if header.fields["dim"].dtype.str.startswith("<") else ">"), 4
    while position < len(between):
        size = int(np.frombuffer(between[position : position + 4].ljust(4, b"\0"), order + "i4")[0])
        if size < 8:
            break
        position += size
    return position > len(between) or len(between) == 4


def _dimensions(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
