"""Tractograms on disk ↔ `Streamlines`: TRX and MRtrix3's TCK, both in RAS+ mm with voxel centres at integers.

TRX: https://github.com/tee-ar-ex/trx-spec, positions as float32 (trx-python's default float16 loses 0.05 mm), stored
uncompressed in a zip whose dates are fixed, so that the same lines give the same bytes. Departure: read and written
here rather than through trx-python, which trusts offsets before checking them and maps files for writing; the tests
compare with it. TCK: https://mrtrix.readthedocs.io/en/latest/getting_started/image_data.html.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tractode.errors import InputDataError, MissingInputError
from tractode.fields import ImageGrid, Streamlines
from tractode.io.tractogram_stream import stream_to, unknown_format

DTYPES = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)


@dataclass(frozen=True)
class TractogramNote:
    """Something a reader repaired or ignored: what to tell the user."""

    id: str
    message: str


def write_tractogram(path: Path, lines: Streamlines, grid: ImageGrid) -> None:
    """Write ``.trx`` or ``.tck`` by the extension; ``grid`` is the image the lines were made on (for the TRX header)."""
    with stream_to(path, grid) as out:
        out.append(lines)


def read_tractogram(path: Path, space: str) -> tuple[Streamlines, list[TractogramNote]]:
    """Read ``.trx`` or ``.tck``. Lines with points that are not finite are dropped and counted in a note."""
    if path.suffix not in (".trx", ".tck"):
        raise unknown_format(path)
    if not path.is_file():
        raise MissingInputError(
            "There is no such tractogram",
            id="E-TRACT-MISSING",
            path=path,
            needed="a .trx or .tck file",
            fix="check the path; if it is a dangling link, fetch it with `datalad get`",
        )
    lines, notes = (_read_trx if path.suffix == ".trx" else _read_tck)(path, space)
    return _without_broken(lines, notes)


def _read_trx(path: Path, space: str) -> tuple[Streamlines, list[TractogramNote]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a member fails its checksum")
            header = json.loads(archive.read("header.json"))
            n_lines, n_points = int(header["NB_STREAMLINES"]), int(header["NB_VERTICES"])
            notes = _unread(members)
            arrays = {name: _array(archive.read(name), name) for name in members if _is_data(name)}
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, EOFError, NotImplementedError) as error:
        raise _invalid(path, f"This is not a readable TRX file ({error})", "E-TRACT-TRX", "a whole TRX file") from error
    top = {name.split(".")[0]: value for name, value in arrays.items() if "/" not in name}
    points, offsets = top.get("positions"), top.get("offsets")
    if n_lines == 0 or n_points == 0:
        return Streamlines(torch.zeros(0, 3), torch.zeros(1, dtype=torch.long), space), notes
    if points is None or offsets is None or points.shape != (n_points, 3) or offsets.size not in (n_lines, n_lines + 1):
        raise _invalid(
            path,
            f"The header announces {n_lines} streamlines of {n_points} points and the arrays do not hold them",
            "E-TRACT-COUNT",
            "positions and offsets that match the header",
        )
    bounds = offsets.astype(np.float64).ravel()
    bounds = np.append(bounds, n_points) if len(bounds) == n_lines else bounds
    if bounds[0] != 0 or bounds[-1] != n_points or (np.diff(bounds) < 0).any():
        raise _invalid(
            path,
            "The offsets fall, or point outside the positions",
            "E-TRACT-OFFSETS",
            f"offsets that rise from 0 to {n_points}",
        )
    per_point, per_line = _data(arrays, "dpv/", n_points, path), _data(arrays, "dps/", n_lines, path)
    return Streamlines(
        torch.from_numpy(points.astype(np.float32)),
        torch.from_numpy(bounds.astype(np.int64)),
        space,
        per_point,
        per_line,
    ), notes


def _read_tck(path: Path, space: str) -> tuple[Streamlines, list[TractogramNote]]:
    content = path.read_bytes()
    fields, start = _tck_header(content, path)
    if fields.get("datatype") not in ("Float32LE", "Float32BE"):
        raise _invalid(
            path,
            f"The data type is {fields.get('datatype', 'missing')}",
            "E-TRACT-DATATYPE",
            "Float32LE or Float32BE",
            "convert it with `tckconvert`",
        )
    body = content[start:]
    if len(body) % 12:
        raise _invalid(
            path,
            f"The data end in the middle of a point ({len(body)} bytes after the header)",
            "E-TRACT-TRUNCATED",
            "a multiple of 12 bytes",
        )
    rows = (
        np.frombuffer(body, dtype="<f4" if fields["datatype"].endswith("LE") else ">f4")
        .reshape(-1, 3)
        .astype(np.float32)
    )
    if len(rows) == 0 or not np.isinf(rows[-1]).all() or np.isinf(rows[:-1]).any():
        raise _invalid(
            path,
            f"The end mark is missing or stands before the end of the {len(body)} bytes of data",
            "E-TRACT-END",
            "one row of infinity, the last one: the file is truncated, damaged, or of the other byte order",
        )
    is_mark: NDArray[np.bool_] = np.asarray(np.isnan(rows[:-1]).all(axis=1))
    if len(is_mark) and not is_mark[-1]:
        raise _invalid(
            path, "The last streamline has no end", "E-TRACT-TRUNCATED", "a row of NaN after each streamline"
        )
    marks = np.flatnonzero(is_mark)
    offsets = np.concatenate(([0], marks - np.arange(len(marks))))
    notes = []
    announced = int(fields["count"]) if fields.get("count", "").strip().isdigit() else None
    if announced is not None and announced != len(marks):
        notes.append(
            TractogramNote(
                "W-TRACT-COUNT",
                f"{path.name}: the header announces {announced} streamlines and the file holds {len(marks)}.",
            )
        )
    points = rows[:-1][~is_mark]
    return Streamlines(torch.from_numpy(points), torch.from_numpy(offsets.astype(np.int64)), space), notes


def _tck_header(content: bytes, path: Path) -> tuple[dict[str, str], int]:
    end = content.find(b"\nEND\n", 0, 1 << 20)
    if not content.startswith(b"mrtrix tracks") or end < 0:
        raise _invalid(
            path, "The header does not start with 'mrtrix tracks' or has no END", "E-TRACT-HEADER", "a whole TCK file"
        )
    text = content[:end].decode("utf-8", errors="replace")
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines()[1:])}
    place = fields.get("file", "").split()
    if len(place) != 2 or place[0] != "." or not place[1].isdigit() or not end + 5 <= int(place[1]) <= len(content):
        raise _invalid(
            path,
            f"The header places the data at {fields.get('file', 'nowhere')!r}",
            "E-TRACT-HEADER",
            "an offset within the file",
        )
    return fields, int(place[1])


def _without_broken(lines: Streamlines, notes: list[TractogramNote]) -> tuple[Streamlines, list[TractogramNote]]:
    """Leave out lines without points or with points that are not finite; their data leave with them."""
    is_bad = torch.zeros(len(lines), dtype=torch.bool)
    is_bad[lines.streamline_of_point[~torch.isfinite(lines.points).all(-1)]] = True
    n_bad, n_empty = int(is_bad.sum()), int((lines.n_points == 0).sum())
    if n_bad:
        notes = [
            *notes,
            TractogramNote("W-TRACT-NAN", f"{n_bad} streamlines have points that are not finite and were left out."),
        ]
    if n_empty:
        notes = [*notes, TractogramNote("W-TRACT-EMPTY", f"{n_empty} streamlines have no point and were left out.")]
    kept = (~is_bad & (lines.n_points > 0)).nonzero().ravel()
    return (lines if len(kept) == len(lines) else lines.select(kept)), notes


def _is_data(name: str) -> bool:
    return name.rpartition(".")[2] in DTYPES or name.endswith(".bit")


def _unread(members: dict[str, zipfile.ZipInfo]) -> list[TractogramNote]:
    unknown = [name for name in members if name != "header.json" and not _is_data(name)]
    return (
        [TractogramNote("W-TRACT-MEMBER", f"Members of unknown type were not read: {', '.join(unknown)}.")]
        if unknown
        else []
    )


def _array(content: bytes, name: str) -> NDArray[np.generic]:
    """One member as an array; its name carries columns and type (``positions.3.float32``)."""
    parts = name.rpartition("/")[2].split(".")
    dtype = np.dtype("bool" if parts[-1] == "bit" else parts[-1]).newbyteorder("<")
    columns = int(parts[1]) if len(parts) == 3 else 1
    return np.frombuffer(content, dtype=dtype).reshape(-1, columns)


def _data(arrays: dict[str, NDArray[np.generic]], folder: str, n: int, path: Path) -> dict[str, Tensor]:
    found = {}
    for name, value in arrays.items():
        if name.startswith(folder):
            if len(value) != n:
                raise _invalid(path, f"{name} has {len(value)} rows", "E-TRACT-COUNT", f"{n} rows")
            native = value.astype(value.dtype.newbyteorder("="))
            found[name.removeprefix(folder).split(".")[0]] = torch.from_numpy(
                native[:, 0] if native.shape[1] == 1 else native
            )
    return found


def _invalid(
    path: Path, found: str, id: str, needed: str, fix: str = "write the tractogram again, or leave it out"
) -> InputDataError:
    return InputDataError(found, id=id, path=path, needed=needed, fix=fix)
