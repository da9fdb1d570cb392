"""Mean-signal kurtosis: the kurtosis of the signal averaged over directions, which fibre dispersion leaves alone.

Henriques, Jespersen & Shemesh, *Microscopic anisotropy misestimation in spherical-mean single diffusion encoding MRI*, MRM
2019, doi:10.1002/mrm.27606; weights as in DIPY: the number of volumes of a shell times the square of its mean signal.
Departures: volumes above b = 3250 s/mm² are left out, and the kurtosis is cut at −3/7 and 10, as in `tractode.models.dki`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.contracts import MapSpec, SignalModel, table_of_shells
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.fields.needs import SHELLED, Needs
from tractode.ops import least_squares, log_linear

_B_SCALE = 1000.0
_LEAST_KURTOSIS, _LARGEST_KURTOSIS = -3 / 7, 10.0


@dataclass(frozen=True)
class MSDKI(SignalModel):
    """Parameters: mean-signal diffusivity D (mm²/s), V = D² K (µm⁴/ms²), then ln S0."""

    label: ClassVar[str] = "msdki"
    citation: ClassVar[str] = "Henriques2019"
    needs: ClassVar[Needs] = Needs(
        shells=2, directions=6, volumes=12, least_b=300.0, largest_b=3250.0, reach=1500.0, schemes=SHELLED
    )
    maps: ClassVar[tuple[MapSpec, ...]] = (
        MapSpec("msd", "Mean-signal diffusivity", "mm^2/s"),
        MapSpec("msk", "Mean-signal kurtosis", "arbitrary"),
        MapSpec("s0", "Signal without diffusion weighting", "arbitrary"),
    )

    def facts(self) -> dict[str, Any]:
        return {"LargestB": round(self.needs.largest_b)}

    @classmethod
    def example_table(cls, n: int = 60) -> GradientTable:
        return table_of_shells((1000.0, 2000.0), n)

    def predict(self, params: Float[Tensor, "v 3"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """``S0 exp(−b D + b² V / 6)``, the same along all directions."""
        unit = params.new_tensor([_B_SCALE, 1.0, 1.0])
        return (params * unit @ _design(gtab.bvals.to(params)).mT).exp()

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v 3"]:
        reason = self.why_not(gtab)
        if reason:
            raise InputDataError(reason, id="E-MSDKI-TABLE", needed="two shells between b=0 and 3250 s/mm², and b=0")
        groups = self._groups(gtab)
        b = torch.stack([gtab.bvals[index].double().mean() for index in groups]).to(signal.device)
        count = torch.tensor([len(index) for index in groups], dtype=torch.float64, device=signal.device)
        design = least_squares.Design(_design(b))

        def of_tile(tile: Tensor) -> Tensor:
            means = torch.stack([tile[:, index.to(tile.device)].to(torch.float64).mean(-1) for index in groups], -1)
            logs, level = log_linear.logarithm(means)
            found = design.weighted(logs, count[:, None] * (2 * logs).exp()).mT
            return torch.cat([found[:, :2], found[:, 2:] + level[:, None]], -1).to(tile.dtype)

        fitted = least_squares.in_tiles(of_tile, signal)
        return fitted / fitted.new_tensor([_B_SCALE, 1.0, 1.0])

    def _groups(self, gtab: GradientTable) -> list[Int[Tensor, " m"]]:
        shells = [index for b, index in gtab.shells() if b <= self.needs.largest_b]
        return [gtab.is_b0.nonzero().ravel(), *shells]

    def to_maps(self, params: Float[Tensor, "v 3"]) -> dict[str, Float[Tensor, "v _"]]:
        d = params[:, :1] * _B_SCALE
        usable = d > 0
        k = torch.where(usable, params[:, 1:2] / torch.where(usable, d, 1).square(), 0)
        return {"msd": params[:, :1], "msk": k.clamp(_LEAST_KURTOSIS, _LARGEST_KURTOSIS), "s0": params[:, 2:].exp()}

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n 3"]:
        """D in 0.5–1.5 × 10⁻³ mm²/s, K in 0.2–1.2, S0 between 50 and 1000."""
        generator = torch.Generator().manual_seed(seed)
        d, k, s = torch.rand(3, n, generator=generator, dtype=torch.float64).unbind()
        d = d + 0.5
        return torch.stack([d * 1e-3, d.square() * (k + 0.2), s * 3 + 3.9], -1)


def _design(bvals: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    b = bvals / _B_SCALE
    return torch.stack([-b, b.square() / 6, torch.ones_like(b)], -1)
