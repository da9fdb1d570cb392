"""Read a stored file once and whole, through gzip where its name says so, checking every member's CRC and length.

Readers that stop at the last voxel never see a wrong checksum; this one goes on to the end of the file.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from types import TracebackType

from tractode.errors import InputDataError
from tractode.io.sniff import broken, check_content, first_bytes

_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b"
# Deflate cannot do better than about 1032 : 1, so a gzip file bounds what it can hold.
_LARGEST_RATIO = 1032


class ByteSource:
    """The bytes of a file, decompressed, in order. A context manager."""

    def __init__(self, path: Path) -> None:
        check_content(path)
        self.path = path
        self.is_compressed = path.name.endswith(".gz")
        self.trailing = 0  # bytes after the last gzip member
        self._check_name(first_bytes(path, 2) == _GZIP)
        self._stored_size = path.stat().st_size
        self._stream = path.open("rb")
        self._inflater = zlib.decompressobj(wbits=31)
        self._pending, self._piece = b"", memoryview(b"")
        self._is_over = False

    def __enter__(self) -> ByteSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def largest_size(self) -> int:
        """More bytes than this the file cannot hold, known before any is read."""
        return self._stored_size * _LARGEST_RATIO if self.is_compressed else self._stored_size

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer only at the end."""
        out = bytearray(count)
        return bytes(out[: self.read_into(memoryview(out))])

    def read_into(self, target: memoryview) -> int:
        """Fill ``target``; how many bytes there were."""
        filled = 0
        while filled < len(target):
            if not len(self._piece):
                self._piece = memoryview(self._next())
                if not len(self._piece):
                    break
            step = min(len(self._piece), len(target) - filled)
            target[filled : filled + step] = self._piece[:step]
            self._piece = self._piece[step:]
            filled += step
        return filled

    def drain(self, limit: int) -> int:
        """Read to the end, keeping nothing; how many bytes were left. Stops once there are more than ``limit``."""
        count = len(self._piece)
        self._piece = memoryview(b"")
        while count <= limit and (piece := self._next()):
            count += len(piece)
        return count

    def _check_name(self, is_gzip: bool) -> None:
        if self.is_compressed and not is_gzip:
            raise InputDataError(
                "the name ends in .gz but the content is not gzip",
                id="E-IMG-NOTGZIP",
                path=self.path,
                needed="a gzip file",
                fix=f"rename it to {self.path.name[:-3]} if it is uncompressed, or compress it with gzip",
            )
        if not self.is_compressed and is_gzip:
            raise InputDataError(
                "the content is gzip but the name does not end in .gz",
                id="E-IMG-GZIPNAME",
                path=self.path,
                needed="a name that ends in .gz",
                fix=f"rename it to {self.path.name}.gz",
            )

    def _raw(self) -> bytes:
        try:
            return self._stream.read(_CHUNK)
        except OSError as error:
            raise broken(error, self.path) from error

    def _next(self) -> bytes:
        """The next decompressed piece, empty at the end."""
        if not self.is_compressed:
            return self._raw()
        while not self._is_over:
            if self._inflater.eof:
                self._start_member()
                continue
            raw = self._pending or self._raw()
            piece = self._inflate(raw)
            self._pending = self._inflater.unconsumed_tail
            if piece:
                return piece
            if not raw and not self._inflater.eof:
                raise InputDataError(
                    f"the gzip stream ends before its end mark ({self._stored_size} bytes are there): the file was cut",
                    id="E-IMG-CUT",
                    path=self.path,
                    needed="a whole gzip file",
                    fix="copy or convert the file again, and check it with gzip -t",
                )
        return b""

    def _inflate(self, raw: bytes) -> bytes:
        try:
            return self._inflater.decompress(raw, _CHUNK)
        except zlib.error as error:
            raise InputDataError(
                f"the gzip stream is damaged ({error})",
                id="E-IMG-CRC",
                path=self.path,
                needed="a gzip file whose checksum is right",
                fix="copy or convert the file again, and check it with gzip -t",
            ) from error

    def _start_member(self) -> None:
        """After the end mark of one gzip member: begin the next, or count what is no gzip."""
        rest = self._inflater.unused_data
        if len(rest) < len(_GZIP):
            rest += self._raw()
        if rest.startswith(_GZIP):
            self._inflater, self._pending = zlib.decompressobj(wbits=31), rest
            return
        self._is_over = True
        self.trailing = len(rest)
        while more := self._raw():
            self.trailing += len(more)
