"""Multi-shell multi-tissue constrained spherical deconvolution: an FOD beside grey matter and CSF, none of them negative.

Jeurissen, Tournier, Dhollander, Connelly & Sijbers, *Multi-tissue constrained spherical deconvolution for improved
analysis of multi-shell diffusion MRI data*, NeuroImage 2014, doi:10.1016/j.neuroimage.2014.07.061. Departures: solved by an
interior point method (`tractode.models.non_negative`); constraint, its 300 axes' number and the weight of the norm as in
MRtrix3 ``dwi2fod msmt_csd`` (Tournier et al. 2019, doi:10.1016/j.neuroimage.2019.116137).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import MapSpec, OrientationModel, table_of_shells
from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.fields.needs import FEWEST_DIRECTIONS, LEAST_B, SHELLED, Needs
from tractode.models.csd import CSD
from tractode.models.deconvolution import rotational_harmonics
from tractode.models.non_negative import NonNegative
from tractode.models.tissue_response import TISSUES, TissueResponse, estimate_tissue_responses, tensor_responses
from tractode.ops import spherical_harmonics as sh

_NORM = 1e-10


@dataclass(frozen=True, eq=False)
class MSMTCSD(OrientationModel):
    """Parameters: SH coefficients of white matter's FOD, then the degree-0 coefficient of each other tissue (grey matter, CSF).

    Without responses it takes those of typical tensors. With one shell there are two tissues, white matter and CSF.
    """

    responses: tuple[TissueResponse, ...] | None = None
    order: int = 8

    label: ClassVar[str] = "msmtcsd"
    citation: ClassVar[str] = "jeurissen2014msmt"
    recovers: ClassVar[float] = 1e-3
    needs: ClassVar[Needs] = Needs(
        volumes=FEWEST_DIRECTIONS, resolving=FEWEST_DIRECTIONS, resolving_b=LEAST_B, schemes=SHELLED
    )
    maps: ClassVar[tuple[MapSpec, ...]] = (
        MapSpec("wm", "Fibre orientation distribution of white matter", "arbitrary", components="sh", invariant=False),
        MapSpec("gm", "Grey matter, as a coefficient of degree 0 (0 where it is not modelled)", "arbitrary"),
        MapSpec("csf", "Cerebrospinal fluid, as a coefficient of degree 0", "arbitrary"),
        MapSpec("wmvf", "White matter as a share of the tissues' sum", ""),
        MapSpec("gmvf", "Grey matter as a share of the tissues' sum (0 where it is not modelled)", ""),
        MapSpec("csfvf", "Cerebrospinal fluid as a share of the tissues' sum", ""),
    )

    @classmethod
    def for_data(cls, signal: Float[Tensor, "v n"], gtab: GradientTable) -> MSMTCSD:
        """With the responses of the scan's own tissues; raises `InputDataError` where they are not to be found."""
        cls._check(gtab)
        return cls.with_responses(estimate_tissue_responses(signal, gtab), gtab)

    @classmethod
    def with_responses(cls, responses: Sequence[TissueResponse], gtab: GradientTable) -> MSMTCSD:
        """With given responses, of which grey matter's is left out where there is but one shell."""
        cls._check(gtab)
        known = {response.tissue: response.placed(gtab) for response in responses}
        wanted = TISSUES if len(gtab.shells()) > 1 and "gm" in known else ("wm", "csf")
        if missing := [tissue for tissue in wanted if tissue not in known]:
            raise ValueError(f"there is none of {' and '.join(missing)}")
        return cls(tuple(known[tissue] for tissue in wanted))

    @classmethod
    def example_table(cls, n: int = 60) -> GradientTable:
        """Of at least as many directions as the FOD has coefficients: with fewer it rests on the constraint, whose edges have no derivative."""
        return table_of_shells((1000.0, 2000.0, 3000.0), max(n, sh.n_coefficients(8)))

    @classmethod
    def _check(cls, gtab: GradientTable) -> None:
        if reason := cls.why_not(gtab):
            raise InputDataError(reason, id="E-MSMTCSD-TABLE", needed=cls.needs.words)

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"Order": self.order, "NonNegativityConstraint": "hard"}
        if self.responses is not None:
            facts["Tissues"] = [response.tissue for response in self.responses]
            facts["ResponseFunction"] = {response.tissue: response.facts() for response in self.responses}
        return facts

    def _responses_for(self, gtab: GradientTable) -> tuple[TissueResponse, ...]:
        shells = gtab.shells()
        responses = self.responses or tensor_responses([0.0, *(b for b, _ in shells)])
        if self.responses is None and len(shells) == 1:
            responses = (responses[0], responses[2])
        if len(responses) > len(shells) + 1:
            raise InputDataError(
                f"{len(responses)} tissues cannot be told apart with {len(shells)} shells",
                id="E-MSMTCSD-TISSUES",
                needed="as many b-values as tissues, b=0 counted",
                fix="leave out the response of grey matter",
            )
        return responses

    def forward(self, gtab: GradientTable) -> Float[Tensor, "n p"]:
        """Parameters → signals, float64 on the CPU: every volume by its shell's responses."""
        self._check(gtab)
        white, *others = self._responses_for(gtab)
        degrees = sh.degrees(self.order)
        basis = sh.basis(gtab.bvecs.to("cpu", torch.float64), self.order)
        matrix = basis.new_zeros(len(gtab), len(degrees) + len(others))
        for b, index in [(0.0, gtab.is_b0.nonzero().ravel().cpu()), *gtab.shells()]:
            if b == 0:
                matrix[index, 0] = white.at(b)[0]  # no direction, so no higher degree
            else:
                matrix[index, : len(degrees)] = (
                    basis[index] * rotational_harmonics(white.at(b), self.order)[degrees // 2]
                )
            for column, other in enumerate(others, len(degrees)):
                # A coefficient of degree 0 convolved with an isotropic response: its own coefficient is the signal.
                matrix[index, column] = other.at(b)[0]
        return matrix

    def predict(self, params: Float[Tensor, "v p"], gtab: GradientTable) -> Float[Tensor, "v n"]:
        return params @ self.forward(gtab).to(params).mT

    def fit(self, signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v p"]:
        """Coefficients; differentiable in the signal with the responses held (see `tractode.models.non_negative`)."""
        return NonNegative(self.forward(gtab), self.order, _NORM)(signal)

    def to_maps(self, params: Float[Tensor, "v p"]) -> dict[str, Float[Tensor, "v _"]]:
        n = sh.n_coefficients(self.order)
        white, csf = params[:, :1], params[:, -1:]
        grey = params[:, n : n + 1] if params.shape[1] == n + 2 else torch.zeros_like(csf)
        total = white + grey + csf
        safe = torch.where(total > 0, total, torch.ones_like(total))
        shares = {"wmvf": white / safe, "gmvf": grey / safe, "csfvf": csf / safe}
        return {"wm": params[:, :n], "gm": grey, "csf": csf, **shares}

    def to_sh(self, params: Float[Tensor, "v p"], order: int) -> Float[Tensor, "v l2"]:
        n, wanted = sh.n_coefficients(self.order), sh.n_coefficients(order)
        return torch.nn.functional.pad(params[:, :n], (0, max(0, wanted - n)))[:, :wanted]

    def example(self, seed: int, n: int = 32) -> Float[Tensor, "n p"]:
        """FODs that are nowhere negative beside the other tissues, in shares that add up to 1."""
        generator = torch.Generator().manual_seed(seed)
        n_others = 2 if self.responses is None else len(self.responses) - 1
        fods = CSD(order=self.order).example(seed, n)
        shares = torch.rand(n, 1 + n_others, generator=generator, dtype=torch.float64) + 0.1
        shares = shares / shares.sum(-1, keepdim=True) / math.sqrt(4 * math.pi)
        return torch.cat([fods / fods[:, :1] * shares[:, :1], shares[:, 1:]], -1)
