"""ITK composite transforms ``.h5``, as ANTs, fMRIPrep and SimpleITK use them.

ITK works in LPS and applies the *last* transform of a composite first; displacement vectors are LPS, stored with the first
voxel axis fastest. The file says how points of the fixed space go to the moving space, which is what resampling needs: the
file ``from-<moving>_to-<fixed>_mode-image`` holds the transform fixed → moving. A chain with a flow in it is written as one
dense displacement on the reference's own voxels, then the chain's affines: resampling onto the reference is exact.
"""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from tractode.fields.image import ImageGrid
from tractode.fields.transform import Affine, Displacement, Transform
from tractode.io.itk_linear import linear_matrix
from tractode.io.itk_warps import check_perpendicular
from tractode.io.transform_parts import LPS, Tables, chain_of, flat, from_lps, simple_parts, unreadable
from tractode.ops import affine as aff

_LARGEST_TABLE = 2_500_000


def write_itk(path: Path, transform: Transform, reference: ImageGrid, tables: Tables | None = None) -> None:
    """An ITK composite transform that maps as ``transform`` does."""
    text = h5py.string_dtype("ascii")
    with h5py.File(path, "w") as file:
        file.create_dataset("ITKVersion", data=["5.4.0"], dtype=text)
        file.create_dataset("HDFVersion", data=["HDF5"], dtype=text)
        group = file.create_group("TransformGroup")
        group.create_group("0").create_dataset("TransformType", data=["CompositeTransform_double_3_3"], dtype=text)
        for number, part in enumerate(reversed(_parts(transform, reference, tables)), start=1):
            kind, fixed, parameters = _itk_affine(part) if isinstance(part, Affine) else _itk_displacement(part)
            node = group.create_group(str(number))
            node.create_dataset("TransformType", data=[kind], dtype=text)
            node.create_dataset("TransformFixedParameters", data=fixed)
            dense = {"compression": "gzip", "compression_opts": 4, "shuffle": True} if len(parameters) > 100 else {}
            node.create_dataset("TransformParameters", data=parameters, **dense)


def _parts(transform: Transform, reference: ImageGrid, tables: Tables | None) -> list[Affine | Displacement]:
    """Affines and displacements that map as the transform does: ``A (x + u(x))``, u tabulated, where there is a flow in it.

    A is what the affines of the chain make together, so beyond the table (the reference's field of view) it still holds.
    """
    leaves = flat(transform)
    if all(isinstance(leaf, Affine | Displacement) for leaf in leaves) or transform.source != reference.space:
        return simple_parts(transform, reference, tables)
    matrices = [leaf.matrix for leaf in leaves if isinstance(leaf, Affine)]
    linear = Affine(aff.compose(torch.eye(4, dtype=torch.float64), *matrices), f"{transform.source}~", transform.target)
    grid = _table_grid(reference)
    points = grid.centres()
    values = linear.inverse().map(transform.map(points).double()) - grid.centres(torch.float64)
    table = Displacement(grid, values.movedim(-1, 0).float().contiguous(), transform.source, linear.source)
    return [table, linear]


def _table_grid(reference: ImageGrid) -> ImageGrid:
    """The reference's voxels, or every second (third, …) of them along each axis where they are more than a few millions."""
    every = 1
    while math.prod(-(-n // every) for n in reference.shape) > _LARGEST_TABLE:
        every += 1
    if every == 1:
        return reference
    affine = reference.affine.clone()
    affine[:3, :3] *= every
    # One more where the last voxel would be left out: the table covers the reference.
    i, j, k = (-(-(n - 1) // every) + 1 for n in reference.shape)
    return ImageGrid((i, j, k), affine, reference.space)


def _itk_affine(part: Affine) -> tuple[str, np.ndarray, np.ndarray]:
    matrix = from_lps(part.matrix.cpu().numpy()).numpy()
    return "AffineTransform_double_3_3", np.zeros(3), np.concatenate([matrix[:3, :3].ravel(), matrix[:3, 3]])


def _itk_displacement(part: Displacement) -> tuple[str, np.ndarray, np.ndarray]:
    grid = part.grid
    check_perpendicular(grid)
    affine = LPS[:, None] * grid.affine.numpy()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / spacing
    fixed = np.concatenate([np.array(grid.shape, dtype=float), affine[:3, 3], spacing, direction.ravel()])
    vectors = part.values.detach().cpu().numpy() * LPS[:3, None, None, None]
    # (3, i, j, k) → k, j, i, component: the first voxel axis runs fastest after the component. float32 holds 1e-5 mm.
    parameters = np.ascontiguousarray(vectors.transpose(3, 2, 1, 0)).astype(np.float32).ravel()
    return "DisplacementFieldTransform_double_3_3", fixed, parameters


def read_itk(path: Path, source: str, target: str) -> Transform:
    """An ITK composite, affine or displacement ``.h5``: a chain from ``source`` to ``target`` (fixed → moving points)."""
    try:
        with h5py.File(path, "r") as file:
            nodes = [file["TransformGroup"][name] for name in sorted(file["TransformGroup"], key=int)]
            found = [_from_itk(node) for node in nodes if not _kind(node).startswith("CompositeTransform")]
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise unreadable(path, error) from error
    return chain_of(list(reversed(found)), source, target)


def _kind(node: h5py.Group) -> str:
    kind = node["TransformType"][0]
    return kind.decode() if isinstance(kind, bytes) else str(kind)


def _from_itk(node: h5py.Group) -> Tensor | tuple[ImageGrid, Tensor]:
    """A 4×4 matrix, or a grid and displacements; RAS+."""
    # ITK before 4.10 misspelt the key, and files of that time are still about.
    prefix = "Transform" if "TransformParameters" in node else "Tranform"
    parameters, fixed = node[f"{prefix}Parameters"][()], node[f"{prefix}FixedParameters"][()]
    kind = _kind(node)
    if kind.startswith("DisplacementFieldTransform"):
        shape = tuple(int(n) for n in fixed[:3])
        affine = np.eye(4)
        affine[:3, :3] = fixed[9:18].reshape(3, 3) * fixed[6:9]
        affine[:3, 3] = fixed[3:6]
        grid = ImageGrid((shape[0], shape[1], shape[2]), torch.from_numpy(LPS[:, None] * affine), "")
        vectors = parameters.reshape(*shape[::-1], 3).transpose(3, 2, 1, 0) * LPS[:3, None, None, None]
        return grid, torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    return from_lps(linear_matrix(kind, parameters, fixed))
