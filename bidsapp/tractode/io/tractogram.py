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

from tractode.errors import InputDataError, MissingInputError, UsageError
from tractode.fields import ImageGrid, Streamlines

FIXED_DATE = (1980, 1, 1, 0, 0, 0)
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
    if path.suffix == ".trx":
        write_trx(path, lines, grid)
    elif path.suffix == ".tck":
        write_tck(path, lines)
    else:
        raise _unknown(path)


def read_tractogram(path: Path, space: str) -> tuple[Streamlines, list[TractogramNote]]:
    """Read ``.trx`` or ``.tck``. Lines with points that are not finite are dropped and counted in a note."""
    if path.suffix not in (".trx", ".tck"):
        raise _unknown(path)
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


def write_trx(path: Path, lines: Streamlines, grid: ImageGrid) -> None:
    """TRX with float32 positions, data per point and per streamline."""
    header = {
        "DIMENSIONS": list(grid.shape),
        "NB_STREAMLINES": len(lines),
        "NB_VERTICES": len(lines.points),
        "VOXEL_TO_RASMM": grid.affine.tolist(),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _store(archive, "header.json", json.dumps(header, sort_keys=True).encode())
        _store(archive, "positions.3.float32", _bytes(lines.points.detach().float()))
        _store(archive, "offsets.uint32" if len(lines.points) < 2**32 else "offsets.uint64", _offsets(lines))
        for folder, data in (("dpv", lines.per_point), ("dps", lines.per_streamline)):
            for name, value in sorted(data.items()):
                flat = value.detach().reshape(len(value), -1) if len(value) else value.detach().reshape(0, 1)
                columns = "" if flat.shape[1] == 1 else f".{flat.shape[1]}"
                _store(archive, f"{folder}/{name}{columns}.{str(flat.dtype).removeprefix('torch.')}", _bytes(flat))


def write_tck(path: Path, lines: Streamlines) -> None:
    """TCK, little-endian float32: a row of NaN after each line and a row of infinity at the end."""
    counts = lines.n_points.cpu().numpy()
    ends = np.cumsum(counts + 1) - 1
    rows = np.full((len(lines.points) + len(lines) + 1, 3), np.nan, dtype="<f4")
    is_point = np.ones(len(rows), dtype=bool)
    is_point[ends] = False
    is_point[-1] = False
    rows[is_point] = lines.points.detach().cpu().float().numpy()
    rows[-1] = np.inf
    fields = f"mrtrix tracks\ndatatype: Float32LE\ncount: {len(lines):010d}\n"
    # The offset of the data is part of the text whose length it is.
    size = next(n for n in range(len(fields), len(fields) + 64) if len(f"{fields}file: . {n}\nEND\n") == n)
    path.write_bytes(f"{fields}file: . {size}\nEND\n".encode() + rows.tobytes())


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


def _store(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, FIXED_DATE)
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)


def _bytes(values: Tensor) -> bytes:
    array = values.cpu().contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _offsets(lines: Streamlines) -> bytes:
    return lines.offsets.cpu().numpy().astype("<u4" if len(lines.points) < 2**32 else "<u8").tobytes()


def _invalid(
    path: Path, found: str, id: str, needed: str, fix: str = "write the tractogram again, or leave it out"
) -> InputDataError:
    return InputDataError(found, id=id, path=path, needed=needed, fix=fix)


def _unknown(path: Path) -> UsageError:
    return UsageError(
        f"Tractograms of type {path.suffix!r} are not known",
        id="E-TRACT-FORMAT",
        path=path,
        needed=".trx or .tck",
        fix="choose one of these formats",
    )
