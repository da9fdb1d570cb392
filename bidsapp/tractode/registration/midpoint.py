"""The space half-way between two images, where a symmetric registration compares them.

B. B. Avants et al., Medical Image Analysis 12:26 (2008), doi:10.1016/j.media.2007.06.004, section 2.2: both images are pulled to
the middle of the path between them, so that neither is privileged. The affine is halved as well (`halfway.half`); a mirror
or a turn by 180° has no half, and is compared in the fixed space instead.

Departure: the flow is one velocity field from 0 to 1, integrated from 1/2 to either end, so that its inverse is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from tractode.fields.image import Image, ImageGrid
from tractode.fields.transform import Affine
from tractode.ops import affine as aff
from tractode.ops import interpolate, smooth
from tractode.registration.halfway import half
from tractode.registration.metrics.mutual_information import unit_range

SPACE = "half-way"


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two images, with what leads to it from the middle.

    Parameters
    ----------
    channels
        Images of one space; every one is a channel, or several.
    mask, weight
        Where the brain is; how much each place counts (a lesion: 0).
    from_middle
        Matrix from the middle to this image's space.
    has_lone_edge
        Only one of the two images ends at the mask (a brain alone against a whole head): what is seen across that border
        is no anatomy, so that it does not count.
    """

    channels: tuple[Image, ...]
    mask: Image | None
    weight: Image | None
    from_middle: Float[Tensor, "4 4"]
    has_lone_edge: bool = False

    def corners(self) -> Float[Tensor, "p 3"]:
        """World corners (middle) of the mask's box, or of the whole image."""
        grid = self.channels[0].grid if self.mask is None else self.mask.grid
        index = torch.tensor([[0.0, 0, 0], [n - 1 for n in grid.shape]], dtype=torch.float64)
        if self.mask is not None and bool(self.mask.mask.any()):
            found = self.mask.mask.nonzero()
            index = torch.stack([found.amin(0), found.amax(0)]).double().cpu()
        box = torch.cartesian_prod(*index.mT)
        return aff.apply_affine(torch.linalg.inv(self.from_middle), grid.to_world(box))


@dataclass(frozen=True, eq=False)
class Middle:
    """Both sides, and the box in the middle that is compared."""

    fixed: Side
    moving: Side
    low: Float[Tensor, " 3"]
    high: Float[Tensor, " 3"]
    phase: Float[Tensor, "2 3"]
    margin: float

    def nodes(self, spacing: float, around: float = 16.0) -> ImageGrid:
        """Nodes of a velocity over the box and ``around`` mm of margin, along the world's axes."""
        start = _nearest_phase(self.low - around - self.margin, spacing, self.phase)
        shape = ((self.high + around + self.margin - start) / spacing).ceil().int() + 1
        affine = torch.eye(4, dtype=torch.float64) * spacing
        affine[:3, 3], affine[3, 3] = start, 1
        return ImageGrid((int(shape[0]), int(shape[1]), int(shape[2])), affine, SPACE)


def middle(fixed: Side, moving: Side, margin: float) -> Middle:
    """The box over the masks of both sides; where only one has a mask, over that."""
    fixed, moving = (
        replace(one, has_lone_edge=_is_alone(one, other, margin)) for one, other in ((fixed, moving), (moving, fixed))
    )
    masked = [side for side in (fixed, moving) if side.mask is not None] or [fixed, moving]
    corners = torch.stack([side.corners() for side in masked])
    first = torch.stack(
        [aff.apply_affine(torch.linalg.inv(s.from_middle) @ s.channels[0].grid.affine, torch.zeros(3).double())
         for s in (fixed, moving)]
    )  # fmt: skip
    return Middle(fixed, moving, corners.amin((0, 1)), corners.amax((0, 1)), first, margin)


def _is_alone(side: Side, other: Side, margin: float) -> bool:
    """Whether just one of the images is empty in a shell around the mask, from the margin to twice as far."""
    if side.mask is None or not bool(side.mask.mask.any()):
        return False
    grid = side.mask.grid
    near, far = (smooth.dilate(side.mask.mask, _radii(grid, times * max(margin, 4.0))) for times in (1, 2))
    across = other.from_middle @ torch.linalg.inv(side.from_middle)
    shares = []
    for image, matrix in ((side.channels[0], torch.eye(4, dtype=torch.float64)), (other.channels[0], across)):
        shell, brain = (
            image.sample(aff.apply_affine(matrix, grid.to_world(part.nonzero().double())), outside="nearest")[..., 0]
            for part in (far & ~near, side.mask.mask)
        )
        shares.append(float((shell.abs() < 0.02 * brain.abs().mean()).double().mean()) if shell.numel() else 1.0)
    return max(shares) > 0.9 and min(shares) < 0.5


def _radii(grid: ImageGrid, margin: float) -> tuple[int, int, int]:
    i, j, k = (round(margin / edge) for edge in grid.voxel_sizes)
    return i, j, k


def halved(affine: Affine) -> tuple[Float[Tensor, "4 4"], Float[Tensor, "4 4"]]:
    """Matrices from the middle to fixed and to moving space; where there is no half-way, the fixed space is the middle."""
    whole = affine.matrix.cpu().double()
    root = half(whole)
    return (torch.eye(4, dtype=torch.float64), whole) if root is None else (torch.linalg.inv(root), root)


def _nearest_phase(low: Tensor, spacing: float, first: Float[Tensor, "2 3"]) -> Float[Tensor, " 3"]:
    """The last node at or below ``low`` of a lattice that meets both images' first voxels as well as it can.

    The circular mean of both phases: where both lattices agree, nothing is interpolated between voxels.
    """
    angle = 2 * math.pi * first / spacing
    phase = torch.atan2(angle.sin().sum(0), angle.cos().sum(0)) * spacing / (2 * math.pi)
    return phase + ((low - phase) / spacing + 1e-6).floor() * spacing


# --- one resolution -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Level:
    """Both sides on one lattice of the middle, a window of a refinement of the nodes.

    Parameters
    ----------
    nodes
        Of the velocity.
    ratio
        Lattice voxels from node to node.
    window
        The nodes under the lattice's corner and their number along each axis.
    fixed, moving
        Intensities or descriptors.
    weights
        How much each voxel of each side counts.
    """

    nodes: ImageGrid
    ratio: int
    window: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    fixed: Float[Tensor, "c i j k"]
    moving: Float[Tensor, "c i j k"]
    weights: Float[Tensor, "2 i j k"]

    @property
    def shape(self) -> tuple[int, int, int]:
        i, j, k = self.weights.shape[1:]
        return i, j, k

    @property
    def voxel(self) -> float:
        return self.nodes.voxel_sizes[0] / self.ratio

    def spread(self, nodal: Float[Tensor, "c i j k"]) -> Float[Tensor, "c r s t"]:
        """Values on the nodes, linearly between them, on the lattice."""
        (a, m), (b, n), (c, o) = self.window
        part = nodal[:, a : a + m, b : b + n, c : c + o]
        return functional.interpolate(part[None], size=self.shape, mode="trilinear", align_corners=True)[0]

    def gathered(self, values: Float[Tensor, "c i j k"]) -> Float[Tensor, "c r s t"]:
        """The transpose of `spread`: sums on the nodes."""
        (a, m), (b, n), (c, o) = self.window
        out = values.new_zeros(len(values), *self.nodes.shape)
        out[:, a : a + m, b : b + n, c : c + o] = _thinned(values, self.ratio)
        return out


def _thinned(values: Float[Tensor, "c i j k"], ratio: int) -> Float[Tensor, "c r s t"]:
    """Sums under the hat functions of every ``ratio``-th voxel."""
    for axis in (1, 2, 3):
        n = (values.shape[axis] - 1) // ratio + 1
        total = values.narrow(axis, 0, (n - 1) * ratio + 1)
        index = torch.arange(n, device=values.device) * ratio
        out = total.index_select(axis, index)
        for t in range(1, ratio):
            hat = 1 - t / ratio
            out.narrow(axis, 0, n - 1).add_(total.index_select(axis, index[:-1] + t), alpha=hat)
            out.narrow(axis, 1, n - 1).add_(total.index_select(axis, index[1:] - t), alpha=hat)
        values = out
    return values


def level(between: Middle, voxel: float, spacing: float) -> Level:
    """Intensities of both sides at about ``voxel`` mm, with nodes ``spacing`` mm apart (a whole number of voxels)."""
    ratio = max(1, round(spacing / voxel))
    nodes = between.nodes(spacing)
    edges = between.margin + max(6.0, 3 * voxel)
    low = ((between.low - edges - nodes.affine[:3, 3]) / spacing).floor().int().clamp_min(0).tolist()
    high = ((between.high + edges - nodes.affine[:3, 3]) / spacing).ceil().int().tolist()
    high = [min(h, n - 1) for h, n in zip(high, nodes.shape, strict=True)]
    window = tuple((a, b - a + 1) for a, b in zip(low, high, strict=True))
    shape = tuple((n - 1) * ratio + 1 for _, n in window)
    affine = torch.eye(4, dtype=torch.float64) * (spacing / ratio)
    affine[:3, 3] = nodes.affine[:3, 3] + torch.tensor(low, dtype=torch.float64) * spacing
    affine[3, 3] = 1
    lattice = ImageGrid((shape[0], shape[1], shape[2]), affine, SPACE)
    sides = [_on(lattice, side, spacing / ratio, between.margin) for side in (between.fixed, between.moving)]
    weights = torch.stack([weight for _, weight in sides])
    return Level(nodes, ratio, (window[0], window[1], window[2]), sides[0][0], sides[1][0], weights)


def _on(lattice: ImageGrid, side: Side, voxel: float, margin: float) -> tuple[Tensor, Tensor]:
    """Every channel of a side on the lattice, in [0, 1], and its weight there."""
    device = side.channels[0].values.device
    points = aff.apply_affine(side.from_middle, lattice.centres(device=device))
    weight, inside = _weight(side, points, margin)
    values = []
    for image in side.channels:
        coarse, affine = _blurred(image.values.to(torch.float32), image.grid.affine, voxel)
        at = aff.apply_affine(torch.linalg.inv(affine), points)
        sampled = interpolate.sample(coarse, at, outside="nearest").permute(3, 0, 1, 2)
        values += [unit_range(channel[None], inside[None]) for channel in sampled]
    return torch.cat(values).contiguous(), weight


def _blurred(values: Float[Tensor, "c i j k"], affine: Float[Tensor, "4 4"], voxel: float) -> tuple[Tensor, Tensor]:
    """Smoothed to a full width at half maximum of ``voxel``, but left fine: thinned out, it would be interpolated coarsely."""
    sizes = aff.voxel_sizes(affine).tolist()
    had = 0.0
    if voxel > 2.9 * min(sizes):
        # Far coarser than the image: half of the way on a thinner grid.
        values, affine = smooth.reduce(values, affine, voxel / 2)
        had = voxel / 2
    width = math.sqrt(voxel**2 - had**2) / 2.355
    now = aff.voxel_sizes(affine).tolist()
    sigma = [width / n if size < 0.9 * voxel else 0.0 for n, size in zip(now, sizes, strict=True)]
    return smooth.gaussian(values, (sigma[0], sigma[1], sigma[2])), affine


def _weight(side: Side, points: Float[Tensor, "i j k 3"], margin: float) -> tuple[Tensor, Bool[Tensor, "i j k"]]:
    """What each place counts: inside the field of view, the widened mask and the caller's weight."""
    seen = torch.ones(points.shape[:3], dtype=torch.bool, device=points.device)
    for image in side.channels:
        seen &= interpolate.inside(image.grid.shape, image.grid.to_voxel(points), margin=0.5)
    inside = seen
    if side.mask is not None:
        wide = side.mask.mask if side.has_lone_edge else smooth.dilate(side.mask.mask, _radii(side.mask.grid, margin))
        inside = seen & (interpolate.sample(wide[None].to(points), side.mask.grid.to_voxel(points))[..., 0] > 0.5)
    ignored = torch.zeros_like(inside, dtype=torch.float32)
    if side.weight is not None:
        ignored = 1 - side.weight.sample(points, outside="nearest")[..., 0].clamp(0, 1)
    if side.has_lone_edge:
        ignored = torch.maximum(ignored, (~inside).to(ignored))
    # A descriptor sees what lies within two voxels: beside a lesion it is as wrong as in it.
    weight = inside * (1 - functional.max_pool3d(ignored[None], 5, stride=1, padding=2)[0])
    return weight, inside
