"""What ``tractode-codec`` does with single files: encode, decode, name, synthesise."""

from __future__ import annotations

import difflib
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tractode.errors import InputDataError, UsageError
from tractode.fields import ImageGrid, Streamlines
from tractode.fields.transform import Chain
from tractode.interfaces.bundle_codes import group_data
from tractode.interfaces.codec_plan import BATCH, OTHER, BundleCoding, CodecPlan, names_of
from tractode.io.atomic import atomic_path, write_text
from tractode.io.bundle_table import table_of
from tractode.io.compressed_tractogram import check_weights, read_compressed, restored, write_compressed
from tractode.io.nifti import read_image
from tractode.io.trackvis import read_trk
from tractode.io.tractogram import read_tractogram
from tractode.io.tractogram_stream import stream_to
from tractode.io.transforms import read_transform

HERE = "given"


@dataclass(frozen=True)
class Place:
    """The space of a file of streamlines: the codec's own without transforms; ``reference`` is an image of it (for TRX headers).

    Transforms are applied to points in the order given.
    """

    transforms: tuple[Path, ...] = ()
    reference: Path | None = None

    def between(self, source: str, target: str) -> Chain | None:
        """The transforms as one, or ``None`` where the space is the codec's."""
        if not self.transforms:
            return None
        stops = [source, *(f"step-{number}" for number in range(1, len(self.transforms))), target]
        parts = zip(self.transforms, stops[:-1], stops[1:], strict=True)
        return Chain(tuple(read_transform(path, start, end) for path, start, end in parts))

    def grid(self, fallback: ImageGrid) -> ImageGrid:
        if self.reference is None:
            return fallback
        return read_image(self.reference, fallback.space)[0].grid


def encode(source: Path, target: Path, plan: CodecPlan, place: Place) -> dict[str, Any]:
    """A tractogram → a compressed one; what is left out and how far lines are from the truth."""
    coding = BundleCoding(plan.codec(), plan)
    notes = _code(coding, source, place, lambda lines: None)
    with atomic_path(target) as path:
        write_compressed(path, coding.compressed(plan.weights_facts()["SHA256"]))
    return {**coding.compression(target.stat().st_size), "Notes": notes}


def decode(source: Path, target: Path, plan: CodecPlan, place: Place) -> dict[str, Any]:
    """A compressed tractogram → ``.trx`` (with names and groups) or ``.tck``."""
    codec, content = plan.codec(), read_compressed(source)
    check_weights(content, plan.weights_facts()["SHA256"], source)
    lines = restored(content, codec)
    bundle, confidence = names_of(content, codec, plan.min_confidence)
    moved = _moved(lines, place.between(lines.space, HERE))
    _write(target, moved, bundle, confidence, codec.names, place.grid(codec.box))
    return {
        "Streamlines": len(lines),
        "LargestErrorAllowedMillimetres": content.bound_mm,
        "StreamlinesKeptAsPoints": int(content.is_exact.sum()),
        "Bundles": _counts(bundle, codec.names),
    }


def name(source: Path, target: Path, plan: CodecPlan, place: Place, table: Path | None = None) -> dict[str, Any]:
    """The same lines as TRX with codes, names and groups, and a table of the bundles if it is wanted."""
    _need_trx(target)
    coding = BundleCoding(plan.codec(), plan)
    grid = _grid_of(source, place, coding.codec.box)
    with atomic_path(target) as path, stream_to(path, grid) as out:
        notes = _code(coding, source, place, out.append)
        summaries, latents = coding.summaries()
        out.add_groups(coding.groups())
        out.add_group_data(group_data(summaries, latents))
    if table is not None:
        write_text(table, table_of(summaries, latents))
    counts = _counts(coding.bundles, coding.names)
    return {"Streamlines": coding.n_coded, "SetAside": coding.set_aside, "Bundles": counts, "Notes": notes}


def synthesise(
    target: Path, bundles: Sequence[str], n: int, seed: int, plan: CodecPlan, place: Place
) -> dict[str, Any]:
    """``n`` new streamlines of each named bundle, drawn from the distribution of its latents."""
    codec = plan.codec()
    known = list(codec.prior.names)
    for wanted in bundles:
        if wanted not in known:
            near = difflib.get_close_matches(wanted, known, 3, 0.4)
            raise UsageError(
                f"The codec knows no bundle named {wanted!r}",
                id="E-CODEC-BUNDLE",
                needed=f"names among its {len(known)} bundles",
                fix=f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}",
            )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parts = [codec.lines(codec.prior.sample(wanted, n, generator)).detach().cpu().float() for wanted in bundles]
    points = torch.cat(parts)
    lines = Streamlines(points.flatten(0, 1), torch.arange(len(points) + 1) * points.shape[1], codec.space)
    bundle = torch.repeat_interleave(torch.arange(len(bundles)), n)
    moved = _moved(lines, place.between(lines.space, HERE))
    _write(target, moved, bundle, None, tuple(bundles), place.grid(codec.box))
    return {"Streamlines": len(lines), "Bundles": _counts(bundle, bundles), "RandomSeed": seed}


def _code(coding: BundleCoding, source: Path, place: Place, take: Any) -> list[str]:
    """Code a file batch by batch; the reader's notes."""
    lines, notes = _read(source, HERE if place.transforms else coding.codec.space)
    there = place.between(HERE, coding.codec.space)
    for part in _batches(lines):
        take(coding.add(_moved(part, there), part))
    if not coding.n_coded:
        raise InputDataError(
            f"None of {coding.n_seen:,} streamlines is one that the codec can take",
            id="E-CODEC-EMPTY",
            path=source,
            needed=f"lines in {coding.codec.space}, longer than 1 mm",
            fix="give the transform to that space with --transform",
        )
    return notes


def _batches(lines: Streamlines) -> Iterator[Streamlines]:
    return (lines.select(part) for part in torch.arange(len(lines)).split(BATCH))


def _moved(lines: Streamlines, transform: Chain | None) -> Streamlines:
    return lines if transform is None else lines.moved(transform)


def _read(path: Path, space: str) -> tuple[Streamlines, list[str]]:
    if path.suffix == ".trk":
        return read_trk(path, space), []
    lines, notes = read_tractogram(path, space)
    return Streamlines(lines.points, lines.offsets, lines.space), [note.message for note in notes]


def _grid_of(source: Path, place: Place, fallback: ImageGrid) -> ImageGrid:
    """The image that a TRX file says its lines were made on, where no other is given."""
    if place.reference is None and source.suffix == ".trx":
        with zipfile.ZipFile(source) as archive:
            header = json.loads(archive.read("header.json"))
        x, y, z = (int(size) for size in header["DIMENSIONS"])
        affine = torch.tensor(header["VOXEL_TO_RASMM"], dtype=torch.float64)
        return ImageGrid((x, y, z), affine, fallback.space)
    return place.grid(fallback)


def _write(
    target: Path,
    lines: Streamlines,
    bundle: Tensor,
    confidence: Tensor | None,
    names: Sequence[str],
    grid: ImageGrid,
) -> None:
    data = {"bundle": bundle.to(torch.int32)} | ({} if confidence is None else {"confidence": confidence})
    with atomic_path(target) as path, stream_to(path, grid) as out:
        out.append(Streamlines(lines.points.float(), lines.offsets, lines.space, {}, data))
        out.add_groups({known: (bundle == number).nonzero().ravel() for number, known in enumerate(names)})


def _need_trx(path: Path) -> None:
    if path.suffix != ".trx":
        raise UsageError(
            f"{path.suffix or 'No extension'!r} cannot hold the names of streamlines",
            id="E-CODEC-FORMAT",
            path=path,
            needed=".trx",
            fix="give a name that ends in .trx",
        )


def _counts(bundle: Tensor, names: Sequence[str]) -> dict[str, int]:
    """Name → number of lines, for those that have any."""
    count = torch.bincount(bundle, minlength=len(names) + 1).tolist()
    return {known: n for known, n in zip([*names, OTHER], count, strict=True) if n}
