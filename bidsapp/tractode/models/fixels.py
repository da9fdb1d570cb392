"""Fixels of a model of orientations: each lobe's fibre density, its peak and its dispersion.

Raffelt et al., *Apparent fibre density*, NeuroImage 2012, doi:10.1016/j.neuroimage.2011.10.045 (the integral of a lobe);
Riffert et al., *Beyond fractional anisotropy*, NeuroImage 2014, doi:10.1016/j.neuroimage.2014.06.015 (peak, and integral
over peak as the lobe's spread), as MRtrix3's ``fod2fixel -afd -peak_amp -disp``. Departures: lobes are those of
`tractode.ops.lobes`; peaks are exact maxima.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import MapSpec, OrientationModel
from tractode.ops import sh_polynomial
from tractode.ops import spherical_harmonics as sh
from tractode.ops.lobes import lobes_of
from tractode.ops.peaks import find_peaks, pad_to_lanes

#: Fixels of a voxel that are kept as maps.
MOST = 3
_ORDERED = "One fixel after another, that of the largest integral first; 0 where there is none"
SPECS = (
    MapSpec(
        "peak",
        f"Peak of each fixel (lobe of the orientation distribution): x, y, z of its direction times its amplitude. {_ORDERED}",
        "arbitrary",
        components="3vector",
        invariant=False,
    ),
    MapSpec(
        "fixelafd",
        f"Integral of each fixel over the sphere (apparent fibre density of an FOD). {_ORDERED}",
        "arbitrary",
    ),
    MapSpec(
        "dispersion",
        f"Integral of each fixel over its peak's amplitude: the solid angle that it fills. {_ORDERED}",
        "sr",
    ),
    MapSpec("nufo", f"Number of fixels, at most {MOST}", ""),
)
#: Volumes of each of them.
VOLUMES = {"peak": 3 * MOST, "fixelafd": MOST, "dispersion": MOST, "nufo": 1}
_LEAST_PEAK = 0.1  # of a response's density, as in MRtrix3
_TILE = 8192


@dataclass(frozen=True, eq=False)
class FixelMaps:
    """Up to ``k`` fixels of each voxel, that of the largest integral first; absent ones are zero.

    ``axes`` are the lobes' mean directions, ``peaks`` the directions of their maxima (unit, RAS+), ``afd`` the integrals,
    ``amplitude`` the maxima, ``dispersion`` their ratio (sr).
    """

    axes: Float[Tensor, "v k 3"]
    peaks: Float[Tensor, "v k 3"]
    afd: Float[Tensor, "v k"]
    amplitude: Float[Tensor, "v k"]
    dispersion: Float[Tensor, "v k"]


def fixels(
    model: OrientationModel, params: Float[Tensor, "v p"], n: int = 3, least_peak: float = 0.1, order: int = 8
) -> FixelMaps:
    """The fixels of a model's parameters; lobes whose peak is below ``least_peak`` (fibre response = 1) are left out.

    dtype and device follow the parameters. Not differentiable.
    """
    with torch.no_grad():
        return fixels_of_harmonics(model.to_sh(params, order), order, n, least_peak)


def fixel_maps(model: OrientationModel, params: Float[Tensor, "v p"]) -> dict[str, Float[Tensor, "v _"]]:
    """The maps of `SPECS`; lobes whose peak is below `least_peak` are left out. dtype and device follow the parameters."""
    found = fixels(model, params, MOST, least_peak(model))
    return {
        "peak": (found.peaks * found.amplitude[..., None]).flatten(1),
        "fixelafd": found.afd,
        "dispersion": found.dispersion,
        "nufo": (found.amplitude > 0).sum(-1, keepdim=True).to(params),
    }


def least_peak(model: OrientationModel) -> float:
    """The amplitude at which trackers stop in the model's map, below which a lobe is no fixel."""
    return _LEAST_PEAK if model.cutoff is None else model.cutoff


def facts(model: OrientationModel, param: str) -> dict[str, Any]:
    """How a map's volumes are to be read, as plain data for its sidecar; nothing for the number of fixels."""
    if param == "nufo":
        return {}
    per_fixel = VOLUMES[param] // MOST
    return {
        "Fixels": {
            "Axis": 3,
            "MostPerVoxel": MOST,
            "VolumesPerFixel": per_fixel,
            "Order": "largest integral first",
            "LeastPeak": least_peak(model),
            "DOI": "10.1016/j.neuroimage.2012.11.049",
        }
    }


def fixels_of_harmonics(coefficients: Float[Tensor, "v l"], order: int, n: int, least_peak: float) -> FixelMaps:
    """The same for orientation distributions as they are."""
    found = lobes_of(coefficients, order, least_peak, n)
    kept = found.kept
    peaks, amplitude = torch.zeros_like(found.tips, dtype=torch.float64), torch.zeros(kept.shape, dtype=torch.float64)
    matrix = sh_polynomial.from_harmonics(order)
    rows, columns = kept.nonzero().unbind(1)
    for row, column in zip(rows.split(_TILE), columns.split(_TILE), strict=True):
        which = pad_to_lanes(torch.arange(len(row)))
        components = (matrix @ coefficients[row].cpu().double().mT)[:, which]
        start = found.tips[row, column].double()
        axis, value = find_peaks(components.contiguous(), start.mT[:, which].contiguous())
        axis, value = axis[:, : len(row)].mT, value[: len(row)]
        # Where the search gives up (a ridge), the axis of the set is the peak.
        is_found = value.isfinite()
        axis = torch.where(is_found[:, None], axis, start)
        from_set = torch.einsum("vl,vl->v", coefficients[row].cpu().double(), sh.basis(start, order))
        peaks[row, column], amplitude[row, column] = axis, torch.where(is_found, value, from_set)
    afd = found.integrals.double()
    dispersion = torch.where(kept & (amplitude > 0), afd / amplitude.clamp(min=1e-300), torch.zeros_like(afd))
    return FixelMaps(*(part.to(coefficients) for part in (found.means, peaks, afd, amplitude, dispersion)))
