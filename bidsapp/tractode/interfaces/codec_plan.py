"""What was asked of the bundle codec, and the coding of one set of streamlines: codes, names, summaries, and what was set aside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tractode.errors import InputDataError
from tractode.evaluate.bundle_summary import BundleSummary, BundleSums, latents_of
from tractode.fields import Streamlines
from tractode.fields.line_shape import one_way, resampled
from tractode.generative import CODECS
from tractode.generative.bounded_code import (
    Bounded,
    ErrorSpread,
    bounded,
    check_bound,
    fewest_points,
    largest_error,
    refined,
)
from tractode.generative.line_code import lines31, usable
from tractode.io import compressed_tractogram as files
from tractode.io.weights import read_weights, shipped, stored_sums

CODEC = "tractode"
OTHER = "other"
BATCH = 20_000
_PEER_POINTS = 20
_NAMED_ROWS = 4096
_EVERY = 20


@dataclass(frozen=True)
class CodecPlan:
    """The settings of ``--encode-bundles``: the largest error of the compressed tractogram in mm, the least confidence of a name."""

    max_error_mm: float = 2.0
    min_confidence: float = 0.5
    weights: Path | None = None

    def facts(self) -> dict[str, Any]:
        """Plain data: decides, with the files, whether a result can be reused."""
        return {**asdict(self), "weights": str(self.weights or "")}

    @property
    def folder(self) -> Path:
        return self.weights or shipped("codec")

    def files(self) -> list[Path]:
        """The files of the weights that decide the result."""
        return [self.folder / name for name in stored_sums(self.folder)]

    def weights_facts(self) -> dict[str, Any]:
        """The name of the weights and the sha256 of each of their files."""
        return {"Name": self.folder.name, "SHA256": stored_sums(self.folder)}

    def codec(self) -> Any:
        """The codec with its weights, its namer and its prior.

        Raises
        ------
        ResourceUnavailableError, InputDataError
            The weights are not there, are not what their sums say, or are of another model.
        """
        check_bound(self.max_error_mm)
        return load_codec(self.folder)


def load_codec(folder: Path) -> Any:
    """A codec that codes single lines and can name them, from the folder of its weights."""
    tensors, settings = read_weights(folder)
    try:
        codec = CODECS[CODEC].from_weights(tensors, settings)
        if codec.namer is None or codec.prior is None:
            raise KeyError("namer, prior")
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputDataError(
            f"These are not weights of the bundle codec ({type(error).__name__} in their settings or tensors)",
            id="E-CODEC-WEIGHTS",
            path=folder,
            needed="a folder of a codec with its namer and its prior, like the one that came with the installation",
            fix="give another folder, or leave --codec-weights out",
        ) from error
    return codec


class BundleCoding:
    """Streamlines coded and named batch by batch; what is asked of all of them together is there at the end."""

    def __init__(self, codec: Any, plan: CodecPlan, device: str = "cpu") -> None:
        self.codec, self.plan, self.device = codec.to(device), plan, device
        self.names: tuple[str, ...] = tuple(codec.namer.names)
        references = dict(zip(self.names, codec.prior.reference, strict=True))
        self.sums = BundleSums(self.names, references)
        self.set_aside = {"NotFinite": 0, "TooShort": 0, "OutsideTemplate": 0}
        self.stored_spread, self.peer_spread = ErrorSpread(), ErrorSpread()
        self.n_seen = self.n_points = 0
        self._parts: list[Bounded] = []
        self._needed: list[Tensor] = []
        self._bundles: list[Tensor] = []
        self._code_errors: list[Tensor] = []

    def add(self, there: Streamlines, here: Streamlines | None = None) -> Streamlines:
        """Code and name lines of the codec's space; gives back those that have codes, where they came from, with their data.

        ``here`` is the same lines elsewhere, in the scan for instance; lengths are measured there.
        """
        here = there if here is None else here
        good = usable(there, self.codec.box)
        self._count(there, ~good)
        row = good.nonzero().ravel()
        first = self.n_seen
        self.n_seen += len(there)
        there, here = there.select(row), here.select(row)
        self.n_points += len(there.points)
        if not len(there):
            return here
        stored = bounded(self.codec, there, self.plan.max_error_mm, self.stored_spread)
        self._parts.append(stored)
        self._compare(there)
        codes = stored.codes[:, : len(self.codec.levels)]
        bundle, confidence = self._named(codes)
        self._bundles.append(bundle)
        self.sums.add(lines31(there), bundle, here.lengths().detach().cpu(), confidence)
        data = {
            "code": codes.to(torch.uint8 if max(self.codec.levels) <= 256 else torch.int32),
            "bundle": bundle.to(torch.int32),
            "confidence": confidence.float(),
            "index": (row + first).to(torch.int32),
        }
        return Streamlines(here.points.detach().cpu().float(), here.offsets.cpu(), here.space, {}, data)

    def _count(self, lines: Streamlines, is_bad: Bool[Tensor, " s"]) -> None:
        if not bool(is_bad.any()):
            return
        broken = torch.zeros(len(lines), dtype=torch.bool, device=is_bad.device)
        broken[lines.streamline_of_point[~torch.isfinite(lines.points).all(-1)]] = True
        clean = Streamlines(torch.nan_to_num(lines.points.detach()), lines.offsets, lines.space)
        short = ~broken & ((lines.n_points < 2) | (clean.lengths() <= 1.0))
        for name, which in (("NotFinite", broken), ("TooShort", short), ("OutsideTemplate", ~broken & ~short)):
            self.set_aside[name] += int((which & is_bad).sum())

    def _compare(self, lines: Streamlines) -> None:
        """The error of the same lines at 20 points in float16, a common way to store them."""
        lines = one_way(lines)
        few = resampled(lines, _PEER_POINTS).half().double()
        self.peer_spread.add((refined(few) - resampled(lines, 64)).norm(dim=-1))
        self._code_errors.append(largest_error(lines, few).float())
        some = torch.arange(0, len(lines), _EVERY)
        self._needed.append(fewest_points(lines.select(some), self.plan.max_error_mm))

    def _named(self, codes: Int[Tensor, "s c"]) -> tuple[Int[Tensor, " s"], Tensor]:
        """From the codes alone, so that a decoded file gives the same names."""
        return named(self.codec, codes.to(self.device), self.plan.min_confidence)

    @property
    def bundles(self) -> Int[Tensor, " s"]:
        """Of every line that has a code, in order: an index into the names, or their number for "other"."""
        return torch.cat(self._bundles) if self._bundles else torch.zeros(0, dtype=torch.long)

    @property
    def n_coded(self) -> int:
        return len(self.bundles)

    def groups(self) -> dict[str, Int[Tensor, " m"]]:
        bundle = self.bundles
        return {name: (bundle == number).nonzero().ravel() for number, name in enumerate(self.names)}

    def summaries(self) -> tuple[list[BundleSummary], Tensor]:
        """Of every bundle that has lines, and the latent of each mean course."""
        found = self.sums.summaries()
        return found, latents_of(found, lambda courses: self.codec.latents(courses.to(self.device)))

    def stored(self) -> Bounded:
        """All lines as they are stored."""
        columns = self.codec.most_stages
        if not self._parts:
            nothing, none = torch.zeros(0), torch.zeros(0, dtype=torch.long)
            return Bounded(none.reshape(0, columns), none, nothing.reshape(0, 3).half(), none, nothing)
        names = ("codes", "stages", "points", "n_points", "error")
        return Bounded(*(torch.cat([getattr(part, name) for part in self._parts]) for name in names))

    def compressed(self, weights: Mapping[str, str]) -> files.Compressed:
        facts = {"SetAside": self.set_aside, "PointErrorMillimetres": self.stored_spread.facts()}
        return files.compressed(self.codec, self.stored(), weights, self.plan.max_error_mm, facts)

    def compression(self, n_bytes: int) -> dict[str, Any]:
        """Sizes and errors, for a sidecar: of the file as it is, and of TRX with float16 positions, whole and at 20 points a line."""
        stored, n = self.stored(), self.n_coded
        whole, few = (6 * n_points + 4 * (n + 1) for n_points in (self.n_points, _PEER_POINTS * n))
        is_coded = stored.stages > 0
        levels = self.codec.with_stages(self.codec.most_stages).levels
        kinds, counts = stored.stages[is_coded].unique(return_counts=True)
        bits = sum(
            files.bits_of(levels[:tier]) * count for tier, count in zip(kinds.tolist(), counts.tolist(), strict=True)
        )
        needed = torch.cat(self._needed).double().mean() if n else torch.zeros(())
        within = round((6 * float(needed) + 4) * n)
        peer = torch.cat(self._code_errors) if self._code_errors else torch.zeros(0)
        return {
            "Streamlines": n,
            "SetAside": dict(self.set_aside),
            "LargestErrorAllowedMillimetres": self.plan.max_error_mm,
            "PointErrorMillimetres": self.stored_spread.facts(),
            "LargestErrorMillimetres": round(float(stored.error.max()), 4) if n else None,
            "StreamlinesKeptAsPoints": int((~is_coded).sum()),
            "ShareKeptAsPoints": round(float((~is_coded).float().mean()), 5) if n else None,
            "BitsPerCodedStreamline": round(bits / max(int(is_coded.sum()), 1), 1),
            "Bytes": n_bytes,
            "BytesOfTRXFloat16": whole,
            "RatioToTRXFloat16": round(whole / n_bytes, 2),
            "BytesOfTRXFloat16At20Points": few,
            "RatioToTRXFloat16At20Points": round(few / n_bytes, 2),
            "BytesOfTRXFloat16AtFewestPoints": within,
            "RatioToTRXFloat16AtFewestPoints": round(within / n_bytes, 2),
            "PointErrorMillimetresAt20Points": self.peer_spread.facts(),
            "ShareWithinBoundAt20Points": round(float((peer <= self.plan.max_error_mm).float().mean()), 5)
            if n
            else None,
        }


def named(codec: Any, codes: Int[Tensor, "s c"], least: float) -> tuple[Int[Tensor, " s"], Tensor]:
    """The bundle of each line, an index into the namer's names or their number for "other", and the confidence in it."""
    found, sure = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0)]
    with torch.no_grad():
        for rows in codes.split(_NAMED_ROWS):
            bundle, confidence = codec.namer.named(codec.dequantise(rows), least)
            found.append(bundle.detach().cpu().long())
            sure.append(confidence.detach().cpu().float())
    return torch.cat(found), torch.cat(sure)


def names_of(content: files.Compressed, codec: Any, least: float) -> tuple[Int[Tensor, " s"], Tensor]:
    """Names of the lines of a compressed tractogram, from what it holds: of plain lines fewer stages than were named when it was made."""
    bundle, confidence = torch.full((len(content),), len(codec.namer.names)), torch.zeros(len(content))
    for tier in content.stages.unique().tolist():
        mine = (content.stages == tier).nonzero().ravel()
        if tier:
            codes = content.codes[mine, :tier]
        else:
            lines = files.restored(content, codec).select(mine)
            good = usable(lines, codec.box)  # rounding may carry one over the border
            mine = mine[good]
            codes = codec.encode(lines.select(good.nonzero().ravel())).values.cpu().long()
        bundle[mine], confidence[mine] = named(codec, codes, least)
    return bundle, confidence


__all__ = ["BATCH", "OTHER", "BundleCoding", "CodecPlan", "load_codec", "named", "names_of"]
