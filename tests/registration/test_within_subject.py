"""The within-subject template: known poses, shared out fairly, and known changes of shape, in any order of the scans."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import logm

from tractode.errors import InputDataError
from tractode.fields import Affine, Image, ImageGrid
from tractode.registration.optimise import Schedule, Stage
from tractode.registration.within_subject import WithinSubjectSettings, common_poses, subject_template

from .conftest import CENTRE, head_at

QUICK = WithinSubjectSettings(schedule=Schedule((Stage(8.0, 16.0, 3),)), nodes=16.0)


def rigid(turn: tuple[float, float, float], shift: tuple[float, float, float]) -> torch.Tensor:
    x, y, z = turn
    matrix = torch.eye(4, dtype=torch.float64)
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    matrix[:3, :3] = torch.linalg.matrix_exp(generator)
    matrix[:3, 3] = CENTRE - matrix[:3, :3] @ CENTRE + torch.tensor(shift, dtype=torch.float64)
    return matrix


# From the head at rest to where it lay in each scan.
POSES = (
    rigid((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    rigid((0.12, -0.05, 0.08), (6.0, -3.0, 8.0)),
    rigid((-0.07, 0.1, 0.02), (-9.0, 4.0, 2.0)),
)


def scan_at(grid: ImageGrid, number: int, gain: float = 1.0) -> Image:
    """The head where it lay in one session, as bright as that day's scanner had it."""
    here = ImageGrid(grid.shape, grid.affine, f"ses-{number}")
    at_rest = Affine(torch.linalg.inv(POSES[number]), here.space, "rest").map(here.centres(torch.float64))
    return Image(here, head_at(at_rest)[None].float() * gain)


def test_poses_of_a_loop_agree_and_their_mean_is_nought() -> None:
    """Exact pairs give exact poses; a wrong loop is shared out; the template is the mean of the scanner's frames."""
    pairs = {(i, j): POSES[j] @ torch.linalg.inv(POSES[i]) for i in range(3) for j in range(i + 1, 3)}
    found = common_poses(pairs, 3)
    for (i, j), pair in pairs.items():
        assert torch.allclose(found[j] @ torch.linalg.inv(found[i]), pair, atol=1e-9)
    total = sum(torch.from_numpy(logm(pose.numpy()).real) for pose in found)
    assert float(total.abs().max()) < 1e-9

    wrong = {**pairs, (0, 2): rigid((0.0, 0.0, 0.0), (3.0, 0.0, 0.0)) @ pairs[0, 2]}
    found = common_poses(wrong, 3)
    left = [
        float((torch.linalg.inv(pair) @ found[j] @ torch.linalg.inv(found[i]))[:3, 3].norm())
        for (i, j), pair in wrong.items()
    ]
    # A third of 3 mm for each, however the loop is walked; the turns about the world's origin add their part.
    assert max(left) < 2.0
    assert min(left) > 0.5


def test_pairs_that_join_not_all_scans_are_refused() -> None:
    with pytest.raises(ValueError, match="join"):
        common_poses({(0, 1): POSES[1]}, 3)


def test_two_sessions_meet_in_their_middle(grid: ImageGrid) -> None:
    scans = [scan_at(grid, 0), scan_at(grid, 1, gain=1.4)]
    found = subject_template(scans, "template", QUICK)
    assert (found.to_scans[0].source, found.to_scans[0].target) == ("template", "ses-0")
    brain = scans[0].values[0] > 0.3
    points = grid.to_world(brain.nonzero().double())
    truth = Affine(POSES[1], "ses-0", "ses-1").map(points)
    error = (found.to_scans[0].inverse().then(found.to_scans[1]).map(points) - truth).norm(dim=-1)
    assert float(error.quantile(0.95)) < 0.6  # voxels of 4 mm
    # From either scan to the template is half of the way: as far for one as for the other.
    ways = [(found.to_scans[n].map(scan_points) - scan_points) for n, scan_points in enumerate((points, points))]
    assert float((ways[0] + ways[1]).norm(dim=-1).median()) < 0.15 * float(ways[0].norm(dim=-1).median())
    # Between the two in brightness, and no scan beyond its edge darkens it.
    head = found.image.values[0] > 0.3
    there = found.image.grid.to_world(head.nonzero().double())
    one = scans[0].sample(found.to_scans[0].map(there))[..., 0]
    ratio = (found.image.values[0][head] / one)[one > 0.3].median()
    assert float(ratio) == pytest.approx(1.2, abs=0.05)
    # What is called bias is what the flows, beside the poses, move on the mean.
    moved = sum(way.parts[0].map(there) - there for way in found.to_scans) / 2
    assert found.bias == pytest.approx(float(moved.square().sum(-1).mean().sqrt()), rel=0.2)


def test_one_scan_is_no_template(grid: ImageGrid) -> None:
    with pytest.raises(InputDataError) as refused:
        subject_template([scan_at(grid, 0)], "template")
    assert refused.value.id == "E-REG-ONESCAN"
