"""Numbers of how good a series is, named as QSIPrep's and nipreps' tables name them.

M. Cieslak et al., *QSIPrep*, Nature Methods 18:775 (2021), doi:10.1038/s41592-021-01185-5. Neighbouring correlation: F.-C. Yeh et al.,
NeuroImage 202:116131 (2019), doi:10.1016/j.neuroimage.2019.116131. Contrast to noise: M. Bastiani et al., NeuroImage 184:801 (2019),
doi:10.1016/j.neuroimage.2018.09.073. Framewise displacement: J. D. Power et al., NeuroImage 59:2142 (2012),
doi:10.1016/j.neuroimage.2011.10.018.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.fields.dwi import DWI
from tractode.fields.gradients import GradientTable
from tractode.preprocess.motion import MotionEstimate
from tractode.preprocess.prediction import fitted, left_out, predicted

_MOST_VOXELS = 20_000


def neighbour_correlation(scan: DWI) -> tuple[float, float]:
    """Mean correlation of each weighted volume with the one nearest to it in q-space, over the image and over the brain.

    NaN with fewer than two weighted volumes.
    """
    weighted = ~scan.gtab.is_b0.cpu()
    if int(weighted.sum()) < 2:
        return math.nan, math.nan
    neighbour = _nearest(scan.gtab[weighted])
    found = []
    for where in (torch.ones_like(scan.mask), scan.mask):
        values = _voxels(scan, where)[weighted]
        together = torch.corrcoef(values)[torch.arange(len(values)), neighbour]
        found.append(float(torch.nan_to_num(together).mean()))
    return found[0], found[1]


def _nearest(gtab: GradientTable) -> Tensor:
    """The volume nearest in q-space, where opposite directions are the same place."""
    q = gtab.bvals.double().sqrt()[:, None] * gtab.bvecs.double()
    apart = torch.minimum((q[:, None] - q).norm(dim=-1), (q[:, None] + q).norm(dim=-1))
    return apart.fill_diagonal_(math.inf).argmin(-1)


def contrast_to_noise(
    scan: DWI, predicted_signal: Float[Tensor, "n i j k"] | None = None
) -> dict[float, dict[str, float]]:
    """Signal to noise at b=0 (mean over standard deviation), contrast to noise of each shell: mean, median and sd over the brain.

    Of a shell: standard deviation over directions of what is predicted from the other volumes (or of ``predicted_signal``), over that
    of what is not. The keys are 0 and the shells' mean b-values, s/mm²; a kind of too few volumes (2 b=0, 6 directions) is left out.
    """
    values, gtab = _voxels(scan, scan.mask), scan.gtab
    out: dict[float, dict[str, float]] = {}
    is_b0 = gtab.is_b0.cpu()
    if int(is_b0.sum()) >= 2:
        out[0.0] = _spread(values[is_b0].mean(0) / values[is_b0].std(0).clamp_min(1e-9))
    if int((~is_b0).sum()) < 6:
        return out
    expected = _expected(values, gtab) if predicted_signal is None else _voxels_of(predicted_signal, scan.mask)
    for b, index in gtab.shells():
        if len(index) >= 6:
            rest = (values - expected)[index].std(0).clamp_min(1e-9)
            out[b] = _spread(expected[index].std(0) / rest)
    return out


def _spread(values: Float[Tensor, " v"]) -> dict[str, float]:
    return {"mean": float(values.mean()), "median": float(values.median()), "sd": float(values.std())}


def _expected(values: Float[Tensor, "n v"], gtab: GradientTable) -> Float[Tensor, "n v"]:
    """Every volume as the others predict it."""
    is_b0 = gtab.is_b0.cpu()
    base = values[is_b0].mean(0) if bool(is_b0.any()) else values.mean(0)
    shares = (values[~is_b0] / base.clamp_min(0.05 * float(base.median()))).double()
    process = fitted(gtab[~is_b0], shares @ shares.mT / shares.shape[1])
    return predicted(left_out(gtab, process), values)


def _voxels(scan: DWI, where: Bool[Tensor, "i j k"]) -> Float[Tensor, "n v"]:
    """Signals of at most 20,000 of the voxels, evenly over them."""
    return _voxels_of(scan.signal, where)


def _voxels_of(signal: Float[Tensor, "n i j k"], where: Bool[Tensor, "i j k"]) -> Float[Tensor, "n v"]:
    chosen = where.reshape(-1).nonzero()[:, 0]
    return signal.flatten(1)[:, chosen[:: max(1, len(chosen) // _MOST_VOXELS)]].to(torch.float32)


def motion_summary(estimate: MotionEstimate) -> dict[str, float | int]:
    """Mean and largest movement (mm, degrees), from the reference and from volume to volume, and lost slices."""
    displacement = estimate.framewise_displacement()
    head = estimate.head()
    shift, turn = head[:, :3].norm(dim=-1), torch.rad2deg(head[:, 3:].norm(dim=-1))
    steps = head.diff(dim=0)
    rows = estimate.outliers
    return {
        "mean_fd": round(float(displacement[1:].mean()), 4) if len(displacement) > 1 else 0.0,
        "max_fd": round(float(displacement.max()), 4),
        "max_translation": round(float(shift.max()), 4),
        "max_rotation": round(float(turn.max()), 4),
        "max_rel_translation": round(float(steps[:, :3].norm(dim=-1).max()), 4) if len(steps) else 0.0,
        "max_rel_rotation": round(float(torch.rad2deg(steps[:, 3:].norm(dim=-1)).max()), 4) if len(steps) else 0.0,
        "num_bad_slices": int(rows.sum()),
        "num_bad_volumes": int(rows.any(-1).sum()),
    }
