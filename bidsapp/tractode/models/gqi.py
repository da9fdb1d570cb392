"""Generalised q-sampling imaging: the spin distribution of any sampling of q-space, by one matrix product.

Yeh, Wedeen & Tseng, *Generalized q-sampling imaging*, IEEE TMI 2010, doi:10.1109/TMI.2010.2045126; quantitative anisotropy
of Yeh et al., *Deterministic diffusion fiber tracking improved by quantitative anisotropy*, PLoS ONE 2013,
doi:10.1371/journal.pone.0080713. Departures: the distribution is kept as spherical harmonics, whose factors follow from the
kernel by the Funk–Hecke theorem, instead of values at directions; it is the mean over volumes and not their sum, and its map
has an integral of 1; quantitative anisotropy is in units of the signal (the paper's scale Z0, which makes free water 1, needs a whole scan).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import MapSpec, OrientationModel
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.fields.needs import FEWEST_DIRECTIONS, LEAST_B, Needs
from tractode.models import odf
from tractode.ops import least_squares, sh_extrema
from tractode.ops import spherical_harmonics as sh

_SIX_D = 0.01506  # mm²/s: six times the diffusivity of free water, as in the paper's length sqrt(6 D τ)
_TYPICAL = 0.7e-3  # mm²/s
_NODES = np.polynomial.legendre.leggauss(200)


@dataclass(frozen=True)
class GQI(OrientationModel):
    """Parameters: SH coefficients of the spin distribution, in units of the signal.

    ``standard`` is the paper's kernel, ``gqi2`` weights displacements by the square of their length; ``sampling_length`` is the
    largest displacement, in units of free water's.
    """

    method: Literal["standard", "gqi2"] = "standard"
    sampling_length: float = 1.25
    order: int = 8

    label: ClassVar[str] = "gqi"
    citation: ClassVar[str] = "Yeh2010"
    needs: ClassVar[Needs] = Needs(directions=FEWEST_DIRECTIONS, volumes=FEWEST_DIRECTIONS, reach=LEAST_B)
    recovers: ClassVar[float] = 1e-8
    cutoff: ClassVar[float | None] = 0.0875  # a tenth above the uniform distribution
    maps: ClassVar[tuple[MapSpec, ...]] = (
        MapSpec(
            "odf",
            "Spin distribution by generalised q-sampling (integral 1)",
            "arbitrary",
            components="sh",
            invariant=False,
        ),
        MapSpec("gfa", "Generalised fractional anisotropy of the spin distribution", "arbitrary"),
        MapSpec(
            "qa",
            "Quantitative anisotropy: largest less smallest value of the spin distribution, in units of the signal",
            "arbitrary",
        ),
        MapSpec("iso", "Isotropic part: smallest value of the spin distribution, in units of the signal", "arbitrary"),
    )

    @classmethod
    def why_not(cls, gtab: GradientTable) -> str | None:
        return super().why_not(gtab) or odf.not_spanning(gtab)

    def facts(self) -> dict[str, Any]:
        return {"Order": self.order, "Kernel": self.method, "SamplingLength": self.sampling_length}

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v l"]:
        if reason := self.why_not(gtab):
            raise InputDataError(
                reason, id="E-GQI-TABLE", needed="b=0 and at least 15 weighted volumes that span the sphere"
            )
        matrix = self._matrix(gtab)[0].to(signal.device)
        return least_squares.in_tiles(lambda tile: (tile.to(torch.float64) @ matrix.mT).to(tile.dtype), signal)

    def predict(self, params: Float[Tensor, "v l"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """The signals with this distribution that are nearest to an isotropic medium's: the method itself has no signal model.

        ``W Kᵀ (K W Kᵀ)⁺ ψ`` with the weights W for which a medium of 0.7 × 10⁻³ mm²/s is predicted exactly.
        """
        matrix, isotropic = self._matrix(gtab)
        b = gtab.bvals.detach().to("cpu", torch.float64)
        root = ((-b * _TYPICAL).exp() / isotropic.clamp_min(0.05 * float(isotropic.max()))).sqrt()
        inverse = root[:, None] * torch.linalg.pinv(matrix * root, rtol=1e-10)
        return params @ inverse.to(params).mT

    def _matrix(self, gtab: GradientTable) -> tuple[Float[Tensor, "l n"], Float[Tensor, " n"]]:
        """Signals → coefficients, float64 on the CPU; and the factor of degree 0 of each volume."""
        b = gtab.bvals.detach().to("cpu", torch.float64)
        bvecs = gtab.bvecs.detach().to("cpu", torch.float64)
        directions = torch.where(gtab.is_b0.cpu()[:, None], bvecs.new_tensor([0.0, 0.0, 1.0]), bvecs)
        factors = kernel_factors(self.sampling_length * (_SIX_D * b).sqrt(), self.order, self.method)
        per_coefficient = factors[:, sh.degrees(self.order) // 2]
        return (sh.basis(directions, self.order) * per_coefficient).mT / len(b), factors[:, 0]

    def to_maps(self, params: Float[Tensor, "v l"]) -> dict[str, Float[Tensor, "v _"]]:
        low = sh_extrema.smallest(params)[0]
        return {
            "odf": odf.of_unit_integral(params),
            "gfa": odf.gfa(params),
            "qa": sh_extrema.largest(params)[0] - low,
            "iso": low,
        }

    def to_sh(self, params: Float[Tensor, "v l"], order: int) -> Float[Tensor, "v l2"]:
        """Scaled to an integral of 1."""
        return odf.cut_to(odf.of_unit_integral(params), order)

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n l"]:
        """Distributions with one or two broad lobes."""
        return 300 * odf.example_profiles(seed, n, self.order, -0.6)


def kernel_factors(lengths: Float[Tensor, " n"], order: int, method: str) -> Float[Tensor, "n r"]:
    """Funk–Hecke factors ``2π ∫ h(λt) P_l(t) dt`` of the kernel, for each volume's λ and each even degree.

    ``h(x) = sin x / x``, or ``∫₀¹ r² cos(rx) dr`` for ``gqi2`` (Yeh 2010, eqs. 7 and 9).
    """
    nodes, weights = (torch.from_numpy(part.copy()) for part in _NODES)
    x = lengths[:, None] * nodes
    values = torch.sinc(x / math.pi) if method == "standard" else _squared_radial(x)
    legendre = [np.polynomial.legendre.Legendre.basis(degree)(_NODES[0]) for degree in range(0, order + 1, 2)]
    return 2 * math.pi * (values * weights) @ torch.from_numpy(np.stack(legendre, axis=-1))


def _squared_radial(x: Float[Tensor, "n q"]) -> Float[Tensor, "n q"]:
    small = x.abs() < 0.05
    far = torch.where(small, torch.ones_like(x), x)
    exact = (2 * far * far.cos() + (far**2 - 2) * far.sin()) / far**3
    return torch.where(small, 1 / 3 - x**2 / 10 + x**4 / 168, exact)
