"""Noisy fibre orientations made to continue along themselves: the same scan tracked before and after.

Run it as ``python docs/examples/refinement.py picture.png``; it takes some ten seconds.
"""

from __future__ import annotations

import math
import sys

import torch

from tractode.evaluate.connections import BundleRegions
from tractode.evaluate.tractometer import tractometry
from tractode.fields import Image, ShField, Streamlines
from tractode.models.csd import CSD
from tractode.models.response import gaussian_response
from tractode.ops import smooth, sphere
from tractode.ops import spherical_harmonics as sh
from tractode.simulate.gradients import multi_shell
from tractode.simulate.phantom import PhantomSettings, phantom
from tractode.tracking.refinement import RefinementSettings, refine
from tractode.tracking.sdstream import SDStream

# Two bundles that cross, in voxels of 4 mm, at a signal-to-noise ratio of 10.
gtab = multi_shell(((2500.0, 45),), 2)
scene = phantom(gtab, PhantomSettings(regions=("crossing",), size=15, voxel_mm=4.0, snr=10.0))
grid = scene.dwi.grid
mask = smooth.dilate(scene.white_matter.mask, (1, 1, 1)) & scene.dwi.mask
signal = scene.dwi.signal[:, mask].mT
model = CSD(gaussian_response(2500.0, axial=1.9e-3, radial=0.3e-3, s0=1000.0))


def refined(settings: RefinementSettings | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients of every voxel in the mask, by CSD and refined from there."""
    fitted = model.fit(signal, gtab)
    return fitted, refine(model, fitted, signal, gtab, grid, mask, settings).params


def field(params: torch.Tensor) -> ShField:
    coeffs = torch.zeros(45, *grid.shape)
    coeffs[:, mask] = params.mT.float()
    return ShField(grid, coeffs, 8)


def track(params: torch.Tensor) -> Streamlines:
    """Lines from four seeds in every voxel of white matter."""
    white = scene.white_matter.mask.nonzero().float()
    corners = torch.tensor([[-0.2, -0.2, 0.2], [0.2, 0.2, 0.2], [-0.2, 0.2, -0.2], [0.2, -0.2, -0.2]])
    seeds = grid.to_world((white[:, None] + corners).reshape(-1, 3))
    tracker = SDStream(step_mm=1.0, angle=math.radians(30), cutoff=0.15, min_length=20.0, compiled=False)
    return Streamlines.concatenate(tracker.track(field(params), seeds, Image(grid, mask[None])), grid.space)


def score(lines: Streamlines) -> dict:
    """Shares of valid, invalid and no connections, overlap."""
    regions = {name: BundleRegions(grid, b.mask, b.start, b.end) for name, b in scene.bundles.items()}
    return tractometry(lines, regions).record()


def draw(before: Streamlines, after: Streamlines, path: str) -> None:
    """Both sets of lines from above."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.collections import LineCollection

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 4), layout="constrained")
    for axis, lines, title in zip(axes, (before, after), ("as fitted", "refined"), strict=True):
        axis.add_collection(LineCollection([line[:, :2].numpy() for line in lines], linewidths=0.3, color="#1565c0"))
        axis.set(title=title, xticks=[], yticks=[], xlim=(-30, 30), ylim=(-30, 30), aspect="equal")
    figure.savefig(path, dpi=100)


def angular_error(params: torch.Tensor) -> float:
    """Degrees between the largest lobe and the truth's, the mean over voxels of one fibre."""
    axes = sphere.directions(724, hemisphere=True)
    basis = sh.basis(axes, 8).float()
    single = (scene.fibres.single & scene.white_matter.mask)[mask]
    wanted = scene.fibres.fod.coeffs[:, mask].mT.float()
    one, two = (axes[(c[single].float() @ basis.mT).argmax(-1)] for c in (wanted, params))
    return math.degrees(float(sphere.angle(one, two).mean()))


if __name__ == "__main__":
    names = ("as fitted", "refined")
    lines = []
    for name, params in zip(names, refined(), strict=True):
        lines.append(track(params))
        scores = score(lines[-1])
        shares = ", ".join(f"{key} {scores[key]:.2f}" for key in ("VC", "IC", "NC", "OL"))
        print(f"{name}: {angular_error(params):.1f}° from the truth; {scores['n']} lines, {shares}")
    if len(sys.argv) > 1:
        draw(lines[0], lines[1], sys.argv[1])
