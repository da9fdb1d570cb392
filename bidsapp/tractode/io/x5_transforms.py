"""X5 transforms (the BIDS draft), through nitransforms: affines, dense displacements, and flows that stay flows.

A flow is written as a dense displacement of its own space and keeps its velocity, from which `read_x5` rebuilds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from nitransforms.io import x5
from torch import Tensor

from tractode.fields.image import ImageGrid
from tractode.fields.transform import Affine, Displacement, Flow, Transform
from tractode.io.transform_parts import Tables, VelocityFlow, chain_of, flat, simple_parts, unreadable

_FLOW = "stationary_velocity_flow"


def write_x5(path: Path, transform: Transform, reference: ImageGrid, tables: Tables | None = None) -> None:
    """An X5 file whose nodes map one after the other as ``transform`` does, with the chain that says so."""
    nodes = []
    for part in flat(transform):
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
        raise unreadable(path, error) from error
    return chain_of(found, source, target)


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
