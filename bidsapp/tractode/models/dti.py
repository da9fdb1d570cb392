"""The diffusion tensor, fitted by linear or nonlinear least squares or by the likelihood of Rician noise.

Basser, Mattiello & LeBihan, *Estimation of the effective self-diffusion tensor from the NMR spin echo*, J Magn Reson B
1994, doi:10.1006/jmrb.1994.1037; the five ways to fit are `tractode.ops.log_linear`'s. Departures: FA is cut at 1 where
noise makes an eigenvalue negative; the logarithm's floor (see there); of a scan with several shells those up to b = 1500
s/mm² are fitted, beyond which tissue is not Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.contracts import MapSpec, SignalModel
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.fields.needs import Needs
from tractode.ops import least_squares, log_linear, sphere, symmetric

_B_SCALE = 1000.0  # b in ms/µm² makes the columns of the design comparable
_LARGEST_CONDITION = 200.0
LARGEST_B = 1550.0  # s/mm²: 1500 as scanners play it; a kurtosis of 1 takes a fifth off the log signal there
_LEAST_B = 500.0  # s/mm²: below it noise and perfusion weigh too much to fit a tensor to them alone


TENSOR_MAPS = (
    MapSpec("diffusivity", "Diffusion tensor", "mm^2/s", components="tensor", invariant=False),
    MapSpec("fa", "Fractional anisotropy", "arbitrary"),
    MapSpec("md", "Mean diffusivity", "mm^2/s"),
    MapSpec("ad", "Axial diffusivity", "mm^2/s"),
    MapSpec("rd", "Radial diffusivity", "mm^2/s"),
    MapSpec("s0", "Signal without diffusion weighting", "arbitrary"),
    MapSpec("direction", "Principal direction of diffusion", "arbitrary", components="unit3vector", invariant=False),
)


@dataclass(frozen=True)
class DTI(SignalModel):
    """Parameters: Dxx Dxy Dxz Dyy Dyz Dzz in mm²/s (RAS+ scanner frame), then ln S0.

    ``sigma`` is the noise of one channel in units of the signal, for ``rician``; without it each voxel estimates its own.
    Volumes of b-values above ``largest_b`` (s/mm²) are left out of the fit; without it none is.
    """

    fit_method: log_linear.Method = "wls"
    sigma: float | None = None
    largest_b: float | None = None

    label: ClassVar[str] = "tensor"
    citation: ClassVar[str] = "Basser1994"
    needs: ClassVar[Needs] = Needs(n_b0=0)
    maps: ClassVar[tuple[MapSpec, ...]] = TENSOR_MAPS

    @classmethod
    def for_data(cls, signal: Float[Tensor, "v n"], gtab: GradientTable) -> DTI:
        """With the largest b-value of the volumes that a tensor holds for (see `taken`)."""
        return cls(largest_b=float(gtab.bvals[cls.taken(gtab)].max()))

    @classmethod
    def taken(cls, gtab: GradientTable) -> Int[Tensor, " m"]:
        """Volumes up to `LARGEST_B`; where they do not determine a tensor, the next shell too, and so on."""
        higher = [float(gtab.bvals[index].max()) for b, index in gtab.shells() if b > LARGEST_B]
        for largest_b in (LARGEST_B, *higher):
            index = (gtab.bvals <= largest_b).nonzero().ravel()
            if _why_not(gtab[index]) is None and float(gtab.bvals[index].max()) >= _LEAST_B:
                return index
        return torch.arange(len(gtab))

    def explains(self, gtab: GradientTable) -> Int[Tensor, " m"]:
        limit = float("inf") if self.largest_b is None else self.largest_b
        return (gtab.bvals <= limit).nonzero().ravel()

    def facts(self) -> dict[str, Any]:
        limit = {} if self.largest_b is None else {"LargestB": round(self.largest_b)}
        return {"FitMethod": self.fit_method} | limit

    @classmethod
    def why_not(cls, gtab: GradientTable) -> str | None:
        return _why_not(gtab)

    def predict(self, params: Float[Tensor, "v 7"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """``S0 exp(−b gᵀ D g)``."""
        unit = params.new_tensor([_B_SCALE] * 6 + [1.0])
        return (params * unit @ _design(gtab.to(params)).mT).exp()

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v 7"]:
        index = self.explains(gtab)
        chosen = gtab if len(index) == len(gtab) else gtab[index]
        reason = _why_not(chosen)
        if reason:
            raise InputDataError(
                reason, id="E-DTI-TABLE", needed="6 directions that span the tensor, and b=0 or a second b-value"
            )
        used = signal if chosen is gtab else signal[:, index.to(signal.device)]
        design = least_squares.Design(_design(chosen.to(used.to(torch.float64))))
        fitted = log_linear.fit_voxels(used, design, self.fit_method, self.sigma)
        return fitted / fitted.new_tensor([_B_SCALE] * 6 + [1.0])

    def to_maps(self, params: Float[Tensor, "v 7"]) -> dict[str, Float[Tensor, "v _"]]:
        return tensor_maps(params[:, :6], params[:, 6:])

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n 7"]:
        """Tensors of distinct eigenvalues in 0.2–2.5 × 10⁻³ mm²/s, randomly turned; S0 between 50 and 1000."""
        generator = torch.Generator().manual_seed(seed)
        steps = torch.rand(n, 3, generator=generator, dtype=torch.float64) * 0.6 + 0.2
        values = steps.cumsum(-1).flip(-1) * 1e-3
        axis = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        frame = sphere.frame_to_z(axis / axis.norm(dim=-1, keepdim=True))
        tensor = symmetric.from_matrix(frame.mT @ torch.diag_embed(values) @ frame)
        log_s0 = torch.rand(n, 1, generator=generator, dtype=torch.float64) * 3 + 3.9
        return torch.cat([tensor, log_s0], dim=-1)


def tensor_maps(tensor: Float[Tensor, "v 6"], log_s0: Float[Tensor, "v 1"]) -> dict[str, Float[Tensor, "v _"]]:
    """`TENSOR_MAPS` of tensors in mm²/s."""
    values, vectors = symmetric.eigen(tensor)
    trace = symmetric.trace(tensor)
    return {
        "diffusivity": tensor,
        "fa": symmetric.anisotropy(tensor)[:, None],
        "md": trace[:, None] / 3,
        "ad": values[:, :1],
        "rd": values[:, 1:].mean(-1, keepdim=True),
        "s0": log_s0.exp(),
        "direction": vectors[:, :, 0],
    }


def _design(gtab: GradientTable) -> Float[Tensor, "n 7"]:
    """``ln S = X β`` with β the tensor in µm²/ms and ln S0."""
    b = gtab.bvals / _B_SCALE
    return torch.cat([-b[:, None] * symmetric.quadratic_form(gtab.bvecs), torch.ones_like(b)[:, None]], dim=-1)


def _why_not(gtab: GradientTable) -> str | None:
    weighted = ~gtab.is_b0
    n_directions, n_b0 = int(weighted.sum()), int(gtab.is_b0.sum())
    table = f"this table has {n_directions} weighted volumes and {n_b0} with b=0"
    if n_directions < 6 or len(gtab) < 7:
        return f"The tensor has 7 unknowns and {table}; give at least 6 directions and one b=0"
    design = _design(gtab.to(torch.zeros(1, dtype=torch.float64)))
    if int(torch.linalg.matrix_rank(design, rtol=1e-4)) < 7:
        return (
            f"The tensor has 7 unknowns and the directions (or b-values) of this table do not tell them apart: {table}"
        )
    directions = symmetric.quadratic_form(gtab.bvecs[weighted].to(torch.float64))
    condition = float(torch.linalg.cond(directions))
    if condition > _LARGEST_CONDITION:
        return f"The directions nearly lie in one plane or repeat each other (condition number {condition:.0f}, at most {_LARGEST_CONDITION:.0f}): {table}"
    return None
