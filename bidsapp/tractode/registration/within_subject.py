"""One person's unbiased template of several scans, and the transform from it to each of them.

M. Reuter, N. J. Schmansky, H. D. Rosas, B. Fischl, *Within-subject template estimation for unbiased longitudinal image
analysis*, NeuroImage 61:1402 (2012), doi:10.1016/j.neuroimage.2012.02.084; the flows follow
J. Ashburner, G. R. Ridgway, *Symmetric diffeomorphic modeling of longitudinal structural MRI*, Front. Neurosci. 6:197 (2013),
doi:10.3389/fnins.2012.00197.

Every scan is treated alike: poses come from registering pairs, each the same from either side, and are spread over all scans
(the logarithms of the poses from the template sum to nought); each scan is resampled once, from its own voxels.

Departures: the mean of the scans that see a place, not their median; the flows follow from one round, and their mean is
measured, not removed: another round, from the mean image with the mean velocity taken off, was no better.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.linalg import expm, logm
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields.image import Image, ImageGrid
from tractode.fields.transform import Affine, Flow, Transform
from tractode.fields.velocity import VelocityField
from tractode.ops import affine as aff
from tractode.ops import interpolate
from tractode.registration.affine import register_affine
from tractode.registration.optimise import FAST, Schedule, register

Progress = Callable[[str], None]


@dataclass(frozen=True)
class WithinSubjectSettings:
    """How the template is sought.

    Parameters
    ----------
    schedule
        Of the flows from the template to the scans; None: rigid only.
    all_pairs
        Up to so many scans every pair is registered; of more, each with the next two (and the last with the first ones).
    nodes
        Distance (mm) of the nodes on which velocities are averaged.
    """

    schedule: Schedule | None = FAST
    all_pairs: int = 4
    nodes: float = 6.0


@dataclass(frozen=True, eq=False)
class SubjectTemplate:
    """The template and how it lies to the scans.

    Parameters
    ----------
    image
        The mean of the scans, in the space of the template; brightness of the scans' mean.
    to_scans
        From the template to each scan, in their order.
    bias
        Root mean square (mm) of the mean displacement to the scans, rigid part aside, in the head: 0 in the ideal.
    """

    image: Image
    to_scans: tuple[Transform, ...]
    bias: float


def subject_template(
    scans: Sequence[Image],
    space: str,
    settings: WithinSubjectSettings | None = None,
    *,
    progress: Progress | None = None,
) -> SubjectTemplate:
    """The template of scans of one head (one channel, one contrast), in a new space of that name.

    Its axes are RAS+, its voxels cubes of the scans' mean size, its field of view all that any scan shows.

    Raises
    ------
    InputDataError
        Fewer than two scans (``E-REG-ONESCAN``), or two scans that do not meet.
    """
    settings = settings or WithinSubjectSettings()
    if len(scans) < 2:
        raise InputDataError(
            "A within-subject template was asked of one scan",
            id="E-REG-ONESCAN",
            needed="two or more",
            fix="use the scan itself",
        )
    poses = common_poses(_pairs(scans, settings, progress), len(scans))
    grid = _grid(scans, poses, space)
    rigid = [Affine(pose, space, scan.grid.space) for pose, scan in zip(poses, scans, strict=True)]
    template, _ = _mean(scans, grid, rigid)
    if settings.schedule is None:
        return SubjectTemplate(template, tuple(rigid), 0.0)
    found = []
    for pose, scan in zip(rigid, scans, strict=True):
        if progress is not None:
            progress(f"the template and {scan.grid.space}")
        found.append(register(template, scan, schedule=settings.schedule, initial=pose))
    template, head = _mean(scans, grid, found)
    nodes = grid.resampled(settings.nodes)
    mean = torch.stack([_on_nodes(way.parts[0], nodes) for way in found]).mean(0)
    return SubjectTemplate(template, tuple(found), _size(Flow(VelocityField(nodes, mean), space, ""), grid, head))


# --- poses ----------------------------------------------------------------------------------------------------------


def _pairs(
    scans: Sequence[Image], settings: WithinSubjectSettings, progress: Progress | None
) -> dict[tuple[int, int], Float[Tensor, "4 4"]]:
    """Rigid poses (first → second) of the pairs that are registered."""
    n = len(scans)
    if n <= settings.all_pairs:
        pairs = list(itertools.combinations(range(n), 2))
    else:
        pairs = sorted({tuple(sorted((i, (i + apart) % n))) for i in range(n) for apart in (1, 2)})  # type: ignore[misc]
    found = {}
    for first, second in pairs:
        if progress is not None:
            progress(f"{scans[first].grid.space} and {scans[second].grid.space}")
        found[first, second] = register_affine(scans[first], scans[second], dof="rigid").matrix
    return found


def common_poses(
    pairs: dict[tuple[int, int], Float[Tensor, "4 4"]], n: int, iterations: int = 50
) -> list[Float[Tensor, "4 4"]]:
    """A pose for every scan (template → scan) that agrees best with the pairs' (first → second), none preferred.

    Each pose is in turn the mean of what its neighbours' poses say of it; then all are moved together until the
    logarithms of the poses sum to nought.
    """
    both = {key: matrix.double().numpy() for key, matrix in pairs.items()}
    both |= {(second, first): np.linalg.inv(matrix) for (first, second), matrix in both.items()}
    poses: dict[int, np.ndarray] = {0: np.eye(4)}
    while len(poses) < n:
        edge = next(((i, j) for i, j in both if i in poses and j not in poses), None)
        if edge is None:
            raise ValueError("The pairs do not join all scans.")
        poses[edge[1]] = both[edge] @ poses[edge[0]]
    for _ in range(iterations):
        # All at once, from the last turn's: none goes first.
        turned = {j: _moved_to_mean(poses[j], [both[i, k] @ poses[i] for i, k in both if k == j]) for j in range(n)}
        change = max(float(np.abs(turned[j] - poses[j]).max()) for j in range(n))
        poses = turned
        if change < 1e-10:
            break
    for _ in range(iterations):
        mean = np.mean([logm(poses[j]).real for j in range(n)], axis=0)
        poses = {j: pose @ expm(-mean) for j, pose in poses.items()}
        if np.abs(mean).max() < 1e-10:
            break
    return [torch.from_numpy(np.ascontiguousarray(poses[j])) for j in range(n)]


def _moved_to_mean(pose: np.ndarray, said: list[np.ndarray]) -> np.ndarray:
    """Half-way to the mean of what is said of it: all the way, two scans would change places for ever."""
    back = np.linalg.inv(pose)
    return pose @ expm(np.mean([logm(back @ other).real for other in said], axis=0) / 2)


# --- the mean image -------------------------------------------------------------------------------------------------


def _grid(scans: Sequence[Image], poses: Sequence[Float[Tensor, "4 4"]], space: str) -> ImageGrid:
    """Cubes of the scans' mean size along RAS axes, around all that any scan shows."""
    size = float(np.exp(np.mean([np.log(scan.grid.voxel_sizes).mean() for scan in scans])))
    corners = []
    for scan, pose in zip(scans, poses, strict=True):
        ends = torch.tensor(list(itertools.product(*((0.0, n - 1.0) for n in scan.grid.shape))), dtype=torch.float64)
        corners.append(aff.apply_affine(torch.linalg.inv(pose) @ scan.grid.affine, ends))
    points = torch.cat(corners)
    low, high = points.amin(0), points.amax(0)
    i, j, k = ((high - low) / size).ceil().long().add(1).tolist()
    affine = torch.diag(torch.tensor([size, size, size, 1.0], dtype=torch.float64))
    affine[:3, 3] = low
    return ImageGrid((i, j, k), affine, space)


def _mean(
    scans: Sequence[Image], grid: ImageGrid, to_scans: Sequence[Transform]
) -> tuple[Image, Bool[Tensor, "i j k"]]:
    """The mean of the scans, brought to one brightness, where any sees; and where the head is."""
    brought = [_brought(scan, grid, way) for scan, way in zip(scans, to_scans, strict=True)]
    count = torch.stack([seen for _, seen in brought]).sum(0).clamp_min(1)
    mean = torch.stack([values for values, _ in brought]).sum(0) / count
    head = _bright(mean)
    total = torch.zeros_like(mean)
    for values, seen in brought:
        both = head & seen & (values > 0)
        total += values * ((mean[both] / values[both]).median() if bool(both.any()) else 1.0)
    return Image(grid, (total / count)[None]), head


def _brought(scan: Image, grid: ImageGrid, way: Transform, slab: int = 32) -> tuple[Tensor, Bool[Tensor, "i j k"]]:
    """The scan on the grid, interpolated once, and where it sees. In slabs: a whole head's points are large."""
    values, seen = [], []
    for start in range(0, grid.shape[0], slab):
        n = min(slab, grid.shape[0] - start)
        affine = grid.affine.clone()
        affine[:3, 3] = grid.to_world(torch.tensor([start, 0.0, 0.0], dtype=torch.float64))
        points = way.map(ImageGrid((n, *grid.shape[1:]), affine, grid.space).centres(device=scan.values.device))
        seen.append(interpolate.inside(scan.grid.shape, scan.grid.to_voxel(points), margin=0.5))
        values.append(scan.sample(points)[..., 0])
    return torch.cat(values).to(torch.float32), torch.cat(seen)


def _bright(values: Float[Tensor, "i j k"]) -> Bool[Tensor, "i j k"]:
    """Not air: above a tenth of what the brightest part of the picture has."""
    positive = values[values > 0]
    level = torch.quantile(positive[:: max(1, positive.numel() // 1_000_000)], 0.98) if positive.numel() else 1.0
    return values > 0.1 * level


# --- flows ----------------------------------------------------------------------------------------------------------


def _on_nodes(flow: Transform, nodes: ImageGrid) -> Float[Tensor, "1 3 i j k"]:
    assert isinstance(flow, Flow)
    velocity = Image(flow.velocity.grid, flow.velocity.values[0])
    return velocity.sample(nodes.centres(device=velocity.values.device)).permute(3, 0, 1, 2)[None].contiguous()


def _size(flow: Flow, grid: ImageGrid, head: Bool[Tensor, "i j k"]) -> float:
    """Root mean square displacement (mm) over some of the head's voxels."""
    voxels = head.nonzero()
    points = grid.to_world(voxels[:: max(1, len(voxels) // 50_000)].to(torch.float64)).to(flow.velocity.values)
    return float((flow.map(points) - points).square().sum(-1).mean().sqrt())
