"""Constrained spherical deconvolution of one shell, super-resolved where there are fewer directions than coefficients.

Tournier, Calamante & Connelly, *Robust determination of the fibre orientation distribution in diffusion MRI:
non-negativity constrained super-resolved spherical deconvolution*, NeuroImage 2007,
doi:10.1016/j.neuroimage.2007.02.016. Departures: see `tractode.models.deconvolution`, which holds the iteration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.contracts import MapSpec, OrientationModel
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.fields.needs import FEWEST_DIRECTIONS, LEAST_B, SHELLED, Needs
from tractode.models.deconvolution import Deconvolution, constrained_deconvolution
from tractode.models.response import Response, estimate_response, gaussian_response
from tractode.models.tissue_response import TissueResponse
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh


@dataclass(frozen=True, eq=False)
class CSD(OrientationModel):
    """Parameters: SH coefficients of the FOD; its integral over a small solid angle is a fibre density (response = 1)."""

    response: Response | None = None
    order: int = 8
    n_directions: int | None = None  # of the scan it was made for: fewer than coefficients means super-resolved

    label: ClassVar[str] = "csd"
    citation: ClassVar[str] = "Tournier2007"
    recovers: ClassVar[float] = 1e-2  # a weak penalty on the norm
    needs: ClassVar[Needs] = Needs(
        directions=FEWEST_DIRECTIONS, volumes=FEWEST_DIRECTIONS, n_b0=0, least_b=LEAST_B, schemes=SHELLED
    )
    maps: ClassVar[tuple[MapSpec, ...]] = (
        MapSpec("fod", "Fibre orientation distribution", "arbitrary", components="sh", invariant=False),
        MapSpec("afd", "Total apparent fibre density: the integral of the FOD over the sphere", "arbitrary"),
    )

    @classmethod
    def for_data(cls, signal: Float[Tensor, "v n"], gtab: GradientTable) -> CSD:
        """With the response estimated from the scan; raises `InputDataError` where there is none to be found."""
        shell = cls._checked_shell(gtab)
        return cls(estimate_response(signal, gtab, shell), n_directions=len(shell))

    @classmethod
    def with_responses(cls, responses: Sequence[TissueResponse], gtab: GradientTable) -> CSD:
        """With the first response given (white matter's), at the shell that will be used."""
        shell = cls._checked_shell(gtab)
        b = float(gtab.bvals[shell].double().mean())
        return cls(responses[0].placed(gtab).single_shell(b), n_directions=len(shell))

    @classmethod
    def shell(cls, gtab: GradientTable) -> Int[Tensor, " m"] | None:
        """Volumes of the shell to use: the largest b with directions enough; ``None`` without one."""
        usable = cls.needs.usable_shells(gtab)
        return usable[-1][1] if usable else None

    @classmethod
    def taken(cls, gtab: GradientTable) -> Int[Tensor, " m"]:
        """The shell and the b=0 volumes, in the table's order."""
        shell = cls._checked_shell(gtab)
        return torch.cat([shell, gtab.is_b0.nonzero().ravel().to(shell)]).sort().values

    @classmethod
    def why_not(cls, gtab: GradientTable) -> str | None:
        shell = cls.shell(gtab)
        if (reason := super().why_not(gtab)) or shell is None:
            return reason
        basis = sh.basis(gtab.bvecs[shell].to(torch.float64), 2)
        if int(torch.linalg.matrix_rank(basis, rtol=1e-3)) < sh.n_coefficients(2):
            return "The directions of the shell lie in a plane or repeat each other; they do not support order 2"
        return None

    @classmethod
    def _checked_shell(cls, gtab: GradientTable) -> Int[Tensor, " m"]:
        reason, shell = cls.why_not(gtab), cls.shell(gtab)
        if reason or shell is None:
            raise InputDataError(reason or "No shell", id="E-CSD-TABLE", needed=cls.needs.words)
        return shell

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"Order": self.order, "NonNegativityConstraint": "hard"}
        if self.n_directions is not None:
            facts |= {
                "Directions": self.n_directions,
                "SuperResolved": self.n_directions < sh.n_coefficients(self.order),
            }
        if self.response is not None:
            facts |= {"ResponseFunction": self.response.facts(), "Shell": round(self.response.b)}
        return facts

    def _response_for(self, gtab: GradientTable, shell: Int[Tensor, " m"]) -> Response:
        if self.response is not None:
            return self.response
        return gaussian_response(float(gtab.bvals[shell].mean()), 1.7e-3, 0.3e-3, 1.0)

    def predict(self, params: Float[Tensor, "v l"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        """The shell's signals, and the b=0 signal as the response's S0 times the total fibre density.

        Another shell cannot be predicted from a single-shell response: `InputDataError` (E-CSD-SHELL).
        """
        shell = self._checked_shell(gtab)
        other = [b for b, index in gtab.shells() if not torch.equal(index, shell)]
        if other:
            raise InputDataError(
                f"A single-shell response cannot predict b = {', '.join(f'{b:.0f}' for b in other)}", id="E-CSD-SHELL"
            )
        response = self._response_for(gtab, shell)
        order = _order_of(params)
        forward = Deconvolution(gtab.bvecs[shell].to("cpu", torch.float64), response.coefficients, order).forward.to(
            params
        )
        s0 = (response.s0 * _total(params)).expand(-1, int(gtab.is_b0.sum()))
        place = torch.cat([shell, gtab.is_b0.nonzero().ravel()]).argsort()
        return torch.cat([params @ forward.mT, s0], dim=-1)[:, place.to(params.device)]

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v l"]:
        """FOD coefficients; differentiable in the signal with the response held (see `tractode.models.deconvolution`)."""
        shell = self._checked_shell(gtab)
        response = self._response_for(gtab, shell)
        return constrained_deconvolution(
            signal, gtab.bvecs[shell], response.coefficients, self.order, volumes=shell.to(signal.device)
        )

    def to_maps(self, params: Float[Tensor, "v l"]) -> dict[str, Float[Tensor, "v _"]]:
        return {"fod": params, "afd": _total(params)}

    def to_sh(self, params: Float[Tensor, "v l"], order: int) -> Float[Tensor, "v l2"]:
        n = sh.n_coefficients(order)
        missing = max(0, n - params.shape[-1])
        return torch.nn.functional.pad(params, (0, missing))[:, :n]

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n l"]:
        """FODs that are nowhere negative: one or two broad fibres of degree 4, which the minimum-norm term hardly damps."""
        generator = torch.Generator().manual_seed(seed)
        axes = sphere.directions(400, hemisphere=True)
        basis = sh.basis(axes, self.order)
        centres = torch.randn(n, 2, 3, generator=generator, dtype=torch.float64)
        centres = centres / centres.norm(dim=-1, keepdim=True)
        share = torch.rand(n, 1, generator=generator, dtype=torch.float64) * 0.5 + 0.5
        profile = (axes @ centres.mT).square() ** 2
        values = profile[..., 0] * share + profile[..., 1] * (1 - share) + 0.02
        return values @ torch.linalg.pinv(basis).mT


def _order_of(params: Float[Tensor, "v l"]) -> int:
    return round((math.sqrt(8 * params.shape[-1] + 1) - 3) / 2)


def _total(params: Float[Tensor, "v l"]) -> Float[Tensor, "v 1"]:
    """The integral over the sphere."""
    return params[:, :1] * math.sqrt(4 * math.pi)
