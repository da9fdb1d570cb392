"""Gradients through tractography: a field is bent until a bundle ends where it should, and the data say what they know.

Run it: ``python docs/examples/differentiable_tracking.py [picture.png]``. Everything is made here; some seconds on a CPU.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from tractode.fields import GradientTable, Image, ImageGrid, ShField, Streamlines
from tractode.models.csd import CSD
from tractode.models.response import gaussian_response
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh
from tractode.tracking.module import StreamlineLayer
from tractode.tracking.sdstream import SDStream

DOUBLE = torch.float64


def scan(grid: ImageGrid) -> tuple[Tensor, GradientTable, CSD]:
    """The signal of straight fibres along x with noise, its gradient table, and the model that knows the response."""
    directions = torch.cat([torch.zeros(1, 3), sphere.directions(30)]).double()
    weighted = directions.norm(dim=-1) > 0.5
    gtab = GradientTable(weighted * 2500.0, directions, ~weighted)
    model = CSD(gaussian_response(2500.0, 1.7e-3, 0.2e-3, 1.0))
    degree = sh.degrees(8).double()
    fibre = sh.basis(torch.tensor([1.0, 0.05, 0.1], dtype=DOUBLE), 8) * torch.exp(-0.02 * degree * (degree + 1))
    signal = model.predict(fibre.expand(grid.n_voxels, -1), gtab)
    return signal + 0.01 * torch.randn(signal.shape, generator=torch.Generator().manual_seed(0)), gtab, model


def ends(lines: Streamlines) -> Tensor:
    """Where the lines ended: points run from the end of the first half back to the seed."""
    return lines.points[lines.offsets[:-1]]


def main(picture: str | None = None) -> dict[str, float]:
    grid = ImageGrid((12, 8, 8), torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=DOUBLE)), "phantom")
    mask = Image(grid, torch.ones(1, *grid.shape, dtype=torch.bool))
    signal, gtab, model = scan(grid)
    seeds = torch.tensor([3.0, 7.0, 7.0], dtype=DOUBLE) + torch.rand(
        12, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE
    )
    start = torch.tensor([[1.0, 0, 0]], dtype=DOUBLE).expand(len(seeds), 3)
    layer = StreamlineLayer(SDStream(step_mm=0.5, min_length=2.0, max_length=15.1, one_way=True), mask)

    # 1. From the bundle's ends back to the diffusion signal: which measurements hold the bundle where it is?
    signal.requires_grad_()
    lines = layer(model.fit(signal, gtab).mT.reshape(-1, *grid.shape), seeds, start)
    ends(lines)[:, 1].mean().backward()
    sensitivity = signal.grad.norm(dim=1).reshape(grid.shape)
    voxels_that_matter = int((sensitivity > 0.01 * sensitivity.max()).sum())

    # 2. The field as parameters: Adam bends it until the ends lie 2 mm higher. Only y and z are asked for: the lines'
    # length is given, so that lines that rise do not go as far along x.
    coeffs = model.fit(signal.detach(), gtab).mT.reshape(-1, *grid.shape).clone().requires_grad_()
    target = ends(lines).detach()[:, 1:] + torch.tensor([0.0, 2.0], dtype=DOUBLE)
    optimiser = torch.optim.Adam([coeffs], lr=0.02)
    misses = []
    for _ in range(40):
        optimiser.zero_grad()
        bent = layer(coeffs, seeds, start)
        miss = (ends(bent)[:, 1:] - target).norm(dim=1).mean()
        miss.backward()
        optimiser.step()
        misses.append(float(miss.detach()))

    # 3. How stable is it? The growth of a shift of the seed along each line.
    tracker = SDStream(step_mm=0.5, min_length=2.0, max_length=15.1, one_way=True, report_growth=True)
    stable = next(tracker.track(ShField(grid, coeffs.detach(), 8), seeds, mask, directions=start))
    if picture:
        draw(picture, lines, bent, misses)
    return {
        "miss_before_mm": misses[0],
        "miss_after_mm": misses[-1],
        "voxels_that_matter": voxels_that_matter,
        "largest_growth": float(stable.per_point["growth"].max()),
    }


def draw(picture: str, before: Streamlines, after: Streamlines, misses: list[float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for lines, colour in ((before, "0.6"), (after, "tab:blue")):
        for line in lines:
            x, _, z = line.detach().unbind(1)
            left.plot(x, z, color=colour, linewidth=1)
    left.set(xlabel="x (mm)", ylabel="z (mm)", title="before (grey) and after")
    right.semilogy(misses)
    right.set(xlabel="step of Adam", ylabel="mean miss (mm)")
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    for name, value in main(*sys.argv[1:2]).items():
        print(f"{name}: {value:.4g}")
