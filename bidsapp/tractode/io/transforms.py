"""Transforms on disk: ITK composite ``.h5`` (as ANTs, fMRIPrep and SimpleITK use it) and X5 (the BIDS draft, by nitransforms).

ITK works in LPS and applies the *last* transform of a composite first; displacement vectors are LPS, stored with the first
voxel axis fastest. Both files say how points of the fixed space go to the moving space, which is what resampling needs: the
file ``from-<moving>_to-<fixed>_mode-image`` holds the transform fixed → moving.

A flow is written as a dense displacement of its own space; X5 also keeps the velocity, from which `read_x5` rebuilds the flow.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from nitransforms.io import x5
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields.image import ImageGrid
from tractode.fields.transform import Affine, Chain, Displacement, Flow, Transform
from tractode.fields.velocity import VelocityField
from tractode.ops import affine as aff

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_FLOW = "stationary_velocity_flow"
# Parts already tabulated, so that several files of one transform share the work: lend the same dict to each writer.
Tables = dict[Transform, Displacement]


# --- what both formats hold -----------------------------------------------------------------------------------------


def simple_parts(
    transform: Transform, reference: ImageGrid, tables: Tables | None = None
) -> list[Affine | Displacement]:
    """The transform as affines and dense displacements, in the order points meet them; neighbouring affines are merged.

    A part that is neither is tabulated: on ``reference`` where that lies in the part's source space and is finer than
    the part's own grid, else on its own grid at that voxel size.
    """
    parts: list[Affine | Displacement] = []
    for part in _flat(transform):
        if isinstance(part, Affine) and parts and isinstance(parts[-1], Affine):
            parts[-1] = Affine(aff.compose(parts[-1].matrix, part.matrix), parts[-1].source, part.target)
        elif isinstance(part, Affine | Displacement):
            parts.append(part)
        else:
            tables = {} if tables is None else tables
            if part not in tables:
                tables[part] = _tabulated(part, reference)
            parts.append(tables[part])
    return parts


def _flat(transform: Transform) -> list[Transform]:
    if isinstance(transform, Chain):
        return [leaf for part in transform.parts for leaf in _flat(part)]
    return [transform]


def _tabulated(part: Transform, reference: ImageGrid) -> Displacement:
    own = _own_grid(part)
    size = min(*reference.voxel_sizes, 2.0)
    if own is not None:
        # Half the nodes' distance follows a trilinear velocity closely; finer than the reference helps nobody.
        grid = _upright(own, reference, max(min(own.voxel_sizes) / 2, size)).renamed(part.source)
    else:
        grid = reference.renamed(part.source)
    points = grid.centres(torch.float64)
    values = (part.map(points) - points).movedim(-1, 0).to(torch.float32)
    return Displacement(grid, values.contiguous(), part.source, part.target)


def _upright(grid: ImageGrid, reference: ImageGrid, size: float) -> ImageGrid:
    """Voxels of ``size`` mm over a grid; where its axes are not perpendicular, along those of the reference and around it.

    An affine that stands beside a flow may leave the flow's nodes sheared, which neither ITK nor a NIfTI header can say.
    """
    axes = aff.axis_directions(grid.affine)
    if torch.allclose(axes.T @ axes, torch.eye(3, dtype=axes.dtype), atol=1e-5):
        return grid.resampled(size)
    # The nearest rotation, should the reference itself be sheared.
    axes = aff.rotation_part(reference.affine) * size
    ends = torch.tensor(list(itertools.product(*((-0.5, n - 0.5) for n in grid.shape))), dtype=torch.float64)
    corners = grid.to_world(ends) @ torch.linalg.inv(axes).T
    low, high = corners.amin(0).floor(), corners.amax(0).ceil()
    i, j, k = (high - low).long().tolist()
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3], affine[:3, 3] = axes, axes @ (low + 0.5)
    return ImageGrid((i, j, k), affine, grid.space)


def _own_grid(part: Transform) -> ImageGrid | None:
    """The grid a part is defined on, where it has one: a flow's nodes, or those of a displacement to be inverted."""
    if isinstance(part, Flow):
        return part.velocity.grid
    forward = getattr(part, "forward", None)
    return forward.grid if isinstance(forward, Displacement) else None


# --- ITK ------------------------------------------------------------------------------------------------------------


def write_itk(path: Path, transform: Transform, reference: ImageGrid, tables: Tables | None = None) -> None:
    """An ITK composite transform that maps as ``transform`` does."""
    text = h5py.string_dtype("ascii")
    with h5py.File(path, "w") as file:
        file.create_dataset("ITKVersion", data=["5.4.0"], dtype=text)
        file.create_dataset("HDFVersion", data=["HDF5"], dtype=text)
        group = file.create_group("TransformGroup")
        group.create_group("0").create_dataset("TransformType", data=["CompositeTransform_double_3_3"], dtype=text)
        for number, part in enumerate(reversed(simple_parts(transform, reference, tables)), start=1):
            kind, fixed, parameters = _itk_affine(part) if isinstance(part, Affine) else _itk_displacement(part)
            node = group.create_group(str(number))
            node.create_dataset("TransformType", data=[kind], dtype=text)
            node.create_dataset("TransformFixedParameters", data=fixed)
            dense = {"compression": "gzip", "compression_opts": 4, "shuffle": True} if len(parameters) > 100 else {}
            node.create_dataset("TransformParameters", data=parameters, **dense)


def _itk_affine(part: Affine) -> tuple[str, np.ndarray, np.ndarray]:
    matrix = _LPS @ part.matrix.cpu().numpy() @ _LPS
    return "AffineTransform_double_3_3", np.zeros(3), np.concatenate([matrix[:3, :3].ravel(), matrix[:3, 3]])


def _itk_displacement(part: Displacement) -> tuple[str, np.ndarray, np.ndarray]:
    grid = part.grid
    affine = _LPS @ grid.affine.numpy()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / spacing
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
        raise InputDataError(
            "The grid of a displacement is sheared, which ITK cannot express",
            id="E-XFM-SHEAR",
            needed="a grid with perpendicular axes",
            fix="resample the image onto a grid without shear",
        )
    fixed = np.concatenate([np.array(grid.shape, dtype=float), affine[:3, 3], spacing, direction.ravel()])
    vectors = part.values.detach().cpu().numpy() * np.array([-1.0, -1.0, 1.0]).reshape(3, 1, 1, 1)
    # (3, i, j, k) → k, j, i, component: the first voxel axis runs fastest after the component. float32 holds 1e-5 mm.
    parameters = np.ascontiguousarray(vectors.transpose(3, 2, 1, 0)).astype(np.float32).ravel()
    return "DisplacementFieldTransform_double_3_3", fixed, parameters


def read_itk(path: Path, source: str, target: str) -> Transform:
    """An ITK composite, affine or displacement ``.h5``: a chain from ``source`` to ``target`` (fixed → moving points)."""
    try:
        with h5py.File(path, "r") as file:
            nodes = [file["TransformGroup"][name] for name in sorted(file["TransformGroup"], key=int)]
            found = [_from_itk(node) for node in nodes if not _kind(node).startswith("CompositeTransform")]
    except (OSError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error
    return _chain(list(reversed(found)), source, target)


def _kind(node: h5py.Group) -> str:
    kind = node["TransformType"][0]
    return kind.decode() if isinstance(kind, bytes) else str(kind)


def _from_itk(node: h5py.Group) -> Tensor | tuple[ImageGrid, Tensor]:
    """A 4×4 matrix, or a grid and displacements; RAS+."""
    # ITK before 4.10 misspelt the key, and files of that time are still about.
    prefix = "Transform" if "TransformParameters" in node else "Tranform"
    parameters, fixed = node[f"{prefix}Parameters"][()], node[f"{prefix}FixedParameters"][()]
    kind = _kind(node)
    if kind.startswith(("AffineTransform", "MatrixOffsetTransformBase")):
        matrix = np.eye(4)
        matrix[:3, :3], centre = parameters[:9].reshape(3, 3), fixed[:3]
        matrix[:3, 3] = parameters[9:12] + centre - matrix[:3, :3] @ centre
        return torch.from_numpy(_LPS @ matrix @ _LPS)
    if kind.startswith("DisplacementFieldTransform"):
        shape = tuple(int(n) for n in fixed[:3])
        affine = np.eye(4)
        affine[:3, :3] = fixed[9:18].reshape(3, 3) * fixed[6:9]
        affine[:3, 3] = fixed[3:6]
        grid = ImageGrid((shape[0], shape[1], shape[2]), torch.from_numpy(_LPS @ affine), "")
        vectors = parameters.reshape(*shape[::-1], 3).transpose(3, 2, 1, 0) * np.array([-1, -1, 1]).reshape(3, 1, 1, 1)
        return grid, torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    raise ValueError(f"transforms of type {kind} are not supported")


def _chain(found: list[Any], source: str, target: str) -> Transform:
    """Names the spaces between the parts and joins them."""
    if not found:
        return Affine(torch.eye(4, dtype=torch.float64), source, target)
    names = [source, *(f"{source}→{target}:{n}" for n in range(1, len(found))), target]
    parts: list[Transform] = []
    for item, start, end in zip(found, names, names[1:], strict=False):
        if isinstance(item, Tensor):
            parts.append(Affine(item, start, end))
        elif isinstance(item, VelocityFlow):
            parts.append(
                Flow(
                    VelocityField(item.grid.renamed(start), item.values[None]), start, end, item.t0, item.t1, item.steps
                )
            )
        else:
            grid, values = item
            parts.append(Displacement(grid.renamed(start), values, start, end))
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


def _unreadable(path: Path, error: Exception) -> InputDataError:
    return InputDataError(
        f"The transform cannot be read ({error})",
        id="E-XFM-READ",
        path=path,
        needed="an intact ITK composite .h5 or X5 file of affine and displacement transforms",
        fix="write it again with the program that made it",
    )


# --- X5 -------------------------------------------------------------------------------------------------------------


class VelocityFlow:
    """A flow as X5 keeps it: velocities, their grid and the times."""

    def __init__(self, values: Tensor, facts: dict[str, Any]) -> None:
        grid = facts["velocity_grid"]
        shape = grid["shape"]
        self.grid = ImageGrid((shape[0], shape[1], shape[2]), torch.tensor(grid["affine"], dtype=torch.float64), "")
        self.values = values
        self.t0, self.t1, self.steps = float(facts["t0"]), float(facts["t1"]), int(facts["steps"])


def write_x5(path: Path, transform: Transform, reference: ImageGrid, tables: Tables | None = None) -> None:
    """An X5 file whose nodes map one after the other as ``transform`` does, with the chain that says so."""
    nodes = []
    for part in _flat(transform):
        simple = simple_parts(part, reference, tables)[0]
        nodes.append(_x5_affine(simple, reference) if isinstance(simple, Affine) else _x5_displacement(simple, part))
    x5.to_filename(path, nodes)
    with h5py.File(path, "r+") as file:
        chain = file.create_group("TransformChain")
        chain.create_dataset("0", data="/".join(str(n) for n in range(len(nodes))))


def _x5_affine(part: Affine, reference: ImageGrid) -> x5.X5Transform:
    return x5.X5Transform(
        type="linear",
        transform=part.matrix.cpu().numpy(),
        dimension_kinds=("space", "space", "space", "vector"),
        domain=_x5_domain(reference),
        metadata={"source": part.source, "target": part.target},
    )


def _x5_domain(grid: ImageGrid) -> x5.X5Domain:
    return x5.X5Domain(grid=True, size=grid.shape, mapping=grid.affine.numpy(), coordinates="cartesian")


def _x5_displacement(part: Displacement, original: Transform) -> x5.X5Transform:
    facts: dict[str, Any] = {"source": part.source, "target": part.target, "frame": "RAS+ mm"}
    flow = original if isinstance(original, Flow) and original.velocity.is_stationary else None
    if flow is not None:
        grid = flow.velocity.grid
        facts |= {
            "velocity_grid": {"shape": list(grid.shape), "affine": grid.affine.tolist()},
            "t0": flow.t0, "t1": flow.t1, "steps": flow.steps, "integrator": "rk4",
        }  # fmt: skip
    return x5.X5Transform(
        type="nonlinear",
        subtype=_FLOW if flow is not None else "densefield",
        representation="displacements",
        transform=part.values.detach().cpu().movedim(0, -1).contiguous().numpy(),
        dimension_kinds=("space", "space", "space", "vector"),
        domain=_x5_domain(part.grid),
        metadata=facts,
        additional_parameters=None if flow is None else flow.velocity.values[0].detach().cpu().numpy(),
    )


def read_x5(path: Path, source: str, target: str) -> Transform:
    """An X5 file of linear and dense nonlinear nodes, in the order of its chain (of the file, where there is none)."""
    try:
        nodes = x5.from_filename(path)
        with h5py.File(path, "r") as file:
            order = file["TransformChain"]["0"][()].decode() if "TransformChain" in file else None
        picked = nodes if order is None else [nodes[int(n)] for n in order.split("/")]
        found = [_from_x5(node) for node in picked]
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise _unreadable(path, error) from error
    return _chain(found, source, target)


def _from_x5(node: x5.X5Transform) -> Tensor | VelocityFlow | tuple[ImageGrid, Tensor]:
    if node.type == "linear":
        return torch.from_numpy(np.array(node.transform, dtype=np.float64))
    if node.subtype == _FLOW and node.metadata is not None and node.additional_parameters is not None:
        return VelocityFlow(torch.from_numpy(node.additional_parameters.astype(np.float32)), node.metadata)
    if node.type != "nonlinear" or node.domain is None or node.domain.mapping is None or node.subtype == "bspline":
        raise ValueError(f"nodes of type {node.type} ({node.subtype}) are not supported")
    size = [int(n) for n in node.domain.size]
    grid = ImageGrid((size[0], size[1], size[2]), torch.from_numpy(np.array(node.domain.mapping, dtype=np.float64)), "")
    values = torch.from_numpy(node.transform.astype(np.float32)).movedim(-1, 0)
    if node.representation != "displacements":
        values = values - grid.centres().movedim(-1, 0)
    return grid, values.contiguous()
