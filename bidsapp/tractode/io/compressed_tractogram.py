"""Compressed tractograms (``.safetensors``): the codes of streamlines packed to the bit, and points where codes are not near enough.

One file of safetensors (no code runs when it is read) with the tensors ``kinds`` (of each line, an index into the header's
``tiers``: the number of stages that are stored; their number means that points are), ``codes`` (the lines of each tier one after
another, the tiers too, each from a whole byte), ``points`` (float16, mm from the middle of the codec's box) and ``counts`` (points of
each such line), and one entry of metadata, ``tractogram``: a header as JSON. ``kinds`` and ``codes`` are bits, highest first; columns
of codes are joined to words of mixed radix of at most 62 bits.
The header names the format and its version, the space, the codec and the sha256 of its weights, the bound on the error, and the
sha256 of the tensors: what is cut short, changed, of another program or of other weights is refused.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tractode.contracts import Codes
from tractode.errors import InputDataError, MissingInputError
from tractode.fields import Streamlines
from tractode.generative.bounded_code import N_POINTS, Bounded, Coder, centre, tiers

FORMAT, VERSION = "tractode-compressed-tractogram", 1
EXTENSION = ".safetensors"
_KEY = "tractogram"
_WORD_BITS = 62
_ROWS = 1 << 16
_TENSORS = {"codes": torch.uint8, "kinds": torch.uint8, "points": torch.float16, "counts": torch.int32}
_HEADER = {
    "space": str, "codec": str, "weights": dict, "bound_mm": float, "points_per_line": int, "levels": list, "tiers": list,
    "n_streamlines": int, "n_exact": int, "centre_mm": list, "sha256": str,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Compressed:
    """What a file holds. ``codes`` has a row for each line, of which the first ``stages`` are stored and the others are 0.

    Lines of 0 stages are in ``points``, mm from ``centre_mm``, ``counts`` points each.

    ``weights`` maps the files of the codec's weights to their sha256; ``facts`` is plain data for people, which nothing relies on.
    """

    space: str
    codec: str
    weights: dict[str, str]
    bound_mm: float
    points_per_line: int
    levels: tuple[int, ...]
    centre_mm: tuple[float, float, float]
    codes: Int[Tensor, "s c"]
    stages: Int[Tensor, " s"]
    points: Float[Tensor, "p 3"]
    counts: Int[Tensor, " x"]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.stages)

    @property
    def is_exact(self) -> Bool[Tensor, " s"]:
        """Which lines are stored as points."""
        return self.stages == 0


def write_compressed(path: Path, content: Compressed) -> None:
    """The same content gives the same bytes."""
    parts = tiers(len(content.levels))
    kinds = torch.full((len(content),), len(parts))
    blocks = [np.empty(0, np.uint8)]
    for number, tier in enumerate(parts):
        mine = content.stages == tier
        kinds[mine] = number
        blocks.append(packed(content.codes[mine, :tier], content.levels[:tier]))
    tensors = {
        "codes": torch.from_numpy(np.concatenate(blocks)),
        "kinds": torch.from_numpy(packed(kinds[:, None], (len(parts) + 1,))),
        "points": content.points.to(torch.float16).contiguous(),
        "counts": content.counts.to(torch.int32),
    }
    header = {
        "format": FORMAT, "version": VERSION, "space": content.space, "codec": content.codec, "weights": content.weights,
        "bound_mm": content.bound_mm, "points_per_line": content.points_per_line, "levels": list(content.levels), "tiers": list(parts),
        "n_streamlines": len(content), "n_exact": len(content.counts), "centre_mm": list(content.centre_mm),
        "sha256": _sum(tensors), "facts": content.facts,
    }  # fmt: skip
    # One entry: several would be written in an order that differs from run to run.
    path.write_bytes(save(tensors, {_KEY: json.dumps(header, sort_keys=True, allow_nan=False)}))


def read_compressed(path: Path) -> Compressed:
    """A file that `write_compressed` wrote.

    Raises
    ------
    MissingInputError
        E-CODEC-MISSING: there is no such file.
    InputDataError
        E-CODEC-FILE: no compressed tractogram of ours, cut short or damaged; E-CODEC-VERSION: of a later version.
    """
    header, tensors = _opened(path)
    if header.get("format") != FORMAT:
        raise _damaged(path, "It is not a compressed tractogram of tractode")
    if header.get("version") != VERSION:
        raise InputDataError(
            f"It is of version {header.get('version')} of the format",
            id="E-CODEC-VERSION",
            path=path,
            needed=f"version {VERSION}",
            fix="use a later tractode",
        )
    wrong = [name for name, kind in _HEADER.items() if type(header.get(name)) is not kind]
    if wrong or {name: tensor.dtype for name, tensor in tensors.items()} != _TENSORS:
        raise _damaged(path, f"It lacks {', '.join(wrong) or 'tensors of the format'}")
    if _sum(tensors) != header["sha256"]:
        raise _damaged(path, "Its data are not what was written")
    try:
        return _content(header, tensors)
    except (ValueError, TypeError, IndexError, OverflowError, RuntimeError) as error:
        raise _damaged(path, f"Header and data do not agree ({error})") from error


def header_of(path: Path) -> dict[str, Any]:
    """The header as plain data; raises as `read_compressed` does."""
    return _opened(path)[0]


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata.get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in _TENSORS if name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise MissingInputError(
            "There is no such compressed tractogram",
            id="E-CODEC-MISSING",
            path=path,
            needed="a .safetensors file",
            fix="check the path",
        ) from error
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise _damaged(path, f"It cannot be read ({error})") from error
    return (header if isinstance(header, dict) else {}), tensors


def _content(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Compressed:
    n, n_exact = header["n_streamlines"], header["n_exact"]
    levels = tuple(int(level) for level in header["levels"])
    parts = tuple(int(tier) for tier in header["tiers"])
    if not levels or min(levels) < 1 or not 0 <= n_exact <= n or not header["bound_mm"] > 0:
        raise ValueError("levels, counts or bound")
    if parts != tuple(sorted(set(parts))) or not parts or parts[0] < 1 or parts[-1] > len(levels):
        raise ValueError("tiers")
    kinds = unpacked(tensors["kinds"].numpy(), (len(parts) + 1,), n)[:, 0]
    stages = torch.tensor([*parts, 0])[kinds]
    codes = _read_codes(tensors["codes"].numpy(), levels, parts, stages)
    counts, points = tensors["counts"].long(), tensors["points"]
    if int((stages == 0).sum()) != n_exact or len(counts) != n_exact or bool((counts < 2).any()):
        raise ValueError("number of exact lines")
    if tuple(points.shape) != (int(counts.sum()), 3) or not bool(torch.isfinite(points).all()):
        raise ValueError("number of points")
    x, y, z = (float(value) for value in header["centre_mm"])
    return Compressed(
        header["space"], header["codec"], dict(header["weights"]), header["bound_mm"], header["points_per_line"], levels, (x, y, z),
        codes, stages, points, counts, dict(header.get("facts") or {}),
    )  # fmt: skip


def _read_codes(
    content: NDArray[np.uint8], levels: tuple[int, ...], parts: Sequence[int], stages: Int[Tensor, " s"]
) -> Int[Tensor, "s c"]:
    codes, first = torch.zeros(len(stages), len(levels), dtype=torch.long), 0
    for tier in parts:
        mine = (stages == tier).nonzero().ravel()
        last = first + (len(mine) * bits_of(levels[:tier]) + 7) // 8
        codes[mine, :tier] = unpacked(content[first:last], levels[:tier], len(mine))
        first = last
    if first != len(content):
        raise ValueError("number of codes")
    return codes


def compressed(
    codec: Coder, stored: Bounded, weights: Mapping[str, str], bound: float, facts: Mapping[str, Any]
) -> Compressed:
    """What `write_compressed` takes, of lines that were encoded with a bound on their error."""
    x, y, z = centre(codec.box).tolist()
    levels = codec.with_stages(codec.most_stages).levels
    codes = stored.codes * (torch.arange(len(levels)) < stored.stages[:, None])
    return Compressed(
        codec.box.space, codec.label, dict(weights), float(bound), N_POINTS, tuple(levels), (x, y, z),
        codes, stored.stages, stored.points, stored.n_points, dict(facts),
    )  # fmt: skip


def restored(content: Compressed, codec: Coder) -> Streamlines:
    """The streamlines, in order, in the codec's space (float32)."""
    counts = torch.full((len(content),), content.points_per_line)
    counts[content.is_exact] = content.counts
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    owner = torch.repeat_interleave(torch.arange(len(content)), counts)
    points = torch.empty(int(offsets[-1]), 3)
    exact = content.points.double() + torch.tensor(content.centre_mm, dtype=torch.float64)
    points[content.is_exact[owner]] = exact.float()
    for tier in content.stages.unique().tolist():
        mine = content.stages == tier
        if tier:
            codes = Codes(content.codes[mine, :tier], int(mine.sum()))
            few = codec.with_stages(tier).decode(codes, content.points_per_line)
            points[mine[owner]] = few.points.detach().cpu().float()
    return Streamlines(points, offsets, content.space)


def check_weights(content: Compressed, weights: Mapping[str, str], path: Path | None = None) -> None:
    """Raise `InputDataError` (E-CODEC-OTHER) unless the file was written with these weights."""
    if dict(weights) != content.weights:
        mine, its = (
            ", ".join(sorted(f"{name} {digest[:12]}…" for name, digest in sums.items()))
            for sums in (weights, content.weights)
        )
        raise InputDataError(
            f"It was written with other weights ({its}) than those given ({mine})",
            id="E-CODEC-OTHER",
            path=path,
            needed="the weights it was written with",
            fix="give their folder",
        )


def words_of(levels: Sequence[int]) -> list[tuple[slice, int]]:
    """The columns that are joined to one word, and the word's bits.

    >>> words_of([5, 5, 5])
    [(slice(0, 3, None), 7)]
    """
    words, first, size = [], 0, 1
    for column, level in enumerate(levels):
        if (size * level - 1).bit_length() > _WORD_BITS:
            words.append((slice(first, column), (size - 1).bit_length()))
            first, size = column, 1
        size *= level
    return [*words, (slice(first, len(levels)), (size - 1).bit_length())]


def bits_of(levels: Sequence[int]) -> int:
    """Bits of one line as they are stored.

    >>> bits_of([5, 5, 5])
    7
    """
    return sum(bits for _, bits in words_of(levels))


def packed(codes: Int[Tensor, "r c"], levels: Sequence[int]) -> NDArray[np.uint8]:
    """Rows of codes as bits, one after another, the last byte filled with zeros."""
    if bool((codes < 0).any()) or bool((codes >= torch.tensor(levels)).any()):
        raise ValueError("Codes must be at least 0 and below their level.")
    parts = [_packed_rows(rows.numpy().astype(np.uint64), levels) for rows in codes.split(_ROWS)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def _packed_rows(codes: NDArray[np.uint64], levels: Sequence[int]) -> NDArray[np.uint8]:
    columns = []
    for part, bits in words_of(levels):
        word = np.zeros(len(codes), np.uint64)
        for level, code in zip(levels[part], codes[:, part].T, strict=True):
            word = word * np.uint64(level) + code
        places = np.arange(bits - 1, -1, -1, dtype=np.uint64)
        columns.append(((word[:, None] >> places) & np.uint64(1)).astype(np.uint8))
    return np.packbits(np.concatenate(columns, 1).ravel())


def unpacked(content: NDArray[np.uint8], levels: Sequence[int], n: int) -> Int[Tensor, "r c"]:
    """The inverse of `packed`; raises `ValueError` for too few or too many bytes, or codes above their level."""
    per_line = bits_of(levels)
    if len(content) != (n * per_line + 7) // 8:
        raise ValueError("number of codes")
    rows = [torch.empty(0, len(levels), dtype=torch.long)]
    for start in range(0, n, _ROWS):
        count = min(_ROWS, n - start)
        first = start * per_line // 8  # whole bytes: the number of rows in a part is a multiple of eight
        bits = np.unpackbits(content[first : first + (count * per_line + 7) // 8], count=count * per_line)
        rows.append(_unpacked_rows(bits.reshape(count, per_line), levels))
    return torch.cat(rows)


def _unpacked_rows(bits: NDArray[np.uint8], levels: Sequence[int]) -> Int[Tensor, "r c"]:
    codes, first = np.empty((len(bits), len(levels)), np.int64), 0
    for part, width in words_of(levels):
        word = np.zeros(len(bits), np.uint64)
        for column in range(first, first + width):
            word = (word << np.uint64(1)) | bits[:, column].astype(np.uint64)
        first += width
        for column in range(part.stop - 1, part.start - 1, -1):
            level = np.uint64(levels[column])
            codes[:, column] = (word % level).astype(np.int64)
            word //= level
        if word.any():
            raise ValueError("a code above its level")
    return torch.from_numpy(codes)


def _sum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for part in _bytes_of(tensors):
        digest.update(part)
    return digest.hexdigest()


def _bytes_of(tensors: Mapping[str, Tensor]) -> Iterable[bytes]:
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        yield f"{name} {array.dtype.str} {array.shape}\n".encode()
        yield array.tobytes()


def _damaged(path: Path, found: str) -> InputDataError:
    return InputDataError(
        found,
        id="E-CODEC-FILE",
        path=path,
        needed="a whole compressed tractogram",
        fix="write it again (tractode-codec encode), or copy it anew",
    )
