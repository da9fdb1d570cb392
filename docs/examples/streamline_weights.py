"""How strong are four bundles? Counts of streamlines say where seeds were; weights say what the scan holds.

Run it as ``python docs/examples/streamline_weights.py picture.png``; it takes a few seconds.
"""

from __future__ import annotations

import sys

import torch

from tractode.fields import Image, ShField, Streamlines
from tractode.models.csd import CSD
from tractode.models.response import gaussian_response
from tractode.simulate.gradients import multi_shell
from tractode.simulate.phantom import PhantomSettings, phantom
from tractode.simulate.tissues import WHITE
from tractode.tracking.streamline_weights import FodTarget, Regularisation, SignalTarget, WeightFit, fit_weights

# Four bundles, two that cross and two that kiss, scanned with 45 directions.
settings = PhantomSettings(regions=("crossing", "kissing"), size=18, voxel_mm=3.3, snr=30.0)
scene = phantom(multi_shell(((2500.0, 45),), 2), settings)
scan = scene.dwi
grid, mask = scan.grid, Image(scan.grid, scan.mask[None])
response = gaussian_response(2500.0, axial=1.9e-3, radial=0.3e-3, s0=1000.0)


def fitted() -> ShField:
    """Fibre orientation distributions of the scan."""
    coeffs = torch.zeros(45, *grid.shape)
    coeffs[:, scan.mask] = CSD(response).fit(scan.voxels(), scan.gtab).mT
    return ShField(grid, coeffs, 8)


def uneven(n: int = 40) -> tuple[Streamlines, list[int]]:
    """The phantom's own fibres, but each bundle sampled with another density: later ones more and more often."""
    parts, counts = [], []
    for number, truth in enumerate(scene.bundles.values()):
        wanted = n * (1 + number)
        parts.append(truth.streamlines.select(torch.linspace(0, len(truth.streamlines) - 1, wanted).long()))
        counts.append(wanted)
    return Streamlines.concatenate(parts, grid.space), counts


def shares(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Each bundle's share of the sum."""
    total = torch.stack([part.sum() for part in values.split(counts)])
    return total / total.sum()


def truth() -> torch.Tensor:
    """Each bundle's mean cross-section, as a share of their sum: the volume of its fibres over their length.

    Where bundles meet in a voxel, each has its share of the voxel's white matter.
    """
    filled = torch.stack(list(scene.fibres.occupancy.values())).sum(0).clamp(min=1)
    white = scene.fibres.tissues[WHITE] / filled
    area = [
        float((occupancy * white).sum()) / float(scene.bundles[name].streamlines.lengths().mean())
        for name, occupancy in scene.fibres.occupancy.items()
    ]
    return torch.tensor(area, dtype=torch.float64) / sum(area)


def explained() -> tuple[WeightFit, WeightFit, list[int]]:
    """Weights that explain the FODs' lobes, and weights that explain the signal."""
    lines, counts = uneven()
    shell = CSD.shell(scan.gtab)
    assert shell is not None
    by_fod = fit_weights(lines, FodTarget(fitted(), mask), regularisation=Regularisation(variation=0.1))
    by_signal = fit_weights(lines, SignalTarget(scan, response.coefficients, shell))
    return by_fod, by_signal, counts


def draw(by_fod: WeightFit, by_signal: WeightFit, counts: list[int], path: str) -> None:
    """Bars of the shares: the truth, counts, and both weights."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    ones = torch.ones(sum(counts), dtype=torch.float64)
    rows = {"truth": truth(), "counts": shares(ones, counts)}
    rows |= {"weights (fod)": shares(by_fod.weights, counts), "weights (signal)": shares(by_signal.weights, counts)}
    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    place = torch.arange(len(counts)).numpy()
    for number, (name, values) in enumerate(rows.items()):
        axes.bar(
            place + 0.2 * (number - 1.5),
            values.numpy(),
            0.2,
            label=name,
            color=["#334155", "#cbd5e1", "#2563eb", "#d97706"][number],
        )
    axes.set_xticks(place, list(scene.bundles))
    axes.set_ylabel("share of all bundles")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    fod, signal, n_lines = explained()
    draw(fod, signal, n_lines, sys.argv[1] if len(sys.argv) > 1 else "weights.png")
