"""Weights of streamlines: exact lengths, fixels, both models against truth by construction and outside solvers."""

from __future__ import annotations

import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from tractode.errors import SpaceMismatchError
from tractode.fields import DWI, GradientTable, Image, ImageGrid, ShField, Streamlines
from tractode.io.nifti import write_image
from tractode.io.tractogram import write_tractogram
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh
from tractode.ops.lbfgs import LbfgsSettings, minimise
from tractode.tracking import fascicles
from tractode.tracking.fibre_density import DensityModel, DensityObjective, FodTarget, solve
from tractode.tracking.fixels import Fixels, fixels_of
from tractode.tracking.kernels.segments import nearest_axis
from tractode.tracking.segments import stays
from tractode.tracking.streamline_weights import Regularisation, SignalTarget, fit_weights

SPACE = "sub-01_dwi"
NONE = Regularisation(0.0, 0.0)


@pytest.fixture
def grid(oblique_affine: torch.Tensor) -> ImageGrid:
    return ImageGrid((9, 10, 8), oblique_affine, SPACE)


def crossing_lines(grid: ImageGrid, n: int, seed: int) -> Streamlines:
    """Bent lines along the three storage axes in turn, from one side of the grid to the other."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor(grid.shape, dtype=torch.float64) - 1
    lines = []
    for number in range(n):
        axis = number % 3
        ends = torch.rand(2, 3, generator=generator, dtype=torch.float64) * size
        ends[0, axis], ends[1, axis] = 0.0, size[axis]
        ends[1] = torch.where(torch.arange(3) == axis, ends[1], ends[0] + 0.15 * (ends[1] - ends[0]))
        t = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None]
        lines.append(grid.to_world(ends[0] + t * (ends[1] - ends[0])).float())
    return Streamlines.from_list(lines, grid.space)


def orientation_field(grid: ImageGrid, lines: Streamlines, weights: torch.Tensor, order: int = 8) -> ShField:
    """FODs whose integral along a direction is the weighted length of the lines there, in mm a mm³: sharp lobes, no noise."""
    found = stays(lines, grid)
    voxel = torch.from_numpy(found.voxel).long()
    share = weights[torch.from_numpy(found.line).long()] * torch.from_numpy(found.length).double()
    # A lobe cos^8 about a direction is a harmonic series of degree 8; its integral over the sphere is 4π/9.
    axes = sphere.directions(300, hemisphere=True)
    profile = (axes @ torch.from_numpy(found.direction).double().mT).pow(8) * 9 / (4 * math.pi)
    coefficients = torch.linalg.lstsq(sh.basis(axes, order), profile).solution
    total = torch.zeros(grid.n_voxels, len(coefficients), dtype=torch.float64)
    total.index_add_(0, voxel, (coefficients * share).mT)
    return ShField(grid, total.mT.reshape(-1, *grid.shape).float(), order)


def known_weights(n: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.5 + 0.25


def test_the_stays_of_a_line_add_up_to_its_length(grid: ImageGrid) -> None:
    lines = crossing_lines(grid, 30, 0)
    found = stays(lines, grid)
    total = torch.from_numpy(np.bincount(found.line, weights=found.length, minlength=len(lines)))
    torch.testing.assert_close(total, lines.lengths().double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(found.direction).norm(dim=-1), torch.ones(len(found.voxel)))


def test_lengths_by_voxel_are_those_of_a_finely_cut_line(grid: ImageGrid) -> None:
    """Truth: 4,000 parts of each segment, each counted where its middle lies. Its error is one part a crossing."""
    lines = crossing_lines(grid, 6, 1)
    found = stays(lines, grid)
    mine = np.bincount(found.voxel, weights=found.length, minlength=grid.n_voxels)
    truth, n = torch.zeros(grid.n_voxels, dtype=torch.float64), 4000
    for line in lines:
        share = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        step = line.double().diff(dim=0)
        i, j, k = grid.to_voxel(line[:-1, None].double() + share[:, None] * step[:, None]).round().long().unbind(-1)
        voxel = (i * grid.shape[1] + j) * grid.shape[2] + k
        truth.index_add_(0, voxel.ravel(), (step.norm(dim=-1)[:, None] / n).expand(-1, n).ravel())
    np.testing.assert_allclose(mine, truth.numpy(), atol=5e-3)


def test_what_lies_outside_the_grid_or_on_a_wall_is_counted_once(grid: ImageGrid) -> None:
    wall = grid.to_world(torch.tensor([[-3.0, 2.5, 2.0], [20.0, 2.5, 2.0]], dtype=torch.float64)).float()
    still = wall[:1].expand(3, 3)
    found = stays(Streamlines.from_list([wall, still], SPACE), grid)
    inside = grid.shape[0] * grid.voxel_sizes[0]
    assert abs(float(found.length.sum()) - inside) < 1e-3
    assert found.offsets[-1] == found.offsets[1]  # a line without length stays nowhere


def test_lines_of_another_space_are_refused(grid: ImageGrid) -> None:
    with pytest.raises(SpaceMismatchError):
        stays(Streamlines.from_list([torch.zeros(2, 3)], "elsewhere"), grid)


def test_fixels_have_the_directions_and_integrals_they_were_made_of(grid: ImageGrid) -> None:
    along = sphere.directions(40)[::9]
    axes = torch.stack([along[0], torch.linalg.cross(along[0], along[1])])
    axes = axes / axes.norm(dim=-1, keepdim=True)
    on = sphere.directions(300, hemisphere=True)
    profiles = (on @ axes.mT).pow(8) * torch.tensor([1.2, 0.5]) * 9 / (4 * math.pi)
    coefficients = torch.linalg.lstsq(sh.basis(on, 8), profiles.sum(-1, keepdim=True)).solution[:, 0]
    field = torch.zeros(45, *grid.shape)
    field[:, 3, 4, 5] = coefficients.float()
    found = fixels_of(ShField(grid, field, 8))
    assert len(found) == 2
    assert float(sphere.angle(found.axes.double(), axes).max()) < math.radians(1.5)
    torch.testing.assert_close(found.integrals, torch.tensor([1.2, 0.5]), rtol=0.03, atol=0)
    assert found.voxel.tolist() == [(3 * 10 + 4) * 8 + 5] * 2


def density_model(grid: ImageGrid, n: int, weights: torch.Tensor) -> tuple[DensityModel, Streamlines]:
    """Fixels of a field of the lines, with integrals that the known weights explain exactly."""
    lines = crossing_lines(grid, n, 5)
    fixels = fixels_of(orientation_field(grid, lines, torch.ones(n, dtype=torch.float64)))
    model = DensityModel.of(lines, fixels)
    exact = torch.from_numpy(0.01 * model.density(weights.numpy())).float()
    return DensityModel(replace(fixels, integrals=exact), model.by_line, model.by_fixel), lines


def test_the_objective_has_the_gradient_of_its_finite_differences(grid: ImageGrid) -> None:
    model, _ = density_model(grid, 24, known_weights(24))
    objective = DensityObjective(model, 0.011, model.target > 0, Regularisation(0.3, 0.7))
    at = np.random.default_rng(0).normal(size=24) * 0.4
    _, gradient = objective(at)
    for s in range(24):
        h = np.zeros(24)
        h[s] = 1e-5
        slope = (objective(at + h)[0] - objective(at - h)[0]) / 2e-5
        assert abs(slope - gradient[s]) < 1e-6 * np.abs(gradient).max() + 1e-9


def test_known_weights_are_recovered_from_fibre_densities(grid: ImageGrid) -> None:
    """48 lines over 720 voxels, exact densities, no regularisation: to 10⁻⁴, up to the held proportionality.

    Two lines lie in the same fixels; of them only the sum is seen: errors are compared as far as the fixels see them.
    """
    truth = known_weights(48)
    model, _ = density_model(grid, 48, truth)
    fit = solve(model, NONE, LbfgsSettings(most=2000, tolerance=1e-12))
    explained = fit.mu * fit.weights / 0.01
    matrix = np.stack([model.density(row) for row in np.eye(48)], 1)
    seen = np.linalg.pinv(matrix, rcond=1e-4) @ matrix
    assert np.abs(seen @ (explained - truth).numpy()).max() < 1e-4
    assert float((explained - truth).abs().median()) < 1e-5
    assert fit.statistics()["after"]["r2"] > 0.9999 > fit.statistics()["before"]["r2"]
    assert all(b <= a for a, b in zip(fit.objective, fit.objective[1:], strict=False))


def test_regularisation_pulls_weights_together(grid: ImageGrid) -> None:
    model, _ = density_model(grid, 48, known_weights(48))
    spread = [float(solve(model, Regularisation(0.0, v)).weights.log().std()) for v in (0.0, 0.1, 10.0)]
    assert spread[0] > spread[1] > spread[2]


def test_weights_follow_the_orientation_field(grid: ImageGrid) -> None:
    """The whole way, segmentation of lobes included; a line in no fixel has weight 0."""
    truth = known_weights(60)
    lines = crossing_lines(grid, 60, 5)
    field = orientation_field(grid, lines, truth)
    mask = torch.ones(1, *grid.shape, dtype=torch.bool)
    aside = Streamlines.from_list([torch.full((2, 3), 900.0) + torch.eye(2, 3)], SPACE)
    fit = fit_weights(Streamlines.concatenate([lines, aside], SPACE), FodTarget(field, Image(grid, mask)))
    assert float(np.corrcoef(fit.weights[:-1], truth)[0, 1]) > 0.9
    assert float(fit.weights[-1]) == 0
    assert fit.maps["explained"].values.shape == (1, *grid.shape)
    assert fit.statistics()["after"]["sse"] < 0.5 * fit.statistics()["before"]["sse"]


RESPONSE = torch.tensor([3.2, -1.1, 0.25, -0.04], dtype=torch.float64)


def signal_target(grid: ImageGrid, lines: Streamlines, weights: torch.Tensor, isotropic: float = 0.0) -> SignalTarget:
    """A scan of 30 directions whose signal is exactly that of the weighted lines and a part without direction."""
    bvecs = torch.cat([torch.zeros(1, 3, dtype=torch.float64), sphere.directions(30)])
    gtab = GradientTable(torch.tensor([0.0] + [3000.0] * 30).double(), bvecs, torch.arange(31) == 0)
    mask = torch.ones(grid.shape, dtype=torch.bool)
    mask[0] = False
    scan = DWI(grid, torch.zeros(31, *grid.shape), gtab, mask)
    model = fascicles.FascicleModel.of(lines, scan)
    signal = torch.zeros(31, grid.n_voxels)
    predicted = model.predict(weights.numpy(), fascicles.atoms_of(RESPONSE, bvecs[1:]))
    signal[1:, torch.from_numpy(model.voxels)] = torch.from_numpy(predicted).mT
    signal[1:] += isotropic
    solver = fascicles.SolverSettings(most=1500, tolerance=1e-9)
    return SignalTarget(
        DWI(grid, signal.reshape(31, *grid.shape), gtab, mask), RESPONSE, torch.arange(1, 31), solver=solver
    )


def test_a_line_predicts_the_response_turned_along_it(grid: ImageGrid) -> None:
    """Truth: a straight line through the middle of a voxel; its signal is the response at the angle to each gradient."""
    ends = grid.to_world(torch.tensor([[4.0, 4.5, 3.0], [4.0, 5.5, 3.0]], dtype=torch.float64)).float()
    target = signal_target(grid, Streamlines.from_list([ends], SPACE), torch.ones(1, dtype=torch.float64))
    along = (ends[1] - ends[0]).double()
    volume = abs(float(torch.det(grid.affine[:3, :3])))
    cosine = target.dwi.gtab.bvecs[1:] @ along / along.norm()
    expected = along.norm() / volume * (sh.zonal(6, cosine) @ RESPONSE)
    # The nearest axis of the dictionary is within 2.6° of the line's own.
    torch.testing.assert_close(
        target.dwi.signal[1:, 4, 5, 3].double(), expected, rtol=0, atol=0.05 * float(expected.max())
    )


def test_every_direction_has_an_axis_of_the_dictionary_near_it() -> None:
    """And it is the one that comparing with all of them finds."""
    directions = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    axes = fascicles.dictionary()
    found = np.empty(4000, np.int16)
    nearest_axis(directions.numpy(), axes, 0.05, found)
    cosine = np.abs(directions.numpy() @ axes.T)
    chosen = cosine[np.arange(4000), found]
    np.testing.assert_allclose(chosen, cosine.max(1), atol=1e-6)
    assert math.degrees(math.acos(min(1.0, float(chosen.min())))) < 2.6


def test_known_weights_are_recovered_from_the_signal(grid: ImageGrid) -> None:
    """Noise-free, with an isotropic part in every voxel: weights within 1 % of the largest."""
    truth = known_weights(45)
    truth[::9] = 0
    lines = crossing_lines(grid, 45, 7)
    fit = fit_weights(lines, signal_target(grid, lines, truth, isotropic=0.05), regularisation=NONE)
    assert float((fit.weights - truth).abs().max()) < 0.01 * float(truth.max())
    assert fit.statistics()["after"]["r2"] > 0.9999


@pytest.mark.reference
def test_weights_are_those_of_scipys_nnls(grid: ImageGrid) -> None:
    """A noisy signal; the isotropic part of each voxel is one column more of the dense matrix."""
    lines = crossing_lines(grid, 40, 9)
    target = signal_target(grid, lines, known_weights(40), isotropic=0.05)
    noise = 0.05 * torch.randn(target.dwi.signal.shape, generator=torch.Generator().manual_seed(1))
    target = replace(target, dwi=replace(target.dwi, signal=target.dwi.signal + noise))
    fit = fit_weights(lines, target, regularisation=NONE)
    model = fascicles.FascicleModel.of(lines, target.dwi)
    atoms = fascicles.atoms_of(RESPONSE, target.dwi.gtab.bvecs[1:])
    columns = [model.predict(row, atoms).ravel() for row in np.eye(40)]
    constant = np.repeat(np.eye(len(model.voxels)), 30, axis=0)
    truth, _ = nnls(np.concatenate([np.stack(columns, 1), constant], 1).astype(np.float64), fit.target.double().numpy())
    assert float(np.abs(fit.weights.numpy() - truth[:40]).max()) < 2e-3 * truth[:40].max()


def test_signal_gradient_is_that_of_finite_differences(grid: ImageGrid) -> None:
    lines = crossing_lines(grid, 12, 2)
    target = signal_target(grid, lines, known_weights(12), isotropic=0.05)
    model = fascicles.FascicleModel.of(lines, target.dwi)
    signal = target.dwi.signal[1:].flatten(1)[:, torch.from_numpy(model.voxels)].mT.contiguous().numpy()
    atoms = fascicles.atoms_of(RESPONSE, target.dwi.gtab.bvecs[1:])
    objective = fascicles.SignalObjective(model, atoms, signal, True, 0.3)
    at = known_weights(12, 8).numpy()
    _, gradient = objective(at)
    for s in range(0, 12, 3):
        h = np.zeros(12)
        h[s] = 0.05
        slope = (objective(at + h)[0] - objective(at - h)[0]) / 0.1
        assert abs(slope - gradient[s]) < 1e-3 * np.abs(gradient).max()


@pytest.mark.parametrize("kind", ["fod", "signal"])
def test_batches_and_threads_change_no_bit(grid: ImageGrid, kind: str) -> None:
    lines = crossing_lines(grid, 33, 4)
    truth = known_weights(33)
    target: FodTarget | SignalTarget
    target = FodTarget(orientation_field(grid, lines, truth)) if kind == "fod" else signal_target(grid, lines, truth)
    if isinstance(target, SignalTarget):
        target = replace(target, solver=fascicles.SolverSettings(most=15))
    parts = [lines.select(torch.arange(a, b)) for a, b in ((0, 5), (5, 6), (6, 33))]
    once = fit_weights(lines, target).weights
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = fit_weights(iter(parts), target).weights
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(once, again)


def test_a_tractogram_without_lines_is_refused(grid: ImageGrid) -> None:
    empty = Streamlines.from_list([], SPACE)
    lines = crossing_lines(grid, 3, 0)
    with pytest.raises(ValueError, match="without streamlines"):
        fit_weights(empty, FodTarget(orientation_field(grid, lines, known_weights(3))))
    with pytest.raises(ValueError, match="without streamlines"):
        fit_weights(empty, signal_target(grid, lines, known_weights(3)))


def test_lbfgs_finds_the_minimum_of_a_badly_scaled_quadratic() -> None:
    scale = np.geomspace(1, 1e4, 30)
    centre = np.linspace(-2, 2, 30)

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        return 0.5 * float((scale * (x - centre) ** 2).sum()), scale * (x - centre)

    found = minimise(function, np.zeros(30), np.ones(30), LbfgsSettings(most=500, tolerance=1e-14))
    assert found.converged
    np.testing.assert_allclose(found.point, centre, atol=1e-4)


def _mrtrix(*command: str) -> None:
    subprocess.run([*command, "-quiet", "-nthreads", "1", "-force"], check=True)


@pytest.fixture
def files(grid: ImageGrid, tmp_path: Path) -> tuple[Path, Path, Streamlines, ShField]:
    lines = crossing_lines(grid, 90, 5)
    field = orientation_field(grid, lines, known_weights(90))
    write_image(tmp_path / "fod.nii.gz", Image(grid, field.coeffs))
    write_tractogram(tmp_path / "lines.tck", lines, grid)
    return tmp_path / "fod.nii.gz", tmp_path / "lines.tck", lines, field


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("fod2fixel") is None, reason="MRtrix3 is not installed")
def test_fixels_are_those_of_mrtrix(files: tuple[Path, Path, Streamlines, ShField], tmp_path: Path) -> None:
    """Counts of lobes in 95 % of voxels; where they agree, integrals within 3 % in the median. Scales as MRtrix3's."""
    fod, _, _, field = files
    _mrtrix("fod2fixel", str(fod), str(tmp_path / "fixels"), "-afd", "afd.mif")
    _mrtrix("fixel2voxel", str(tmp_path / "fixels/afd.mif"), "count", str(tmp_path / "count.nii"))
    _mrtrix("fixel2voxel", str(tmp_path / "fixels/afd.mif"), "sum", str(tmp_path / "sum.nii"))
    theirs_count, theirs = (nibabel.load(tmp_path / f"{name}.nii").get_fdata() for name in ("count", "sum"))
    mine: Fixels = fixels_of(field)
    count = mine.count.reshape(field.grid.shape).numpy()
    present = (count > 0) | (theirs_count > 0)
    agree = count == theirs_count
    assert agree[present].mean() > 0.95
    total = mine.per_voxel(mine.integrals).values[0].numpy()[present & agree]
    assert abs(np.median(total / theirs[present & agree]) - 1) < 0.03


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("tcksift2") is None, reason="MRtrix3 is not installed")
def test_the_fit_is_at_least_as_good_as_tcksift2s(
    files: tuple[Path, Path, Streamlines, ShField], tmp_path: Path
) -> None:
    """The same lines and FODs; both weights judged on our fixels, each with its own best proportionality."""
    fod, tck, lines, field = files
    weights = tmp_path / "weights.txt"
    _mrtrix("tcksift2", str(tck), str(fod), str(weights))
    model = DensityModel.of(lines, fixels_of(field))

    def misfit(w: np.ndarray) -> float:
        density = model.density(w)
        return float(np.square(model.target - density * (density @ model.target) / (density @ density)).sum())

    theirs = misfit(np.loadtxt(weights))
    assert misfit(solve(model, Regularisation()).weights.numpy()) <= 1.05 * theirs
    assert theirs < misfit(np.ones(len(lines)))
