"""Tractograms written and read batch by batch, so that memory does not grow with the number of streamlines.

Formats as in `tractogram`. A TRX file's parts are gathered in unnamed files beside it (its zip needs the sizes of its
members first: readers that map the file rely on plain local headers), then copied into the zip.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tractode.errors import InternalError, UsageError
from tractode.fields import ImageGrid, Streamlines

FIXED_DATE = (1980, 1, 1, 0, 0, 0)
COPY_BYTES = 1 << 20
GROUPS, GROUP_DATA = "groups/", "dpg/"


class TractogramStream(ABC):
    """A tractogram file to which batches are appended: ``with stream_to(path, grid) as out: out.append(lines)``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_streamlines = 0
        self.n_points = 0

    @abstractmethod
    def append(self, lines: Streamlines) -> None:
        """Write a batch; every batch must carry the same data per point and per streamline."""

    def add_groups(self, groups: Mapping[str, Tensor]) -> None:
        """Sets of streamlines by name, for formats that can hold them; the others leave them out."""
        return

    def add_group_data(self, data: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Numbers of groups: group → name → vector, for formats that can hold them."""
        return

    @abstractmethod
    def close(self) -> None:
        """Complete the file."""

    @abstractmethod
    def abandon(self) -> None:
        """Let go of everything open; the file stays incomplete."""

    def __enter__(self) -> TractogramStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def stream_to(path: Path, grid: ImageGrid) -> TractogramStream:
    """A stream for ``.trx`` or ``.tck`` by the extension; ``grid`` is the image the lines were made on."""
    if path.suffix == ".trx":
        return TrxStream(path, grid)
    if path.suffix == ".tck":
        return TckStream(path)
    raise unknown_format(path)


def unknown_format(path: Path) -> UsageError:
    """The refusal of an extension that is neither."""
    return UsageError(
        f"Tractograms of type {path.suffix!r} are not known",
        id="E-TRACT-FORMAT",
        path=path,
        needed=".trx or .tck",
        fix="choose one of these formats",
    )


class TrxStream(TractogramStream):
    """TRX with float32 positions, data per point and per streamline; the same lines give the same bytes however batched."""

    def __init__(self, path: Path, grid: ImageGrid) -> None:
        super().__init__(path)
        self._grid = grid
        self._open = ExitStack()
        self._parts: dict[str, IO[bytes]] = {}
        self._names: set[str] | None = None
        self._groups: dict[str, Tensor] = {}
        self._group_data: dict[str, Mapping[str, Tensor]] = {}

    def add_groups(self, groups: Mapping[str, Tensor]) -> None:
        """Sets of streamlines by name, as the indices of lines that are in the file when it is closed; empty ones are left out."""
        self._groups |= {name: index.detach().cpu() for name, index in groups.items() if len(index)}

    def add_group_data(self, data: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Of groups that are in the file when it is closed; that of others is left out."""
        self._group_data |= data

    def append(self, lines: Streamlines) -> None:
        data = {f"dpv/{name}": value for name, value in lines.per_point.items()}
        data |= {f"dps/{name}": value for name, value in lines.per_streamline.items()}
        if len(lines) == 0:
            return
        columns = {_member(name, value): value for name, value in data.items()}
        if self._names is None:
            self._names = set(columns)
        elif self._names != set(columns):
            raise InternalError(
                f"Batches of one tractogram carry different data: {sorted(self._names)} and {sorted(columns)}",
                id="E-BUG-BATCH",
            )
        self._write("positions", lines.points.detach().float())
        self._write("offsets", lines.offsets[:-1].detach() + self.n_points)
        for name, value in columns.items():
            self._write(name, value.detach())
        self.n_streamlines += len(lines)
        self.n_points += len(lines.points)

    def _write(self, name: str, values: Tensor) -> None:
        if name not in self._parts:
            part = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115 (closed by the stack)
            self._parts[name] = self._open.enter_context(part)
        self._parts[name].write(_bytes(values))

    def close(self) -> None:
        header = {
            "DIMENSIONS": list(self._grid.shape),
            "NB_STREAMLINES": self.n_streamlines,
            "NB_VERTICES": self.n_points,
            "VOXEL_TO_RASMM": self._grid.affine.tolist(),
        }
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_info("header.json"), json.dumps(header, sort_keys=True).encode())
            self._copy(archive, "positions", "positions.3.float32")
            archive.writestr(_info(f"offsets.{self._offset_type}"), self._offsets().tobytes())
            for name in sorted(self._names or ()):
                self._copy(archive, name, name)
            for name, index in sorted(self._groups.items()):
                archive.writestr(_info(f"{GROUPS}{name}.uint32"), index.numpy().astype("<u4").tobytes())
            for group, data in sorted(self._group_data.items()):
                for name, value in sorted(data.items()) if group in self._groups else ():
                    member = _member(f"{GROUP_DATA}{group}/{name}", value.detach()[None])
                    archive.writestr(_info(member), _bytes(value.detach()))
        self.abandon()

    @property
    def _offset_type(self) -> str:
        return "uint32" if self.n_points < 2**32 else "uint64"

    def _offsets(self) -> NDArray[Any]:
        starts = np.empty(0, "<i8")
        if "offsets" in self._parts:
            self._parts["offsets"].seek(0)
            starts = np.frombuffer(self._parts["offsets"].read(), "<i8")
        return np.append(starts, self.n_points).astype("<u4" if self._offset_type == "uint32" else "<u8")

    def _copy(self, archive: zipfile.ZipFile, part: str, member: str) -> None:
        if part not in self._parts:
            archive.writestr(_info(member), b"")
            return
        source = self._parts[part]
        info = _info(member)
        info.file_size = source.seek(0, 2)
        source.seek(0)
        with archive.open(info, "w") as target:
            shutil.copyfileobj(source, target, COPY_BYTES)

    def abandon(self) -> None:
        self._open.close()
        self._parts = {}


class TckStream(TractogramStream):
    """TCK, little-endian float32: a row of NaN after each line and a row of infinity at the end; data are not kept."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = path.open("wb")
        self._file.write(self._header())

    def _header(self) -> bytes:
        fields = f"mrtrix tracks\ndatatype: Float32LE\ncount: {self.n_streamlines:010d}\n"
        # The offset of the data is part of the text whose length it is.
        size = next(n for n in range(len(fields), len(fields) + 64) if len(f"{fields}file: . {n}\nEND\n") == n)
        return f"{fields}file: . {size}\nEND\n".encode()

    def append(self, lines: Streamlines) -> None:
        ends = np.cumsum(lines.n_points.cpu().numpy() + 1) - 1
        rows = np.full((len(lines.points) + len(lines), 3), np.nan, dtype="<f4")
        is_point = np.ones(len(rows), dtype=bool)
        is_point[ends] = False
        rows[is_point] = lines.points.detach().cpu().float().numpy()
        self._file.write(rows.tobytes())
        self.n_streamlines += len(lines)
        self.n_points += len(lines.points)

    def close(self) -> None:
        self._file.write(np.full(3, np.inf, dtype="<f4").tobytes())
        self._file.seek(0)
        self._file.write(self._header())
        self._file.close()

    def abandon(self) -> None:
        self._file.close()


def read_groups(path: Path) -> dict[str, Tensor]:
    """The groups of a TRX file of ours: name → indices of its streamlines."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.startswith(GROUPS)]
        arrays = {name: _array(archive.read(name), name).ravel() for name in names}
    return {
        name.removeprefix(GROUPS).rpartition(".")[0]: torch.from_numpy(values.astype(np.int64))
        for name, values in arrays.items()
    }


def stream_trx(path: Path, space: str, batch: int = 50_000) -> Iterator[Streamlines]:
    """A TRX file of ours, ``batch`` streamlines at a time, in order. For files of others see `read_tractogram`."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist() if info.filename != "header.json"}
        members = {name: info for name, info in members.items() if not name.startswith((GROUPS, GROUP_DATA))}
        offsets_name = next(name for name in members if name.startswith("offsets."))
        offsets = _array(archive.read(offsets_name), offsets_name).astype(np.int64).ravel()
        del members[offsets_name]
        files: dict[str, zipfile.ZipExtFile] = {name: archive.open(name) for name in members}  # type: ignore[misc]
        try:
            for start in range(0, len(offsets) - 1, batch):
                part = offsets[start : start + batch + 1]
                yield _batch_of(files, torch.from_numpy(part - part[0]), space)
        finally:
            for file in files.values():
                file.close()


def _batch_of(files: dict[str, zipfile.ZipExtFile], offsets: Tensor, space: str) -> Streamlines:
    n_points, n_lines = int(offsets[-1]), len(offsets) - 1
    found: dict[str, dict[str, Tensor]] = {"": {}, "dpv": {}, "dps": {}}
    for name, file in files.items():
        folder, _, plain = name.rpartition("/")
        dtype, columns = _type_of(name)
        n = n_lines if folder == "dps" else n_points
        values = torch.from_numpy(_array(file.read(n * columns * dtype.itemsize), name).copy())
        found[folder][plain.split(".")[0]] = values[:, 0] if columns == 1 else values
    return Streamlines(found[""]["positions"], offsets, space, found["dpv"], found["dps"])


def _type_of(name: str) -> tuple[np.dtype[Any], int]:
    parts = name.rpartition("/")[2].split(".")
    return np.dtype(parts[-1]).newbyteorder("<"), int(parts[1]) if len(parts) == 3 else 1


def _array(content: bytes, name: str) -> NDArray[Any]:
    dtype, columns = _type_of(name)
    return np.frombuffer(content, dtype).reshape(-1, columns)


def _member(name: str, value: Tensor) -> str:
    columns = value[:1].numel()
    kind = str(value.dtype).removeprefix("torch.")
    return f"{name}.{kind}" if columns == 1 else f"{name}.{columns}.{kind}"


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, FIXED_DATE)
    info.external_attr = 0o644 << 16
    return info


def _bytes(values: Tensor) -> bytes:
    array = values.cpu().contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
