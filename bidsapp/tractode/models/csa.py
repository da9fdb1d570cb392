"""The orientation distribution in constant solid angle, from one shell, by Q-ball imaging with the right volume element.

Aganj et al., *Reconstruction of the orientation distribution function in single- and multiple-shell q-ball imaging
within constant solid angle*, MRM 2010, doi:10.1002/mrm.22365; regularisation of Descoteaux et al., MRM 2007,
doi:10.1002/mrm.21277. Departures: attenuations are cut to 0.001–0.999 without the paper's rounded corners; the parameters
are those of the decay that the paper assumes, ``S = S0 exp(−b D(u))``, so that signals can be predicted from them.
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

_CUT = 1e-3
_B_SCALE = 1000.0  # D in µm²/ms: its logarithm is then near 0


@dataclass(frozen=True)
class CSA(odf.ShellOdf):
    """Parameters: ln S0, then SH coefficients of ln D(u), D in µm²/ms along each direction."""

    label: ClassVar[str] = "csa"
    citation: ClassVar[str] = "Aganj2010"
    maps: ClassVar[tuple[MapSpec, ...]] = (
        MapSpec(
            "odf",
            "Orientation distribution in constant solid angle (integral 1)",
            "arbitrary",
            components="sh",
            invariant=False,
        ),
        MapSpec("gfa", "Generalised fractional anisotropy of the orientation distribution", "arbitrary"),
        MapSpec("s0", "Signal without diffusion weighting", "arbitrary"),
    )

    def predict(self, params: Float[Tensor, "v p"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """``S0 exp(−b D(u))`` at any b-value: the decay with one exponential that the method rests on."""
        gtab = gtab.to(params)
        profile = (params[:, 1:] @ sh.basis(_directions(gtab), self.order).mT).exp()
        return (params[:, :1] - gtab.bvals / _B_SCALE * profile).exp()

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v p"]:
        shell = self.shell(gtab)
        inverse = odf.harmonic_fit(gtab.bvecs[shell], self.order, self.smooth).to(signal.device)
        b = gtab.bvals[shell].to(signal.device, torch.float64) / _B_SCALE
        used = torch.cat([shell, gtab.is_b0.nonzero().ravel().to(shell)]).to(signal.device)
        fitted = least_squares.in_tiles(lambda tile: _fit_tile(tile, inverse, b), signal[:, used])
        return fitted

    def to_maps(self, params: Float[Tensor, "v p"]) -> dict[str, Float[Tensor, "v _"]]:
        distribution = _distribution(params, self.order)
        return {"odf": distribution, "gfa": odf.gfa(distribution), "s0": params[:, :1].exp()}

    def to_sh(self, params: Float[Tensor, "v p"], order: int) -> Float[Tensor, "v l"]:
        return odf.cut_to(_distribution(params, self.order), order)

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n p"]:
        """Profiles of the logarithm of D of degree 2, D between 0.3 and 1.1 µm²/ms; S0 between 50 and 1000."""
        generator = torch.Generator().manual_seed(seed + 1)
        log_s0 = torch.rand(n, 1, generator=generator, dtype=torch.float64) * 3 + 3.9
        return torch.cat([log_s0, -odf.example_profiles(seed, n, self.order, 0.9)], dim=-1)


def _directions(gtab: GradientTable) -> Float[Tensor, "n 3"]:
    """The table's directions, with any one for b=0, where it does not matter."""
    return torch.where(gtab.is_b0[:, None], gtab.bvecs.new_tensor([0.0, 0.0, 1.0]), gtab.bvecs)


def _fit_tile(
    signal: Float[Tensor, "t n"], inverse: Float[Tensor, "l m"], b: Float[Tensor, " m"]
) -> Float[Tensor, "t p"]:
    dtype, signal = signal.dtype, signal.to(torch.float64)
    m = len(b)
    s0 = signal[:, m:].mean(-1, keepdim=True)
    usable = s0 > torch.finfo(torch.float32).tiny
    s0 = torch.where(usable, s0, torch.ones_like(s0))
    attenuation = (signal[:, :m] / s0).clamp(_CUT, 1 - _CUT)
    profile = (-attenuation.log()).log() - b.log()
    log_s0 = torch.where(usable, s0.log(), torch.full_like(s0, math.log(torch.finfo(torch.float32).tiny)))
    return torch.cat([log_s0, profile @ inverse.mT], dim=-1).to(dtype)


def _distribution(params: Float[Tensor, "v p"], order: int) -> Float[Tensor, "v l"]:
    """``1/4π + FRT{∇²ln(−ln E)} / 16π²`` (Aganj, eq. 15): the constant drops out of the Laplacian."""
    degree = sh.degrees(order).double()
    factors = (-degree * (degree + 1) * odf.legendre_at_zero(order) / (8 * math.pi)).to(params)
    uniform = torch.zeros_like(factors)
    uniform[0] = odf.UNIT_INTEGRAL
    return uniform + factors * params[:, 1:]
