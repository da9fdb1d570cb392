"""Scenes with known bundles for `tracking_accuracy.py`: a simulated subject, and the centrelines of the DiSCo phantom.

DiSCo: Rafael-Patino et al., *The diffusion-simulated connectivity (DiSCo) dataset*, Data in Brief 2021,
doi:10.1016/j.dib.2021.107429. Here the signal is simulated from the centrelines with `tractode.simulate`, not by random walks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tractode.evaluate.connections import BundleRegions, Criteria
from tractode.fields import DWI, GradientTable, Image, ImageGrid, PeakField, ShField, Streamlines, TensorField
from tractode.io.builtin_template import load_builtin
from tractode.io.gradients import write_gradients
from tractode.io.nifti import read_image, write_image
from tractode.io.tractogram import read_tractogram
from tractode.models.csd import CSD
from tractode.models.dti import DTI
from tractode.simulate import signal
from tractode.simulate.fibres import FibreField, FibreSettings, fibre_field
from tractode.simulate.gradients import multi_shell
from tractode.simulate.seeds import stream
from tractode.simulate.subject import SubjectSettings, field_of_view, simulate
from tractode.simulate.tissues import GREY, WHITE, anatomy
from tractode.simulate.truth import near
from tractode.simulate.warp import participant_warp
from tractode.tracking.peak_field import peak_field

SEED = 1
SHELLS, N_B0 = ((2500.0, 60),), 6
WHITE_MATTER = 1000.0


@dataclass(frozen=True, eq=False)
class Network:
    """Regions (nodes) and the true weight of the connection between every two of them."""

    nodes: list[Tensor]
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Scene:
    """What every tracker is given (fields, mask, seed mask, lengths) and the truth. Files of the same lie in ``folder``."""

    name: str
    folder: Path
    fod: ShField
    tensor: TensorField
    peaks: PeakField
    mask: Image
    seeds: Image
    bundles: dict[str, BundleRegions]
    criteria: Criteria
    lengths: tuple[float, float]
    network: Network | None = None

    @property
    def voxel(self) -> float:
        return self.mask.grid.voxel_sizes[0]


def subject_scenes(resolution: float, snrs: tuple[float, ...], folder: Path) -> Iterator[Scene]:
    """One simulated subject at one voxel size, with noise of each SNR."""
    brain = anatomy(*(load_builtin(name) for name in ("T1w", "GM", "WM", "mask")))
    space = "sub-01_dwi"
    settings = SubjectSettings(snr=None, t1w_snr=None)
    warp = participant_warp(brain.t1w.grid, "sub-01_T1w", stream(SEED, 0, "warp"), settings.warp)
    # Along the world's axes, so that DIPY, which reads coefficients in the frame of the voxels, sees the same FODs.
    axes = torch.eye(3, dtype=torch.float64)
    grid = field_of_view(brain, warp, (resolution,) * 3, axes, 8.0, space)
    t1w_grid = field_of_view(brain, warp, (4.0,) * 3, axes, 8.0, "sub-01_T1w")
    gtab = multi_shell(SHELLS, N_B0)
    made = simulate(brain, t1w_grid, grid, gtab, SEED, 0, settings)
    bundles = {name: regions(grid, t.streamlines, t.mask, t.start, t.end) for name, t in made.bundles.items()}
    white = made.fibres.tissues[WHITE]
    for snr in snrs:
        yield scene(
            f"subject_{resolution:g}mm_snr{snr:g}", folder, grid, made.noise_free, gtab, snr, white, bundles,
            Criteria(tolerance_mm=2.0), (20.0, 250.0),
        )  # fmt: skip


def disco_scenes(data: Path, snrs: tuple[float, ...], folder: Path) -> Iterator[Scene]:
    """The centrelines, bundled by the 16 regions that their ends cluster in, with noise of each SNR."""
    mask = read_image(data / "disco_mask.nii.gz", "disco")[0]
    lines, _ = read_tractogram(data / "disco_centerlines_resampled.tck", "disco")
    areas = torch.from_numpy(np.loadtxt(data / "disco_diameters.txt")) ** 2
    areas = areas / areas.min()
    strands, nodes = _strands_by_region(lines)
    grid, gtab = mask.grid, multi_shell(SHELLS, N_B0)
    weights = torch.zeros(len(nodes), len(nodes), dtype=torch.float64)
    chosen = {}
    for (a, b), (index, part) in strands.items():
        weights[a, b] = weights[b, a] = areas[index].sum()
        # A strand counts by its cross-section.
        chosen[f"{a:02d}to{b:02d}"] = part.select(torch.repeat_interleave(areas[index].round().long()))
    tissues = torch.zeros(3, *grid.shape, dtype=torch.float64)
    tissues[GREY] = 1
    fibres = fibre_field(grid, tissues, chosen, FibreSettings(smoothing_mm=0.75, background_mm=4.0, raised=1.0))
    ends = [near(grid, points, 1.5) for points in nodes]
    bundles = {}
    for (a, b), (_, part) in strands.items():
        name = f"{a:02d}to{b:02d}"
        bundles[name] = regions(grid, part, fibres.occupancy[name] > 0.5, ends[a], ends[b])
    clean = _signal(fibres, gtab)
    for snr in snrs:
        yield scene(
            f"disco_snr{snr:g}", folder, grid, clean, gtab, snr, fibres.tissues[WHITE], bundles,
            Criteria(tolerance_mm=1.0), (5.0, 100.0), Network(ends, weights),
        )  # fmt: skip


def regions(grid: ImageGrid, lines: Streamlines, mask: Tensor, start: Tensor, end: Tensor) -> BundleRegions:
    lengths = lines.lengths()
    return BundleRegions(grid, mask, start, end, (float(lengths.min()), float(lengths.max())))


def scene(
    name: str, folder: Path, grid: ImageGrid, clean: Tensor, gtab: GradientTable, snr: float, white: Tensor,
    bundles: dict[str, BundleRegions], criteria: Criteria, lengths: tuple[float, float], network: Network | None = None,
) -> Scene:  # fmt: skip
    """Noise, CSD and tensor fits in white matter, and the files that MRtrix3 needs."""
    mask, seeds = Image(grid, white[None] > 0.2), Image(grid, white[None] > 0.5)
    noise = torch.Generator().manual_seed(SEED + round(10 * snr))
    dwi = DWI(grid, signal.rician(clean.float(), WHITE_MATTER / snr, noise), gtab, mask.mask)
    model = CSD.for_data(dwi.signal[:, seeds.mask].mT, gtab)
    fod = ShField(grid, dwi.unravel(model.fit(dwi.voxels(), gtab).float()).values, model.order)
    tensor = TensorField(grid, dwi.unravel(DTI().fit(dwi.voxels(), gtab)[:, :6].float()).values)
    where = folder / name
    where.mkdir(parents=True)
    for stem, image in (("fod", Image(grid, fod.coeffs)), ("dwi", Image(grid, dwi.signal))):
        write_image(where / f"{stem}.nii.gz", image)
    for stem, image in (("mask", mask), ("seeds", seeds)):
        write_image(where / f"{stem}.nii.gz", Image(grid, image.values.float()))
    write_gradients(gtab, grid.affine, where / "dwi.bval", where / "dwi.bvec")
    return Scene(name, where, fod, tensor, peak_field(fod), mask, seeds, bundles, criteria, lengths, network)


def _strands_by_region(
    lines: Streamlines,
) -> tuple[dict[tuple[int, int], tuple[Tensor, Streamlines]], list[Tensor]]:
    """Strands between every two regions, all from the lower-numbered one; and the ends that lie in each region."""
    from sklearn.cluster import KMeans

    ends = torch.stack([lines.points[lines.offsets[:-1]], lines.points[lines.offsets[1:] - 1]], 1)
    found = KMeans(16, n_init=10, random_state=0).fit(ends.reshape(-1, 3).numpy())
    label = torch.from_numpy(found.labels_.astype(np.int64)).reshape(-1, 2)
    nodes = [ends[label == node] for node in range(16)]
    strands = {}
    for a, b in label.sort(1).values.unique(dim=0).tolist():
        index = ((label.sort(1).values == torch.tensor([a, b])).all(1)).nonzero().ravel()
        turned = [lines[int(i)] if int(label[i, 0]) == a else lines[int(i)].flip(0) for i in index]
        strands[a, b] = index, Streamlines.from_list(turned, lines.space)
    return strands, nodes


def _signal(fibres: FibreField, gtab: GradientTable) -> Tensor:
    brain = fibres.tissues.sum(0) > 0
    out = torch.zeros(len(gtab), *brain.shape, dtype=torch.float64)
    values = signal.predict(fibres.fod.coeffs[:, brain].mT, fibres.tissues[:, brain].mT, gtab, signal.TissueModel())
    out[:, brain] = values.mT * WHITE_MATTER
    return out
