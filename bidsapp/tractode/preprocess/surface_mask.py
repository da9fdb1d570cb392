"""A brain mask by a surface that grows from inside the brain until it meets its dark border.

S. M. Smith, *Fast robust automated brain extraction*, Human Brain Mapping 17:143 (2002), doi:10.1002/hbm.10062.

Departures: lengths and directions are the scanner's (mm), so storage does not matter; beyond the field of view the image goes
on as it ends for a while, so that slabs keep their faces; two meshes, coarse to fine; no second pass where the surface crosses
itself, since the mask is read from it as a distance from the centre in every direction; the centre and the first radius come
from a threshold's largest part where that is brain-sized, which a bright neck does not pull down.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial import cKDTree

from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid

Points = Float[np.ndarray, "v 3"]


@dataclass(frozen=True)
class SurfaceSettings:
    """Lengths in mm.

    Parameters
    ----------
    level
        Where between background and brain the border lies: larger values give smaller brains.
    inward, outward
        How far under the surface the least and the greatest intensity are looked for.
    least_radius, most_radius
        Of curvature: smoothing is strong below the first and weak above the second.
    iterations
        Steps on the coarse mesh (642 points) and on the fine one (2562).
    beyond_mm
        How far the image goes on past its faces.
    """

    level: float = 0.5
    inward: float = 20.0
    outward: float = 10.0
    least_radius: float = 3.33
    most_radius: float = 10.0
    iterations: tuple[int, int] = (500, 150)
    beyond_mm: float = 25.0


def surface_mask(image: Image, settings: SurfaceSettings | None = None, near: Image | None = None) -> Image:
    """The brain as one boolean channel on the image's grid.

    Parameters
    ----------
    near
        About where the brain is (a mask on the same grid): the surface begins inside it, in place of the brightest part.

    Raises
    ------
    InputDataError (E-MASK-SURFACE)
        The image is uniform, or the surface fell in on itself.
    """
    settings = settings or SurfaceSettings()
    volume = np.nan_to_num(image.values[0].detach().cpu().double().numpy(), posinf=0.0, neginf=0.0)
    scene = _Scene.of(volume, image.grid, settings, None if near is None else near.mask.cpu().numpy())
    points = scene.centre + 0.5 * scene.radius * _sphere(3)[0]
    for level, steps in zip((3, 4), settings.iterations, strict=True):
        _, triangles, _ = _sphere(level)
        if level == 4:
            points = _refined(points, _sphere(3)[1])
        points = _grown(points, level, triangles, scene, settings, steps)
    radius = np.linalg.norm(points - points.mean(0), axis=1)
    if not np.isfinite(radius).all() or np.median(radius) < 15:
        raise InputDataError(
            "The surface that should have met the brain's border fell in on itself",
            id="E-MASK-SURFACE",
            needed="a brain brighter than what is around it",
            fix="look at the image; use another method for the mask",
        )
    return Image(image.grid, torch.from_numpy(_inside(points, image.grid))[None])


@dataclass(frozen=True, eq=False)
class _Scene:
    """The image with its levels: background, threshold, brain's median; centre and radius of what is bright."""

    volume: Float[np.ndarray, "i j k"]
    inverse: Float[np.ndarray, "4 4"]
    low: float
    threshold: float
    middle: float
    centre: Float[np.ndarray, " 3"]
    radius: float
    beyond_mm: float
    sizes: Float[np.ndarray, " 3"]

    @classmethod
    def of(
        cls,
        volume: Float[np.ndarray, "i j k"],
        grid: ImageGrid,
        settings: SurfaceSettings,
        brain: Bool[np.ndarray, "i j k"] | None,
    ) -> _Scene:
        used = volume[volume > 0]
        low, high = np.quantile(used, (0.02, 0.98)) if used.size else (0.0, 0.0)
        if not high > low:
            raise InputDataError(
                "The image is uniform, so no brain stands out",
                id="E-MASK-SURFACE",
                needed="an image of a brain",
                fix="look at the image",
            )
        # A brain alone has no background among its values; the image's own nought is it then.
        low = min(low, float(np.quantile(volume, 0.02)))
        threshold = low + 0.1 * (high - low)
        sizes = np.asarray(grid.voxel_sizes)
        bright = np.argwhere(_bright(volume, threshold, sizes) if brain is None else brain)
        affine = grid.affine.numpy()
        world = bright @ affine[:3, :3].T + affine[:3, 3]
        weight = np.minimum(volume[tuple(bright.T)], high)
        centre = (weight[:, None] * world).sum(0) / weight.sum()
        radius = (3 * len(bright) * float(np.prod(sizes)) / (4 * np.pi)) ** (1 / 3)
        radius = float(np.clip(radius, 20.0, 85.0))
        inside = volume[tuple(bright[((world - centre) ** 2).sum(1) < radius**2].T)]
        middle = float(np.median(inside)) if inside.size else high
        inverse = np.linalg.inv(affine)
        return cls(volume, inverse, low, threshold, middle, centre, radius, settings.beyond_mm, sizes)

    def at(self, points: Float[np.ndarray, "*p 3"]) -> Float[np.ndarray, "*p"]:
        """The nearest voxel's value; past the faces the last one's, and the background's farther out."""
        vox = points @ self.inverse[:3, :3].T + self.inverse[:3, 3]
        last = np.asarray(self.volume.shape) - 1
        index = np.clip(np.rint(vox), 0, last).astype(np.intp)
        away = (np.abs(vox - index) * self.sizes).max(-1)
        found = self.volume[index[..., 0], index[..., 1], index[..., 2]]
        return np.where(away > self.beyond_mm, self.low, found)


def _bright(volume: Float[np.ndarray, "i j k"], threshold: float, sizes: Float[np.ndarray, " 3"]) -> np.ndarray:
    """What is brighter than the threshold: the largest part after an erosion, where that is as large as a brain."""
    bright = volume > threshold
    depth = ndimage.distance_transform_edt(np.pad(bright, 1, mode="edge"), sampling=sizes)[1:-1, 1:-1, 1:-1]
    labels, n = ndimage.label(depth > 8.0)
    if n == 0:
        return bright
    core = labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())
    return core if core.sum() * np.prod(sizes) > 50_000 else bright


def _grown(
    points: Points,
    level: int,
    triangles: Int[np.ndarray, "f 3"],
    scene: _Scene,
    settings: SurfaceSettings,
    steps: int,
) -> Points:
    """Equations 5 to 14 of the paper, so many times."""
    neighbours, counts = _sphere(level)[2]
    slope = 6 / (1 / settings.least_radius - 1 / settings.most_radius)
    offset = (1 / settings.least_radius + 1 / settings.most_radius) / 2
    deep = np.arange(0.0, settings.inward + 1, 2.0)
    n_shallow = int(settings.outward // 2) + 1
    for _ in range(steps):
        normal = _normals(points, triangles)
        padded = np.vstack((points, np.zeros(3)))
        around = padded[neighbours]
        mean = around.sum(1) / counts[:, None]
        gaps = np.linalg.norm(around - points[:, None], axis=2)
        length = float((gaps * (neighbours < len(points))).sum() / counts.sum())
        away = mean - points
        along = (away * normal).sum(1)
        tangent = away - along[:, None] * normal
        curvature = 2 * np.abs(along) / length**2
        smoothing = (1 + np.tanh(slope * (curvature - offset))) / 2
        below = scene.at(points[:, None] - deep[None, :, None] * normal[:, None])
        least = np.maximum(scene.low, np.minimum(scene.middle, below.min(1)))
        most = np.minimum(scene.middle, np.maximum(scene.threshold, below[:, :n_shallow].max(1)))
        border = (most - scene.low) * settings.level + scene.low
        push = 2 * (least - border) / np.maximum(most - scene.low, 1e-9)
        points = points + 0.5 * tangent + (smoothing * along + 0.05 * push * length)[:, None] * normal
    return points


def _normals(points: Points, triangles: Int[np.ndarray, "f 3"]) -> Points:
    """Unit, outwards."""
    a, b, c = (points[triangles[:, n]] for n in range(3))
    face = np.cross(b - a, c - a)
    total = np.zeros_like(points)
    for n in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(triangles[:, n], face[:, axis], minlength=len(points))
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def _inside(points: Points, grid: ImageGrid) -> np.ndarray:
    """Voxels nearer to the centre than the surface is in their direction."""
    centre = points.mean(0)
    arms = points - centre
    reach = np.linalg.norm(arms, axis=1)
    tree = cKDTree(arms / reach[:, None])
    voxels = grid.centres(torch.float64).numpy().reshape(-1, 3) - centre
    distance = np.linalg.norm(voxels, axis=1)
    near = np.flatnonzero(distance < reach.max())
    gap, index = tree.query(voxels[near] / np.maximum(distance[near, None], 1e-9), k=3)
    weight = 1 / np.maximum(gap, 1e-6)
    border = (weight * reach[index]).sum(1) / weight.sum(1)
    out = np.zeros(len(voxels), dtype=bool)
    out[near] = distance[near] <= border
    return out.reshape(grid.shape)


# --- meshes -----------------------------------------------------------------------------------------------------------


@cache
def _sphere(level: int) -> tuple[Points, Int[np.ndarray, "f 3"], tuple[np.ndarray, np.ndarray]]:
    """An icosahedron divided so many times: points, triangles (outwards), and each point's neighbours with their number."""
    if level == 0:
        g = (1 + 5**0.5) / 2
        corners: list[tuple[float, float, float]] = [(0, a, b * g) for a in (1, -1) for b in (1, -1)]
        corners += [(y, z, x) for x, y, z in corners] + [(z, x, y) for x, y, z in corners]
        points = np.asarray(corners, dtype=float)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        near = np.linalg.norm(points[:, None] - points[None], axis=2) < 1.2
        faces = [
            (a, b, c)
            for a in range(12)
            for b in range(a + 1, 12)
            for c in range(b + 1, 12)
            if near[a, b] and near[b, c] and near[a, c]
        ]
        triangles = np.asarray(faces)
        wrong = (np.cross(points[triangles[:, 1]], points[triangles[:, 2]]) * points[triangles[:, 0]]).sum(1) < 0
        triangles[wrong] = triangles[wrong][:, [0, 2, 1]]
    else:
        coarse, coarse_triangles, _ = _sphere(level - 1)
        points = _refined(coarse, coarse_triangles)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        triangles = _divided(coarse_triangles, len(coarse))
    return points, triangles, _neighbours(triangles, len(points))


def _edges(triangles: Int[np.ndarray, "f 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Each edge once (smaller index first), and the number of the edges opposite to nothing, 0–1, 1–2, 2–0 of every triangle."""
    pairs = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    edges, number = np.unique(pairs, axis=0, return_inverse=True)
    return edges, number.reshape(3, -1).T


def _refined(points: Points, triangles: Int[np.ndarray, "f 3"]) -> Float[np.ndarray, "w 3"]:
    """The points and the middles of all edges."""
    edges, _ = _edges(triangles)
    return np.vstack((points, points[edges].mean(1)))


def _divided(triangles: Int[np.ndarray, "f 3"], n_points: int) -> Int[np.ndarray, "g 3"]:
    """Each triangle in four, on `_refined` points."""
    _, number = _edges(triangles)
    (a, b, c), (ab, bc, ca) = triangles.T, n_points + number.T
    parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.concatenate([np.stack(part, axis=1) for part in parts])


def _neighbours(triangles: Int[np.ndarray, "f 3"], n_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of six; where a point has five, the sixth is the number of points (a row of noughts added)."""
    edges, _ = _edges(triangles)
    both = np.concatenate((edges, edges[:, ::-1]))
    both = both[np.argsort(both[:, 0], kind="stable")]
    counts = np.bincount(both[:, 0], minlength=n_points)
    table = np.full((n_points, 6), n_points)
    starts = np.concatenate(([0], counts.cumsum()[:-1]))
    table[both[:, 0], np.arange(len(both)) - starts[both[:, 0]]] = both[:, 1]
    return table, counts
