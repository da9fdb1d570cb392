"""Weights of streamlines, so that a tractogram counts for as much as the data say: the task of SIFT2, LiFE and COMMIT.

Smith et al., NeuroImage 2015, doi:10.1016/j.neuroimage.2015.06.092; Pestilli et al., Nature Methods 2014,
doi:10.1038/nmeth.3098; Daducci et al., IEEE TMI 2015, doi:10.1109/TMI.2014.2352414. Departures stand with the two models,
`tractode.tracking.fibre_density` and `tractode.tracking.fascicles`.
"""

from __future__ import annotations

from collections.abc import Iterable

from tractode.fields import Streamlines
from tractode.tracking.fascicles import SignalTarget, fit_signal
from tractode.tracking.fibre_density import FodTarget, fit_density
from tractode.tracking.weight_fit import Progress, Regularisation, WeightFit

__all__ = ["FodTarget", "Regularisation", "SignalTarget", "WeightFit", "fit_weights"]

CITATIONS = {"fod": "Smith2015", "signal": "Pestilli2014"}


def fit_weights(
    lines: Streamlines | Iterable[Streamlines],
    target: FodTarget | SignalTarget,
    *,
    regularisation: Regularisation | None = None,
    on_progress: Progress | None = None,
) -> WeightFit:
    """One weight ≥ 0 for each line, in their order, float64 on the CPU; points are not moved and no line is removed.
    ``lines`` may be given in batches (each is looked at once), so that a tractogram need not fit into memory.

    Explaining fibre density, weights are ``e^c`` (dimensionless, about 1) and never quite 0, except of lines that follow
    no fixel; explaining the signal they are cross-sections in mm² of fibres as dense as the response's, and many are 0.
    The result depends neither on the number of threads nor on chance. Where a point crosses the wall of a voxel, and where
    the nearest fixel changes, the objective jumps:
    it has no derivative in the points.

    Raises
    ------
    ValueError
        There are no lines.
    SpaceMismatchError
        Lines and target are of different spaces.
    """
    chosen = regularisation or Regularisation()
    if isinstance(target, FodTarget):
        return fit_density(lines, target, chosen, on_progress)
    return fit_signal(lines, target, chosen, on_progress)
