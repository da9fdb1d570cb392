"""The ball: isotropic diffusion, one diffusivity a voxel, fitted to log signals by least squares.

Stejskal & Tanner, *Spin diffusion measurements*, J Chem Phys 1965, doi:10.1063/1.1695690.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import MapSpec, SignalModel
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.ops import least_squares


@dataclass(frozen=True)
class Ball(SignalModel):
    """Parameters: D in mm²/s, then ln S0."""

    label: ClassVar[str] = "ball"
    citation: ClassVar[str] = "Stejskal1965"
    maps: ClassVar[tuple[MapSpec, ...]] = (
        MapSpec("diffusivity", "Isotropic diffusivity", "mm^2/s"),
        MapSpec("s0", "Signal without diffusion weighting", "arbitrary"),
    )

    @classmethod
    def why_not(cls, gtab: GradientTable) -> str | None:
        if float(gtab.bvals.max() - gtab.bvals.min()) < 100:
            return "The ball has 2 unknowns and this table has one b-value; give at least two"
        return None

    def predict(self, params: Float[Tensor, "v 2"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """``S0 exp(−b D)``."""
        b = gtab.to(params).bvals
        return (params[:, 1:] - params[:, :1] * b).exp()

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v 2"]:
        reason = self.why_not(gtab)
        if reason:
            raise InputDataError(reason, id="E-BALL-TABLE", needed="two b-values at least 100 s/mm² apart")
        b = gtab.to(signal).bvals / 1000  # µm²/ms: the two columns are then of one size
        design = torch.stack([-b, torch.ones_like(b)], dim=-1)
        logs = signal.clamp_min(torch.finfo(signal.dtype).tiny).log()
        # In tiles of fixed size: a voxel's result must not depend on how many others stand beside it.
        fitted = least_squares.in_tiles(lambda rows: least_squares.ordinary(design, rows), logs)
        return fitted / torch.tensor([1000.0, 1.0]).to(signal)

    def to_maps(self, params: Float[Tensor, "v 2"]) -> dict[str, Float[Tensor, "v _"]]:
        return {"diffusivity": params[:, :1], "s0": params[:, 1:].exp()}

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n 2"]:
        generator = torch.Generator().manual_seed(seed)
        unit = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        return torch.stack([(0.3 + 2.5 * unit[:, 0]) * 1e-3, 4 + 3 * unit[:, 1]], dim=-1)
