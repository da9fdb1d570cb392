"""The field from an undistorted image of another contrast, against a field that is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tractode.errors import InputDataError, SpaceMismatchError
from tractode.fields import Affine, Image, ImageGrid
from tractode.ops import epi
from tractode.registration.anatomy_field import AnatomyFieldSettings, estimate_field_from_anatomy
from tractode.registration.local_regression import LocalRegression
from tractode.registration.reverse_encoding import EncodedScan, Level, undistort

READOUT = 0.05
FEW = AnatomyFieldSettings((Level(6.0, 18.0, 15), Level(4.0, 12.0, 20)), width=12.0, harmonic=3.0)


def tissues(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of brain, white matter and ventricle in a ball of 32 mm around the origin."""
    brain = torch.sigmoid((32 - points.norm(dim=-1)) / 1.0)
    x, y, z = points.unbind(-1)
    folds = torch.sin(x / 4 + y / 9) + torch.sin(y / 5 - z / 8) + torch.sin(z / 4.5 + x / 8)
    ventricle = torch.sigmoid((6 - (points - torch.tensor([0.0, -4.0, 3.0]).to(points)).norm(dim=-1)) / 0.8)
    return brain, torch.sigmoid(2.5 * folds), ventricle


def scene(affine: Tensor) -> tuple[EncodedScan, Image, Image, Affine, Tensor, Tensor]:
    """A distorted scan, the anatomy on another grid with its mask, the pose, the field (Hz) and where the brain is."""
    grid = ImageGrid((40, 38, 34), affine, "scan")
    middle = grid.to_world(torch.tensor([19.5, 18.5, 16.5], dtype=torch.float64))
    turn = torch.tensor([[0, -0.03, 0.02], [0.03, 0, 0.02], [-0.02, -0.02, 0]], dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3], matrix[:3, 3] = torch.linalg.matrix_exp(turn), middle  # the anatomy's brain is around its origin
    pose = Affine(matrix, "anatomy", "scan")
    points = grid.centres(torch.float64)
    brain, white, ventricle = tissues(pose.inverse().map(points))
    along = affine[:3, 1] / affine[:3, 1].norm()
    source = middle + 44 * along - torch.tensor([0.0, 0.0, 14.0], dtype=torch.float64)
    field = 1500 / (points - source).norm(dim=-1)  # harmonic but for its source, outside the brain
    inside = brain > 0.5
    field = field - field[inside].mean()
    signal = brain * (0.85 - 0.3 * white) * (1 - ventricle) + 1.7 * ventricle
    generator = torch.Generator().manual_seed(0)
    moved = epi.distorted(signal[None], epi.shift_vox(field, 1, READOUT), 1)
    noisy = moved + 0.03 * torch.randn(moved.shape, generator=generator, dtype=torch.float64)
    scan = EncodedScan(Image(grid, noisy.float()), 1, 1, READOUT)
    there = ImageGrid(
        (40, 40, 40), torch.tensor([[0, 2, 0, -39], [0, 0, 2, -39], [2, 0, 0, -39], [0, 0, 0, 1.0]]), "anatomy"
    )
    at = there.centres(torch.float64)
    brain, white, ventricle = tissues(at)
    t1w = brain * (0.6 + 0.4 * white) * (1 - 0.8 * ventricle) + 0.7 * torch.exp(-((at.norm(dim=-1) - 37) ** 2) / 2)
    return scan, Image(there, t1w[None].float()), Image(there, (brain > 0.5)[None]), pose, field, inside


def test_a_known_field_is_found(oblique_affine: Tensor) -> None:
    scan, anatomy, mask, pose, truth, inside = scene(oblique_affine)
    nudge = torch.eye(4, dtype=torch.float64)
    nudge[:3, 3] = torch.tensor([0.8, -1.0, 0.6])
    start = Affine(nudge @ pose.matrix, "anatomy", "scan")
    found = estimate_field_from_anatomy(scan, anatomy, pose=start, anatomy_mask=mask, settings=FEW)
    hz = found.field.values[0]
    assert abs(float(hz[inside].mean())) < 1.5  # without mean
    off, none = ((values - truth)[inside].abs() for values in (hz, torch.zeros_like(hz)))
    assert float(off.median()) < 0.6 * float(none.median())
    assert float(off.quantile(0.95)) < 0.6 * float(none.quantile(0.95))
    assert found.difference_after < 0.95 * found.difference_before
    # The pose goes from the field's space to the anatomy's, and is better than the start across the encoding.
    points = scan.image.grid.centres(torch.float64)[inside]
    apart = found.motions[1].inverse().map(found.motions[1].map(points)) - points
    assert float(apart.abs().max()) < 1e-6
    along = scan.direction / scan.direction.norm()
    real = pose.inverse().map(points)
    for axis in (0, 2):
        across = scan.image.grid.affine[:3, axis] / scan.image.grid.voxel_sizes[axis]
        left = ((found.motions[1].inverse().map(real) - points) @ across).abs().mean()
        assert float(left) < 0.5
    # Where a point of the anatomy lands in the scan: pose and field together.
    land = found.motions[1].inverse().map(real)
    land = land + found.field.sample(land.float())[..., :1].double() * scan.direction
    wanted = points + truth[inside][:, None] * scan.direction
    before = start.map(real)
    assert float(((land - wanted) @ along).abs().mean()) < 0.5 * float(((before - wanted) @ along).abs().mean())
    signal = undistort(scan, Image(scan.image.grid, truth[None].float())).values[0]
    errors = [
        float((values - signal)[inside].square().mean())
        for values in (scan.image.values[0], undistort(scan, found.field).values[0])
    ]
    assert errors[1] < 0.6 * errors[0]


def test_what_cannot_be_used_is_refused(oblique_affine: Tensor) -> None:
    scan, anatomy, mask, pose, _, _ = scene(oblique_affine)
    with pytest.raises(SpaceMismatchError):
        estimate_field_from_anatomy(scan, anatomy, pose=pose.inverse(), anatomy_mask=mask)
    with pytest.raises(InputDataError) as caught:
        estimate_field_from_anatomy(scan, anatomy, pose=pose)
    assert caught.value.id == "E-EPI-BRAIN"


def test_windows_explain_what_is_a_line_of_the_given_images_in_each() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, 24, 20, 22, generator=generator)
    weight = (torch.rand(24, 20, 22, generator=generator) > 0.2).float()
    fit = LocalRegression.of(given, weight, 3)
    image = 2.0 * given[0] - 0.7 * given[1] + 5.0
    shading = 1 + 0.5 * torch.linspace(-1, 1, 24)[:, None, None]
    noise = torch.randn(24, 20, 22, generator=generator)
    assert float(fit.unexplained(image)) < 0.03
    assert float(fit.unexplained((image - 5) * shading)) < 0.06
    assert float(fit.unexplained(noise)) > 0.95
    assert float(fit.unexplained(3 * image + noise)) == pytest.approx(1 / (1 + 9 * (4 + 0.49)), abs=0.03)
    # A direct fit of one window away from the border.
    y, rows = (image + noise)[6:15, 3:12, 6:15].reshape(-1), given[:, 6:15, 3:12, 6:15].reshape(2, -1)
    root = weight[6:15, 3:12, 6:15].reshape(-1).sqrt()
    design = torch.cat([torch.ones(1, rows.shape[1]), rows]).T * root[:, None]
    residual = y * root - design @ torch.linalg.lstsq(design, (y * root)[:, None]).solution[:, 0]
    mean = (y * root.square()).sum() / root.square().sum()
    share = float(residual.square().sum() / ((y - mean) * root).square().sum())
    alone = LocalRegression.of(given[:, 6:15, 3:12, 6:15], weight[6:15, 3:12, 6:15], 3)
    # The middle one of 27 windows holds all of this block.
    part = (image + noise)[6:15, 3:12, 6:15]
    assert share == pytest.approx(float(_middle(alone, part)), abs=0.02)


def _middle(fit: LocalRegression, image: Tensor) -> Tensor:
    only = LocalRegression(
        fit.regressors, fit.weight, fit.cell, torch.zeros_like(fit.count).index_put_(
            tuple(torch.tensor([1]) for _ in range(3)), fit.count[1, 1, 1]
        ), fit.means, fit.factor,
    )  # fmt: skip
    return only.unexplained(image)
