"""Responses of white matter, grey matter and CSF at every b-value, found in the data alone; their mean over a group.

Dhollander, Raffelt & Connelly, *Unsupervised 3-tissue response function estimation from single-shell or multi-shell
diffusion MR data without a co-registered T1 image*, ISMRM Workshop on Breaking the Barriers of Diffusion MRI 2016, p. 5
(https://www.researchgate.net/publication/307863133), used by MRtrix3 (Tournier et al. 2019,
doi:10.1016/j.neuroimage.2019.116137). Departures: the mask is not eroded (voxels come without their places), instead
implausible signals are left out; white matter's single-fibre voxels and their axes are those of
`tractode.models.response`; a profile is a sum of Gaussians with weights ≥ 0 instead of harmonics under constraints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.models.dti import DTI
from tractode.models.response import RESPONSE_ORDER, Response, fit_profile, gaussian_response, single_fibre_voxels
from tractode.ops import spherical_harmonics as sh
from tractode.ops import symmetric

TISSUES = ("wm", "gm", "csf")
_SAME_SHELL = 100.0  # s/mm²; a response of b = 2995 serves b = 3000
_LARGEST_CONTRAST = 0.1  # of b-values that still count as one shell, where they are large


@dataclass(frozen=True, eq=False)
class TissueResponse:
    """Zonal coefficients of one tissue's signal (for white matter: of a fibre along z), a row for each b-value, in signal units.

    ``bvals`` in s/mm² ascend from 0, or are NaN where they are not known (see `placed`); even degrees 0, 2, …; ``tissue`` is ``wm``, ``gm`` or ``csf``; ``method`` and
    ``n_voxels`` say how it was found.
    """

    tissue: str
    bvals: Float[Tensor, " s"]
    coefficients: Float[Tensor, "s r"]
    method: str = "given"
    n_voxels: int = 0

    def __post_init__(self) -> None:
        if self.coefficients.ndim != 2 or len(self.coefficients) != len(self.bvals) or not len(self.bvals):
            raise ValueError("A tissue's response needs a row of coefficients for each b-value.")
        if not bool(torch.isfinite(self.coefficients).all()) or not bool((self.coefficients[:, 0] > 0).all()):
            raise ValueError("A tissue's response needs finite coefficients, those of degree 0 above 0.")

    def placed(self, gtab: GradientTable) -> TissueResponse:
        """With the b-values of a table, lowest first, where there are as many rows and their own are not known."""
        known = [0.0] * bool(gtab.is_b0.any()) + [b for b, _ in gtab.shells()]
        if not bool(torch.isnan(self.bvals).any()) or len(self.bvals) != len(known):
            return self
        return replace(self, bvals=self.bvals.new_tensor(known))

    def at(self, b: float) -> Float[Tensor, " r"]:
        """The coefficients of the nearest b-value; `InputDataError` (E-MSMT-SHELL) where none is near."""
        apart = (self.bvals - b).abs().nan_to_num(nan=torch.inf)
        nearest = int(apart.argmin())
        if float(apart[nearest]) > max(_SAME_SHELL, _LARGEST_CONTRAST * b):
            raise InputDataError(
                f"The response of {self.tissue} is for b = {_listed(self)} s/mm², not for b = {b:.0f}",
                id="E-MSMT-SHELL",
                needed="a response for every b-value of the scan, the b=0 among them",
                fix="estimate the responses from data of the same protocol",
            )
        return self.coefficients[nearest]

    def single_shell(self, b: float) -> Response:
        """Of one shell alone, for single-shell deconvolution; of the only one where there is but one of unknown b-value.

        The b=0 signal is guessed where it is not known: as a fibre's of radial diffusivity 0.25e-3 mm²/s would be.
        """
        is_any = len(self.bvals) == 1 and math.isnan(float(self.bvals[0]))
        row = self.coefficients[0] if is_any else self.at(b)
        if len(self.bvals) > 1 and float(self.bvals[0]) < _SAME_SHELL:  # NaN is not
            s0 = float(self.coefficients[0, 0]) / math.sqrt(4 * math.pi)
        else:
            across = sh.zonal(2 * (len(row) - 1), row.new_zeros(1))[0] @ row
            s0 = float(across) * math.exp(0.25e-3 * b)
        return Response(row, b, s0, self.method, self.n_voxels)

    def facts(self) -> dict[str, Any]:
        return {
            "Coefficients": [[round(float(c), 6) for c in row] for row in self.coefficients],
            "BValue": [None if math.isnan(float(b)) else round(float(b)) for b in self.bvals],
            "Method": self.method,
            "NumberOfVoxels": self.n_voxels,
        }


@dataclass(frozen=True)
class TissueSettings:
    fa_threshold: float = 0.2
    grey_share: float = 0.02  # of grey matter's voxels: those nearest to its median decay
    fluid_share: float = 0.1  # of CSF's voxels: those that decay most
    fewest_voxels: int = 20


def tensor_responses(bvals: Sequence[float], s0: float = 1.0) -> tuple[TissueResponse, ...]:
    """What tensors of typical diffusivities give: for a model without data."""
    kinds = {"wm": (1.7e-3, 0.3e-3), "gm": (0.8e-3, 0.8e-3), "csf": (3e-3, 3e-3)}
    values = torch.tensor([float(b) for b in bvals], dtype=torch.float64)
    responses = []
    for tissue, (axial, radial) in kinds.items():
        rows = torch.stack([gaussian_response(float(b), axial, radial, s0).coefficients for b in values])
        responses.append(TissueResponse(tissue, values, rows if tissue == "wm" else rows[:, :1], "tensor"))
    return tuple(responses)


def estimate_tissue_responses(
    signal: Float[Tensor, "v n"], gtab: GradientTable, settings: TissueSettings | None = None
) -> tuple[TissueResponse, ...]:
    """White matter, grey matter and CSF; `InputDataError` (E-MSMT-RESPONSE) where one of them is not to be found."""
    settings = settings or TissueSettings()
    data = signal.to(torch.float64)
    shells = gtab.shells()
    b0 = data[:, gtab.is_b0].mean(-1)
    means = torch.stack([data[:, index].mean(-1) for _, index in shells], -1)
    sound = (b0 > 0) & (means > 0).all(-1)
    sound &= b0 > 0.1 * b0[sound].median() if bool(sound.any()) else sound
    decay = signal_decay(b0, means, torch.tensor([b for b, _ in shells], dtype=torch.float64))
    sound &= torch.isfinite(decay) & (decay > 0)
    white, grey, fluid = _tissues(data, gtab, decay, sound, settings)
    chosen = {
        "wm": white.nonzero().ravel(),
        "gm": _nearest(decay, grey, settings),
        "csf": _most(decay, fluid, settings),
    }
    for tissue, index in chosen.items():
        if len(index) < settings.fewest_voxels:
            raise InputDataError(
                f"Only {len(index)} voxels look like {tissue.upper()}",
                id="E-MSMT-RESPONSE",
                needed=f"at least {settings.fewest_voxels} to estimate the response of each tissue",
                fix="look at the mask, or give response files",
            )
    bvals = torch.tensor([0.0, *(b for b, _ in shells)], dtype=torch.float64)
    isotropic = {
        tissue: math.sqrt(4 * math.pi)
        * torch.cat([b0[chosen[tissue], None], means[chosen[tissue]]], -1).mean(0)[:, None]
        for tissue in ("gm", "csf")
    }
    return (
        _white_response(data[white], b0[white], gtab, bvals),
        *(TissueResponse(t, bvals, rows, "dhollander", len(chosen[t])) for t, rows in isotropic.items()),
    )


def signal_decay(
    b0: Float[Tensor, " v"], means: Float[Tensor, "v s"], bvals: Float[Tensor, " s"]
) -> Float[Tensor, " v"]:
    """``Σ ln(S₀ / S_b) / Σ b``, in mm²/s: high in fluid, low in tissue; not finite where a signal is 0."""
    return (b0[:, None] / means).log().sum(-1) / bvals.sum()


def _tissues(
    data: Float[Tensor, "v n"],
    gtab: GradientTable,
    decay: Float[Tensor, " v"],
    sound: Bool[Tensor, " v"],
    settings: TissueSettings,
) -> tuple[Bool[Tensor, " v"], Bool[Tensor, " v"], Bool[Tensor, " v"]]:
    """Voxels that are white matter, grey matter and CSF with some safety."""
    fa = symmetric.anisotropy(DTI(fit_method="wls").fit(data, gtab)[:, :6])
    white = sound & (fa > settings.fa_threshold)
    rest = sound & ~white
    if int(white.sum()) < settings.fewest_voxels or int(rest.sum()) < 2 * settings.fewest_voxels:
        return white, rest & False, rest & False
    threshold = _split(decay[rest])
    grey, fluid = rest & (decay <= threshold), rest & (decay > threshold)
    # Anisotropic by noise alone, or mixed with fluid: decays unlike most of white matter.
    low, middle, high = decay[white].quantile(decay.new_tensor([0.25, 0.5, 0.75]))
    white &= (decay > middle - 2 * (middle - low)) & (decay < middle + 2 * (high - middle))
    # Grey matter between white matter's edge and fluid's: the middle half on either side of its median.
    if bool(grey.any()):
        low, high = decay[grey].quantile(decay.new_tensor([0.25, 0.75]))
        grey &= (decay >= low) & (decay <= high)
    if int(fluid.sum()) > 2 * settings.fewest_voxels:
        fluid &= decay > _split(decay[fluid])
    return white, grey, fluid


def _split(values: Float[Tensor, " v"], n_bins: int = 256) -> float:
    """The threshold with the largest variance between the two sides (Otsu 1979, doi:10.1109/TSMC.1979.4310076)."""
    low, high = values.quantile(values.new_tensor([0.005, 0.995]))
    edges = torch.linspace(float(low), float(high), n_bins + 1, dtype=values.dtype)
    counts = torch.histogram(values.clamp(low, high), edges)[0]
    centres = (edges[1:] + edges[:-1]) / 2
    below, total = counts.cumsum(0), counts.sum()
    moment = (counts * centres).cumsum(0)
    apart = (moment * total - moment[-1] * below).square() / (below * (total - below)).clamp_min(1e-300)
    return float(edges[1:][int(apart[:-1].argmax())])


def _nearest(decay: Float[Tensor, " v"], grey: Bool[Tensor, " v"], settings: TissueSettings) -> Tensor:
    index = grey.nonzero().ravel()
    if not len(index):
        return index
    count = max(settings.fewest_voxels, round(settings.grey_share * len(index)))
    return index[(decay[index] - decay[index].median()).abs().argsort(stable=True)[:count]]


def _most(decay: Float[Tensor, " v"], fluid: Bool[Tensor, " v"], settings: TissueSettings) -> Tensor:
    index = fluid.nonzero().ravel()
    count = max(settings.fewest_voxels, round(settings.fluid_share * len(index)))
    return index[decay[index].argsort(descending=True, stable=True)[:count]]


def _white_response(
    data: Float[Tensor, "w n"], b0: Float[Tensor, " w"], gtab: GradientTable, bvals: Float[Tensor, " s"]
) -> TissueResponse:
    """Of the single-fibre voxels that the shell with most directions shows, along their axes at every shell."""
    shells = gtab.shells()
    _, largest = max(shells, key=lambda shell: (min(len(shell[1]), 45), shell[0]))
    index, axes, method = single_fibre_voxels(data, gtab, largest)
    rows = torch.zeros(len(bvals), RESPONSE_ORDER // 2 + 1, dtype=torch.float64)
    rows[0, 0] = math.sqrt(4 * math.pi) * b0[index].mean()
    for row, (b, volumes) in enumerate(shells, 1):
        rows[row] = fit_profile(data[index][:, volumes], gtab.bvecs[volumes].double(), axes, b).coefficients
    return TissueResponse(
        "wm", bvals, rows, "dhollander" if method == "tournier" else f"dhollander, {method}", len(index)
    )


def mean_response(responses: Sequence[TissueResponse]) -> TissueResponse:
    """The mean of one tissue's responses of several participants, each first brought to a common overall size.

    The factor of a participant is the geometric mean over b-values of the participants' mean degree-0 coefficient divided by
    its own, as in MRtrix3's ``responsemean``. Raises `InputDataError`
    (E-RESPONSE-GROUP) for other tissues or b-values.
    """
    first = responses[0]
    width = max(response.coefficients.shape[1] for response in responses)
    for other in responses[1:]:
        alike = len(other.bvals) == len(first.bvals) and bool(
            ((other.bvals - first.bvals).abs() <= _SAME_SHELL + _LARGEST_CONTRAST * first.bvals)
            .logical_or(other.bvals.isnan() & first.bvals.isnan())
            .all()
        )
        if not alike or other.tissue != first.tissue:
            raise InputDataError(
                f"Responses of {first.tissue} at b = {_listed(first)} and of {other.tissue} at b = {_listed(other)} have no mean",
                id="E-RESPONSE-GROUP",
                needed="responses of one tissue at the same b-values",
            )
    rows = torch.stack(
        [torch.nn.functional.pad(r.coefficients.double(), (0, width - r.coefficients.shape[1])) for r in responses]
    )
    sizes = rows[:, :, 0]
    factors = (sizes.mean(0) / sizes).log().mean(-1).exp()
    mean = (factors[:, None, None] * rows).mean(0)
    bvals = torch.stack([response.bvals.double() for response in responses]).mean(0)
    return TissueResponse(first.tissue, bvals, mean, f"mean of {len(responses)}", sum(r.n_voxels for r in responses))


def _listed(response: TissueResponse) -> str:
    return ", ".join(f"{b:.0f}" for b in response.bvals)
