"""Rigid and affine registration against exactly known transforms, real scans against SimpleITK."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tractode.errors import InputDataError, SpaceMismatchError
from tractode.evaluate.registration_quality import assess, demand
from tractode.fields import Affine, Image, ImageGrid
from tractode.registration.affine import AffineSettings, local_matrix, register_affine
from tractode.registration.halfway import half, step
from tractode.registration.metrics.correlation_ratio import correlation_ratio
from tractode.registration.metrics.mutual_information import mutual_information, normalised_mutual_information, parzen
from tractode.registration.point_costs import POINT_COSTS, point_cost

SMALL = AffineSettings(levels=(6.0, 4.0), points=6000)


def pose(shift: tuple, degrees: tuple, scale: tuple = (1.0, 1.0, 1.0)) -> Affine:
    turn = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64)) * 80
    matrix = local_matrix(torch.cat([torch.tensor(shift, dtype=torch.float64), turn]), torch.zeros(3).double())
    matrix[:3, :3] = matrix[:3, :3] @ torch.diag(torch.tensor(scale, dtype=torch.float64))
    return Affine(matrix, "fixed", "moving")


def grid_around(truth: Affine, grid: ImageGrid, slices: slice = slice(None)) -> ImageGrid:
    """Where a scanner would have put its field of view: upright, around the moved head; perhaps some slices only."""
    corner = grid.to_world((torch.tensor(grid.shape) - 1).double() / 2)
    affine = torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0], dtype=torch.float64))
    n = 46
    first, last, _ = slices.indices(n)
    affine[:3, 3] = truth.map(corner) - 4.0 * (n - 1) / 2 + torch.tensor([6.0, -9.0, 4.0 * first + 5.0]).double()
    return ImageGrid((n, n + 6, last - first), affine, "moving")


def error_mm(found: Affine, truth: Affine, mask: Image) -> float:
    points = mask.grid.centres(torch.float64)[mask.mask]
    return float((found.map(points) - truth.map(points)).norm(dim=-1).mean())


@pytest.mark.parametrize(
    ("shift", "degrees"),
    [
        ((35.0, -12.0, 15.0), (25.0, 5.0, -8.0)),
        pytest.param((-5.0, 20.0, -30.0), (-10.0, -18.0, 22.0), marks=pytest.mark.slow),
    ],
)
def test_rigid_found_from_afar_in_another_contrast(
    fixed: Image, fixed_mask: Image, moved: Callable, shift: tuple, degrees: tuple
) -> None:
    truth = pose(shift, degrees)
    moving = moved(truth, grid_around(truth, fixed.grid))
    found = register_affine(fixed, moving, dof="rigid", fixed_mask=fixed_mask, settings=SMALL)
    assert (found.source, found.target) == ("fixed", "moving")
    assert error_mm(found, truth, fixed_mask) < 0.4
    linear = found.matrix[:3, :3]
    torch.testing.assert_close(linear @ linear.mT, torch.eye(3).double(), atol=1e-9, rtol=0)


def test_affine_found_with_both_masks(fixed: Image, fixed_mask: Image, moved: Callable, moved_mask: Callable) -> None:
    truth = pose((10.0, 6.0, -20.0), (14.0, -4.0, 6.0), (0.88, 0.95, 0.9))
    target = grid_around(truth, fixed.grid)
    found = register_affine(
        fixed, moved(truth, target), fixed_mask=fixed_mask, moving_mask=moved_mask(truth, target), settings=SMALL
    )
    assert error_mm(found, truth, fixed_mask) < 0.6


@pytest.mark.slow
def test_slab_keeps_its_place(fixed: Image, fixed_mask: Image, moved: Callable, moved_mask: Callable) -> None:
    """A third of the head, as some scans are: it must neither slide nor stretch."""
    truth = pose((4.0, -10.0, 12.0), (-9.0, 3.0, 5.0), (0.95, 0.95, 0.95))
    target = grid_around(truth, fixed.grid, slice(18, 32))
    found = register_affine(
        fixed, moved(truth, target), fixed_mask=fixed_mask, moving_mask=moved_mask(truth, target), settings=SMALL
    )
    seen = (truth.map(fixed.grid.centres(torch.float64))[..., 2] - target.affine[2, 3]) / 4.0
    inside = Image(fixed.grid, (fixed_mask.mask & (seen > 0) & (seen < target.shape[2] - 1))[None])
    assert error_mm(found, truth, inside) < 1.5


def test_starts_where_told(fixed: Image, moved: Callable) -> None:
    truth = pose((3.0, -2.0, 2.0), (2.0, 1.0, -2.0))
    moving = moved(truth, grid_around(truth, fixed.grid))
    near = Affine(torch.eye(4, dtype=torch.float64), "fixed", "moving")
    found = register_affine(fixed, moving, dof="rigid", initial=near, settings=SMALL)
    assert error_mm(found, truth, Image(fixed.grid, torch.ones(1, *fixed.grid.shape).bool())) < 0.4
    with pytest.raises(SpaceMismatchError, match="must go 'fixed' → 'moving'"):
        register_affine(fixed, moving, initial=near.inverse(), settings=SMALL)


def test_same_answer_twice_and_inputs_untouched(fixed: Image, moved: Callable) -> None:
    truth = pose((3.0, -2.0, 2.0), (2.0, 1.0, -2.0))
    moving = moved(truth, grid_around(truth, fixed.grid))
    before = moving.values.clone()
    start = Affine(torch.eye(4, dtype=torch.float64), "fixed", "moving")
    quick = replace(SMALL, iterations=4)
    runs = [register_affine(fixed, moving, initial=start, settings=quick).matrix for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(before, moving.values)


NEAR = Affine(torch.eye(4, dtype=torch.float64), "fixed", "moving")
QUICK = AffineSettings(levels=(6.0,), points=2000, iterations=30)


@pytest.mark.parametrize("metric", ["nmi", "mi", "lmi", "cr", "lncc"])
def test_exchanged_images_give_the_inverse(
    fixed: Image, fixed_mask: Image, moved: Callable, moved_mask: Callable, metric: str
) -> None:
    # Local costs need enough points in each of enough groups, and correlation a contrast that is a line of the other.
    settings = replace(QUICK, points=8000) if metric in ("lmi", "lncc") else QUICK
    truth = pose((5.0, -4.0, 6.0), (6.0, -3.0, 4.0), (1.03, 0.97, 1.0))
    target = grid_around(truth, fixed.grid)
    contrast = "same" if metric == "lncc" else "inverted"
    moving, mask = moved(truth, target, contrast), moved_mask(truth, target)
    there = register_affine(
        fixed, moving, metric=metric, initial=NEAR, fixed_mask=fixed_mask, moving_mask=mask, settings=settings
    )
    back = register_affine(
        moving, fixed, metric=metric, initial=NEAR.inverse(), fixed_mask=mask, moving_mask=fixed_mask, settings=settings
    )
    assert error_mm(there, truth, fixed_mask) < 1.5
    points = fixed_mask.grid.centres(torch.float64)[fixed_mask.mask]
    assert float((back.map(there.map(points)) - points).norm(dim=-1).max()) < 0.05


@pytest.mark.slow
def test_search_is_the_same_from_either_side(fixed: Image, moved: Callable) -> None:
    """The whole search, from afar, without masks."""
    truth = pose((35.0, -12.0, 15.0), (25.0, 5.0, -8.0))
    moving = moved(truth, grid_around(truth, fixed.grid))
    quick = replace(QUICK, starts=2, finalists=1)
    there = register_affine(fixed, moving, dof="rigid", settings=quick)
    back = register_affine(moving, fixed, dof="rigid", settings=quick)
    assert float((there.matrix @ back.matrix - torch.eye(4).double()).abs().max()) < 0.05


def test_steps_halfway_invert_one_another() -> None:
    generator = torch.Generator().manual_seed(3)
    parameters = 20 * torch.randn(12, dtype=torch.float64, generator=generator)
    centre = torch.tensor([3.0, -40.0, 12.0], dtype=torch.float64)
    identity = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(step(parameters, centre) @ step(-parameters, centre), identity, atol=1e-9, rtol=0)
    turn = step(torch.tensor([0.0, 0, 0, 80 * torch.pi / 2, 0, 0], dtype=torch.float64), centre)
    expected = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(turn[:3, :3], expected, atol=1e-9, rtol=0)
    root = half(step(parameters, centre))
    assert root is not None
    torch.testing.assert_close(root @ root, step(parameters, centre))
    assert half(torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))) is None


@pytest.mark.parametrize("name", POINT_COSTS)
def test_costs_at_points_agree_with_the_metrics(name: str) -> None:
    """The same numbers as the metric of that name, where both see the same voxels; local ones in one window."""
    first, second = (
        torch.rand(1, 600, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    second = 0.6 * first.square() + 0.4 * second
    measure = point_cost(name, 16)
    tally = measure.tally(measure.prepare(first), measure.prepare(second), torch.ones_like(first))
    found = float(measure.cost(tally))
    weight = torch.ones(600, dtype=torch.float64)
    windows = [parzen(values[0], measure.bins) for values in (first, second)]
    joint = windows[0].mT @ windows[1]
    ratios = [
        float(correlation_ratio(window, values[0], weight))
        for window, values in zip(windows, (second, first), strict=True)
    ]
    expected = {
        "nmi": -float(normalised_mutual_information(joint)),
        "mi": -float(mutual_information(joint)),
        "lmi": -float(mutual_information(joint)),
        "cr": 1 - sum(ratios) / 2,
        "lncc": 1 - float(torch.corrcoef(torch.cat([first, second]))[0, 1] ** 2),
    }
    # The floor under the variances of local correlations is one part in a hundred.
    assert found == pytest.approx(expected[name], abs=0.02 if name == "lncc" else 1e-6)


@pytest.mark.parametrize(
    ("wrong", "id"), [("empty mask", "E-REG-MASK"), ("uniform", "E-REG-FLAT"), ("elsewhere", "E-REG-OVERLAP")]
)
def test_bad_pairs_are_refused(fixed: Image, fixed_mask: Image, wrong: str, id: str) -> None:
    """Each with its own error, and none with a warp."""
    moving = Image(fixed.grid.renamed("moving"), fixed.values)
    mask, initial = fixed_mask, NEAR
    if wrong == "empty mask":
        mask = Image(fixed.grid, torch.zeros_like(fixed_mask.values))
    elif wrong == "uniform":
        moving = Image(moving.grid, torch.full_like(moving.values, 7.0))
    else:
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[2, 3] = 900.0
        initial = Affine(matrix, "fixed", "moving")
    with pytest.raises(InputDataError) as caught:
        register_affine(fixed, moving, fixed_mask=mask, initial=initial, settings=QUICK)
    assert caught.value.id == id


@pytest.mark.parametrize(
    ("wrong", "id"),
    [("noise", "E-REG-HOLLOW"), ("brains apart", "E-REG-BRAINS"), ("nothing shared", "E-REG-COVERED"), ("none", "")],
)
def test_gate_names_what_is_wrong(fixed: Image, fixed_mask: Image, wrong: str, id: str) -> None:
    moving = Image(fixed.grid.renamed("moving"), fixed.values)
    matrix = torch.eye(4, dtype=torch.float64)
    if wrong == "noise":
        # A map without anatomy: its descriptors are as near to the head's after any shift as here.
        matrix[0, 3] = 11.0
        values = torch.rand(moving.values.shape, generator=torch.Generator().manual_seed(1))
        moving = Image(moving.grid, values)
    elif wrong != "none":
        matrix[2, 3] = 40.0 if wrong == "brains apart" else 400.0
    mask = Image(moving.grid, fixed_mask.values)
    verdict = assess(fixed, moving, Affine(matrix, "fixed", "moving"), fixed_mask, mask if wrong != "noise" else None)
    assert verdict.id == id
    assert verdict.passed is (not id)
    if not id:
        demand(verdict)
        return
    with pytest.raises(InputDataError) as caught:
        demand(verdict)
    assert caught.value.id == id


def _sitk_image(image: Image):
    import SimpleITK as sitk

    out = sitk.GetImageFromArray(image.values[0].float().numpy().transpose(2, 1, 0))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.grid.affine.numpy()
    size = np.linalg.norm(affine[:3, :3], axis=0)
    out.SetSpacing(size.tolist())
    out.SetOrigin(affine[:3, 3].tolist())
    out.SetDirection((affine[:3, :3] / size).ravel().tolist())
    return out


def _sitk_rigid(fixed: Image, moving: Image) -> Affine:
    """SimpleITK's Mattes mutual information from the scanner's own alignment."""
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetGlobalDefaultNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([3, 1])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    transform = sitk.Euler3DTransform()
    transform.SetCenter(
        np.asarray(
            fixed.grid.to_world(torch.tensor(fixed.grid.shape).double() / 2) * torch.tensor([-1, -1, 1])
        ).tolist()
    )
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(_sitk_image(fixed), _sitk_image(moving))
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([np.array(transform.TransformPoint(e)) - origin for e in np.eye(3).tolist()], axis=1)
    matrix[:3, 3] = origin
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    return Affine(torch.from_numpy(lps @ matrix @ lps), fixed.grid.space, moving.grid.space)


@pytest.mark.reference
def test_no_worse_than_simpleitk_where_the_truth_is_known(fixed: Image, fixed_mask: Image, moved: Callable) -> None:
    pytest.importorskip("SimpleITK")
    truth = pose((5.0, -4.0, 6.0), (5.0, -3.0, 4.0))
    moving = moved(truth, grid_around(truth, fixed.grid))
    theirs = error_mm(_sitk_rigid(fixed, moving), truth, fixed_mask)
    ours = error_mm(register_affine(fixed, moving, dof="rigid", settings=SMALL), truth, fixed_mask)
    assert theirs < 3
    assert ours < theirs + 0.1


def _load(path: str, space: str) -> Image:
    import nibabel as nib

    image = nib.load(path)
    values = np.array(image.dataobj[..., :1] if image.ndim == 4 else image.dataobj[..., None], dtype=np.float32)
    grid = ImageGrid(values.shape[:3], torch.from_numpy(image.affine), space)
    return Image(grid, torch.from_numpy(values[..., 0])[None])


@pytest.mark.xfail(
    strict=True,
    reason="measured 2.6 mm apart on a distorted b=0 image; which is nearer is not known, and the app refines its own (decision 0006)",
)
@pytest.mark.reference
@pytest.mark.slow
def test_real_scan_to_its_anatomy_agrees_with_simpleitk(test_data) -> None:
    pytest.importorskip("SimpleITK")
    subject = test_data / "bids_real" / "sub-xa30"
    anatomy = _load(str(subject / "anat" / "sub-xa30_T1w.nii.gz"), "T1w")
    scan = _load(str(subject / "dwi" / "sub-xa30_dir-AP_dwi.nii.gz"), "dwi")
    ours, theirs = register_affine(anatomy, scan, dof="rigid"), _sitk_rigid(anatomy, scan)
    brain = torch.tensor(
        [[x, y, z] for x in (-60, 0, 60) for y in (-70, 0, 60) for z in (0, 40, 80)], dtype=torch.float64
    )
    assert float((ours.map(brain) - theirs.map(brain)).norm(dim=-1).mean()) < 2.0


@pytest.mark.slow
@pytest.mark.parametrize("template", ["head", "brain only"])
def test_whole_head_to_template_with_head_and_to_brain_only(test_data, template: str) -> None:
    """The size of this head is known by eye: an adult's, smaller than MNI's by 8 to 14 % along every axis."""
    folder = test_data / "templateflow" / "tpl-MNI152NLin2009cAsym"
    stem = str(folder / "tpl-MNI152NLin2009cAsym_res-02_")
    fixed, mask = _load(stem + "T1w.nii.gz", "MNI"), _load(stem + "desc-brain_mask.nii.gz", "MNI")
    if template == "brain only":
        fixed = Image(fixed.grid, fixed.values * mask.values)
    moving = _load(str(test_data / "bids_real" / "sub-xa30" / "anat" / "sub-xa30_T1w.nii.gz"), "T1w")
    found = register_affine(fixed, moving, fixed_mask=mask)
    scales = torch.linalg.svdvals(found.matrix[:3, :3])
    assert bool(((scales > 0.84) & (scales < 0.96)).all())
    commissure = found.map(torch.tensor([[0.0, 3.0, -5.0]], dtype=torch.float64))
    torch.testing.assert_close(commissure, torch.tensor([[0.7, 20.2, 17.5]]).double(), atol=4.0, rtol=0)
