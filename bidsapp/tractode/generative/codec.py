"""The bundle codec: every streamline of a template as a few codewords, whatever its direction and its company.

Started from A. Lizarraga et al., "Differentiable VQ-VAE's for robust white matter streamline encodings" (VQ-Diff), 2023,
github.com/drewrl3v/diff-vq-vae. Departures: codes are discrete (the published latent is a mean of all codewords with
random weights); a line is coded by itself, so neither the order of lines nor their number matters; its direction is ruled by
its ends; the rate is set by how many stages of a residual quantiser are used; errors are in mm of the template.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.contracts import Codec, Codes
from tractode.errors import InputDataError
from tractode.fields import ImageGrid, Streamlines
from tractode.generative.bundle_prior import BundlePrior
from tractode.generative.codec_tables import CodecSettings, CodecTables
from tractode.generative.knots import points_of
from tractode.generative.line_code import N_POINTS, lines31, template_box, usable
from tractode.generative.naming import BundleNamer
from tractode.generative.space import SPACE

_TABLES, _NAMER, _PRIOR = "codec.", "namer.", "prior."
_TILE = 8192


class BundleCodec(Codec):
    """A trained codec, with the classifier that names what it encodes and the distribution that new lines are drawn from."""

    label: ClassVar[str] = "tractode"
    citation: ClassVar[str] = "lizarraga2023"
    is_discrete = True
    is_reversal_invariant: ClassVar[bool] = True
    is_order_invariant: ClassVar[bool] = True
    space = SPACE

    def __init__(self, tables: CodecTables, namer: BundleNamer | None = None, prior: BundlePrior | None = None) -> None:
        self.tables, self.namer, self.prior = tables, namer, prior
        self.stages, self.beam = tables.settings.stages, 1

    @classmethod
    def tiny(cls, seed: int = 0) -> BundleCodec:
        """Untrained but for its transform, which is that of random smooth curves; names two bundles."""
        generator = torch.Generator().manual_seed(seed)
        tables = CodecTables(CodecSettings(n_latent=20, n_codewords=64, stages=6, most_stages=8))
        tables.begin(_curves(2000, generator), generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            namer = BundleNamer(("left", "right"), 20, width=16)
        lines = _curves(400, generator)
        return cls(
            tables, namer, BundlePrior.fit(tables.latents(lines), torch.arange(400) % 2, ("left", "right"), lines)
        )

    @classmethod
    def from_weights(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> BundleCodec:
        """What `weights` gave."""
        tables = CodecTables(CodecSettings(**settings["codec"]))
        tables.load_state_dict(_inner(tensors, _TABLES), strict=False)
        namer = prior = None
        if "namer" in settings:
            namer = BundleNamer.from_settings(settings["namer"])
            namer.load_state_dict(_inner(tensors, _NAMER))
        if "prior" in settings:
            prior = BundlePrior.from_settings(settings["prior"])
            prior.load_state_dict(_inner(tensors, _PRIOR))
        return cls(tables, namer, prior)

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and settings to store; what only learning needs is left out."""
        tensors = {
            _TABLES + name: value
            for name, value in self.tables.state_dict().items()
            if name not in ("quantiser.count", "quantiser.total")
        }
        settings: dict[str, Any] = {"codec": self.tables.settings.record()}
        for prefix, part in ((_NAMER, self.namer), (_PRIOR, self.prior)):
            if part is not None:
                tensors |= {prefix + name: value for name, value in part.state_dict().items()}
                settings[prefix.removesuffix(".")] = part.settings()
        return tensors, settings

    def with_stages(self, stages: int) -> BundleCodec:
        """The same codec at another rate; any first stages are a code."""
        if not 1 <= stages <= self.most_stages:
            raise ValueError(f"There are codebooks for 1 to {self.most_stages} stages; {stages} were asked for.")
        other = copy(self)
        other.stages = stages
        return other

    def with_beam(self, beam: int) -> BundleCodec:
        """The same codec with a search among so many partial sums: smaller errors at the same rate, several times slower."""
        if beam < 1:
            raise ValueError(f"At least one partial sum is kept; {beam} were asked for.")
        other = copy(self)
        other.beam = beam
        return other

    def to(self, device: torch.device | str) -> BundleCodec:
        for part in (self.tables, self.namer, self.prior):
            if part is not None:
                part.to(device)
        return self

    @property
    def most_stages(self) -> int:
        return self.tables.settings.most_stages

    @property
    def names(self) -> tuple[str, ...]:
        """The bundles that it can name, without "other"."""
        return () if self.namer is None else self.namer.names

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each column of a code may have."""
        return (self.tables.settings.n_codewords,) * self.stages

    @property
    def bits_per_streamline(self) -> float:
        return sum(math.log2(n) for n in self.levels)

    @property
    def box(self) -> ImageGrid:
        return template_box()

    def latents(self, lines: Float[Tensor, "s 31 3"]) -> Float[Tensor, "s d"]:
        """Before quantisation, in mm; differentiable."""
        return self.tables.latents(lines)

    def quantise(self, latents: Float[Tensor, "s d"]) -> Int[Tensor, "s q"]:
        """Codes, in the precision of the latents."""
        return self.tables.quantiser.codes(latents, self.stages, self.beam)

    def dequantise(self, codes: Int[Tensor, "s q"]) -> Float[Tensor, "s d"]:
        """The latents that codes stand for."""
        return self.tables.quantiser.vectors(codes)

    def straight_through(self, latents: Float[Tensor, "s d"]) -> Float[Tensor, "s d"]:
        """Quantised latents whose gradient is that of the latents (Bengio et al. 2013, doi:10.48550/arXiv.1308.3432)."""
        return latents + (self.dequantise(self.quantise(latents)) - latents).detach()

    def lines(self, latents: Float[Tensor, "s d"]) -> Float[Tensor, "s 31 3"]:
        """31 points of each line, RAS+ mm of the template; differentiable."""
        return self.tables.lines(latents)

    @torch.no_grad()
    def encode(self, streamlines: Streamlines) -> Codes:
        """Codes of usable streamlines of the template, a row each. Computed in double precision: neither the company of a
        line nor the machine changes its code.

        Raises
        ------
        InputDataError
            A streamline is of another space, not finite, shorter than 1 mm, or outside the template's box.
        """
        self._check(streamlines)
        device = self.tables.mean.device
        lines = lines31(streamlines)
        parts = [self.quantise(self.latents(part.to(device))).cpu() for part in lines.split(_TILE)]
        values = torch.cat(parts) if parts else torch.zeros(0, self.stages, dtype=torch.long)
        return Codes(values, len(streamlines))

    @torch.no_grad()
    def decode(self, codes: Codes, n_points: int = 64) -> Streamlines:
        """Lines by ``n_points`` points of the spline through 31 decoded ones, each in the one direction of `one_way`.

        Raises
        ------
        InputDataError
            A code is out of range.
        """
        values = codes.values
        if len(values) and not (int(values.min()) >= 0 and int(values.max()) < self.tables.settings.n_codewords):
            raise InputDataError(
                f"Codes must be 0 to {self.tables.settings.n_codewords - 1}; found {int(values.min())} to {int(values.max())}",
                id="E-CODEC-RANGE",
            )
        device = self.tables.mean.device
        parts = [
            points_of(self.lines(self.dequantise(part.to(device))), n_points).cpu() for part in values.split(_TILE)
        ]
        points = torch.cat(parts).flatten(0, 1) if parts else torch.zeros(0, 3)
        offsets = torch.arange(len(values) + 1) * n_points
        return Streamlines(points, offsets, self.space)

    def _check(self, streamlines: Streamlines) -> None:
        if streamlines.space != self.space:
            raise InputDataError(
                f"The codec takes streamlines of {self.space}; these are of {streamlines.space}",
                id="E-CODEC-SPACE",
                fix="carry them there with the registration's transform",
            )
        n_bad = len(streamlines) - int(usable(streamlines, self.box).sum())
        if n_bad:
            raise InputDataError(
                f"{n_bad} of {len(streamlines)} streamlines have no code: not finite, shorter than 1 mm, or outside the template's box",
                id="E-CODEC-LINES",
                fix="set them aside first (tractode.generative.line_code.usable)",
            )


def _inner(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _curves(n: int, generator: torch.Generator) -> Float[Tensor, "n 31 3"]:
    """Smooth random curves about the middle of the brain."""
    mode = torch.arange(5)
    wave = torch.cos(math.pi * mode[:, None] * torch.linspace(0, 1, N_POINTS))
    amount = torch.randn(n, 5, 3, generator=generator) * (18.0 / (1 + mode) ** 1.5)[:, None]
    return torch.einsum("nka,kp->npa", amount, wave)
