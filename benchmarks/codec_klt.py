"""Plain transform coding, the baseline that learned codecs have to beat: Karhunen-Loeve transform, equal steps, no network.

Lines run one way and have 31 points; their 93 coordinates are turned to the principal axes of lines to learn from, and every
coefficient is rounded to multiples of one step. ``bits_per_streamline`` is of codes of fixed length (levels as wide as the lines to
learn from need), ``ideal_bits`` what an entropy coder with the histograms of those lines needs for others.
"""

from __future__ import annotations

import math

import torch
from codec_test_set import as_streamlines
from jaxtyping import Float, Int
from torch import Tensor

from tractode.contracts import Codes
from tractode.fields import Streamlines
from tractode.generative.knots import points_of
from tractode.generative.line_code import lines31
from tractode.generative.space import SPACE


class Klt:
    """Transform coding with steps of ``step`` mm."""

    label, is_discrete, is_deterministic = "klt", True, True

    def __init__(self, learned: Float[Tensor, "s 31 3"], step: float) -> None:
        flat = lines31(as_streamlines(learned[None])).flatten(1).double()
        self.step, self.mean = step, flat.mean(0)
        variance, axes = torch.linalg.eigh(torch.cov(flat.mT))
        self.axes, self.variance = axes.flip(1), variance.flip(0)
        levels = self.quantise(self.latents(flat.reshape(-1, 31, 3).float()))
        self.least, self.largest = levels.amin(0), levels.amax(0)
        self.levels = tuple((self.largest - self.least + 1).tolist())
        self._share = [
            (torch.bincount(column - low, minlength=n).double() + 0.5) / (len(column) + 0.5 * n)
            for column, low, n in zip(levels.T, self.least, self.levels, strict=True)
        ]

    @property
    def bits_per_streamline(self) -> float:
        return sum(math.ceil(math.log2(n)) for n in self.levels)

    @property
    def n_bytes(self) -> int:
        """Axes in use and mean, by 16 bits."""
        return 2 * (sum(n > 1 for n in self.levels) + 1) * 93

    def latents(self, lines: Float[Tensor, "s 31 3"]) -> Float[Tensor, "s 93"]:
        return ((lines.flatten(1).double() - self.mean) @ self.axes).float()

    def quantise(self, latents: Float[Tensor, "s 93"]) -> Int[Tensor, "s 93"]:
        return (latents / self.step).round().long()

    def dequantise(self, codes: Int[Tensor, "s 93"]) -> Float[Tensor, "s 93"]:
        return codes * self.step

    def lines(self, latents: Float[Tensor, "s 93"]) -> Float[Tensor, "s 31 3"]:
        return (latents.double() @ self.axes.mT + self.mean).reshape(-1, 31, 3).float()

    def encode(self, streamlines: Streamlines) -> Codes:
        levels = self.quantise(self.latents(lines31(streamlines).float()))
        return Codes(levels.clamp(self.least, self.largest) - self.least, len(streamlines))

    def decode(self, codes: Codes, n_points: int = 64) -> Streamlines:
        lines = self.lines(self.dequantise(codes.values + self.least))
        points = points_of(lines, n_points).float()  # the spline that ours is decoded by
        return Streamlines(points.reshape(-1, 3), torch.arange(len(lines) + 1) * n_points, SPACE)

    def ideal_bits(self, codes: Int[Tensor, "s 93"]) -> float:
        """Mean length of a streamline's code, bits."""
        return float(sum(-share[column].log2().mean() for share, column in zip(self._share, codes.T, strict=True)))
