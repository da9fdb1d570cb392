"""Q-ball imaging of one shell: the Funk–Radon transform of the signal, in spherical harmonics.

Tuch, *Q-ball imaging*, MRM 2004, doi:10.1002/mrm.20279; analytical form and regularisation of Descoteaux et al.,
*Regularized, fast, and robust analytical Q-ball imaging*, MRM 2007, doi:10.1002/mrm.21277. Departure: the distribution is
scaled to an integral of 1 instead of a range of 0 to 1, so that a voxel's values can be compared with another's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import MapSpec
from tractode.fields import GradientTable
from tractode.models import odf
from tractode.ops import least_squares
from tractode.ops import spherical_harmonics as sh


@dataclass(frozen=True)
class QBall(odf.ShellOdf):
    """Parameters: S0, then SH coefficients of the shell's signal."""

    label: ClassVar[str] = "qball"
    citation: ClassVar[str] = "Descoteaux2007"
    cutoff: ClassVar[float | None] = 0.0875  # a tenth above the uniform distribution
    maps: ClassVar[tuple[MapSpec, ...]] = (
        MapSpec(
            "odf",
            "Orientation distribution: Funk-Radon transform of the signal (integral 1)",
            "arbitrary",
            components="sh",
            invariant=False,
        ),
        MapSpec("gfa", "Generalised fractional anisotropy of the orientation distribution", "arbitrary"),
        MapSpec("s0", "Signal without diffusion weighting", "arbitrary"),
    )

    def predict(self, params: Float[Tensor, "v p"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """The signals of the shell that was fitted and of b=0; other shells cannot be predicted (E-ODF-SHELL)."""
        shell = odf.only_shell(gtab)
        amplitudes = params[:, 1:] @ sh.basis(gtab.bvecs[shell].to(params), self.order).mT
        b0 = gtab.is_b0.nonzero().ravel().to(shell)
        place = torch.cat([shell, b0]).argsort().to(params.device)
        return torch.cat([amplitudes, params[:, :1].expand(-1, len(b0))], dim=-1)[:, place]

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v p"]:
        shell = self.shell(gtab)
        inverse = odf.harmonic_fit(gtab.bvecs[shell], self.order, self.smooth).to(signal.device)
        b0 = gtab.is_b0.nonzero().ravel().to(shell)
        whole = inverse.new_zeros(1 + len(inverse), len(gtab))
        whole[0, b0], whole[1:, shell] = 1 / len(b0), inverse
        return least_squares.in_tiles(lambda tile: (tile.to(torch.float64) @ whole.mT).to(tile.dtype), signal)

    def to_maps(self, params: Float[Tensor, "v p"]) -> dict[str, Float[Tensor, "v _"]]:
        distribution = _distribution(params, self.order)
        return {"odf": distribution, "gfa": odf.gfa(distribution), "s0": params[:, :1]}

    def to_sh(self, params: Float[Tensor, "v p"], order: int) -> Float[Tensor, "v l"]:
        return odf.cut_to(_distribution(params, self.order), order)

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n p"]:
        """Signals of degree 2, from 0.1 to 1 of an S0 between 50 and 1000."""
        generator = torch.Generator().manual_seed(seed + 1)
        s0 = (torch.rand(n, 1, generator=generator, dtype=torch.float64) * 3 + 3.9).exp()
        return torch.cat([s0, 0.8 * s0 * odf.example_profiles(seed, n, self.order, 0.85)], dim=-1)


def _distribution(params: Float[Tensor, "v p"], order: int) -> Float[Tensor, "v l"]:
    """Each degree times ``2π P_l(0)`` (Funk–Hecke), then scaled to an integral of 1."""
    return odf.of_unit_integral(params[:, 1:] * (2 * math.pi * odf.legendre_at_zero(order)).to(params))
