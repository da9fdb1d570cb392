"""Which voxels of a scan decide whether two regions are joined? The derivative of a connection, drawn as a map.

Run it as ``python docs/examples/sensitivity.py picture.png``; it takes a few seconds.
"""

from __future__ import annotations

import math
import sys

import torch

from tractode.fields import Image, ShField
from tractode.models.csd import CSD
from tractode.models.response import gaussian_response
from tractode.ops import smooth
from tractode.simulate.gradients import multi_shell
from tractode.simulate.phantom import PhantomSettings, phantom
from tractode.tracking.sdstream import SDStream
from tractode.tracking.sensitivity import Probe, Sensitivity, levelled, sensitivity, soft_connection
from tractode.tracking.survival import memberships

# Two bundles that cross, scanned with 45 directions.
scene = phantom(
    multi_shell(((2500.0, 45),), 2), PhantomSettings(regions=("crossing",), size=15, voxel_mm=4.0, snr=30.0)
)
grid, gtab, signal = scene.dwi.grid, scene.dwi.gtab, scene.dwi.signal.double()
mask = smooth.dilate(scene.white_matter.mask, (1, 1, 1)) & scene.dwi.mask
model = CSD(gaussian_response(2500.0, axial=1.9e-3, radial=0.3e-3, s0=1000.0))


def fitted(scan: torch.Tensor) -> ShField:
    """Fibre orientation distributions of a scan."""
    coeffs = torch.zeros(45, *grid.shape, dtype=torch.float64)
    coeffs[:, mask] = model.fit(scan[:, mask].mT, gtab).mT
    return ShField(grid, coeffs, 8)


def ask() -> tuple[Probe, Sensitivity]:
    """How many lines join the two ends of bundle A, and what that depends on."""
    ends = scene.bundles["CrossA"]
    regions = memberships(torch.stack([ends.start, ends.end]), grid, border_mm=3.0)
    tracker = SDStream(step_mm=1.0, angle=math.radians(30), min_length=20.0, compiled=False)
    seeds = grid.to_world(scene.white_matter.mask.nonzero().double())
    # Its cutoff, largest turn and mask are made soft, so that where lines end has a derivative.
    probe = Probe.of(tracker, seeds, Image(grid, mask[None]), regions)
    return probe, sensitivity(model, signal, gtab, fitted(signal), probe)


def lesion(centre_mm: tuple[float, float, float], radius_mm: float = 5.0, share: float = 0.1) -> torch.Tensor:
    """The scan with a share of its anisotropy lost in a ball."""
    inside = (grid.centres(torch.float64) - torch.tensor(centre_mm, dtype=torch.float64)).norm(dim=-1) < radius_mm
    altered = signal.clone()
    altered[:, inside] = levelled(signal[:, inside].mT, gtab, share).mT
    return altered


def draw(found: Sensitivity, path: str) -> None:
    """The map summed through the slices, over the bundles' outlines."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 4), layout="constrained")
    titles = ("depends on the signal", "change if anisotropy is lost")
    for axis, values, title, cmap in zip(
        axes, (found.strength(), found.of_anisotropy_loss()), titles, ("inferno", "RdBu"), strict=True
    ):
        flat = values.sum(2).T.numpy()
        top = abs(flat).max()
        shown = axis.imshow(flat, origin="lower", cmap=cmap, vmin=-top if cmap == "RdBu" else 0, vmax=top)
        for colour, truth in zip(("#26c6da", "#66bb6a"), scene.bundles.values(), strict=True):
            axis.contour(truth.mask.any(2).T.numpy(), [0.5], colors=colour, linewidths=1)
        axis.set(title=title, xticks=[], yticks=[])
        figure.colorbar(shown, ax=axis, shrink=0.8)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    probe, found = ask()
    print(f"{found.connection:.1f} lines join the two ends of the bundle; {found.abrupt:.1%} end by a hard rule.")
    for place, centre in {"on the bundle": (13.0, 9.0, -17.0), "beside it": (-13.0, 9.0, -17.0)}.items():
        altered = lesion(centre)
        predicted = found.predicted_change(altered)
        with torch.no_grad():
            actual = float(soft_connection(fitted(altered), probe)) - found.connection
        print(f"A lesion {place}: predicted {predicted:+.4f}, actual {actual:+.4f} lines")
    if len(sys.argv) > 1:
        draw(found, sys.argv[1])
