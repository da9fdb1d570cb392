"""What can be read from a model's parameters and have an error: its scalar maps, and its axes.

Axes are the maps of unit vectors and, of a model of orientations, the largest peak of its distribution. Between two fits
of one voxel an axis may change its sign, and axes of one kind their order: they are matched to those of the first fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby, permutations

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import MapSpec, OrientationModel, SignalModel
from tractode.ops import sh_polynomial, sphere
from tractode.ops import spherical_harmonics as sh
from tractode.ops.peaks import Peak

PEAK = "peak"
PEAK_ORDER = 8
_N_STARTS = 300


@dataclass(frozen=True, eq=False)
class Readouts:
    """Scalar maps by ``param``, and unit axes by ``param`` (or `PEAK`); an axis that a voxel does not have is zero."""

    scalars: dict[str, Float[Tensor, "v _"]]
    axes: dict[str, Float[Tensor, "v 3"]]


def read(
    model: SignalModel, params: Float[Tensor, "v p"], near: Mapping[str, Float[Tensor, "v 3"]] | None = None
) -> Readouts:
    """All readouts of parameters; differentiable. With ``near`` (the axes of another fit) axes are matched to those."""
    maps = model.to_maps(params)
    scalars = {spec.param: maps[spec.param] for spec in model.maps if spec.components == "scalar"}
    axes = {spec.param: maps[spec.param] for spec in model.maps if spec.components == "unit3vector"}
    if near is not None:
        axes = _matched(axes, near)
    if isinstance(model, OrientationModel):
        coefficients = model.to_sh(params, PEAK_ORDER)
        axes[PEAK] = peak(coefficients, near[PEAK] if near is not None else largest_peak(coefficients))
    return Readouts(scalars, axes)


def specs(kind: type[SignalModel]) -> tuple[MapSpec, ...]:
    """What the error of each readout is, in words and units, under the readout's name."""
    found = [
        replace(spec, description=f"Standard error of: {spec.description}")
        for spec in kind.maps
        if spec.components == "scalar"
    ]
    cone = "Half-angle of the cone that holds 90 % of: "
    found += [
        MapSpec(spec.param, cone + spec.description, "rad") for spec in kind.maps if spec.components == "unit3vector"
    ]
    if issubclass(kind, OrientationModel):
        found.append(MapSpec(PEAK, cone + "The largest peak of the orientation distribution", "rad"))
    return tuple(found)


def _matched(axes: Mapping[str, Tensor], near: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "v 3"]]:
    """Axes of one kind (names that differ in their number only) in the order in which they lie nearest to those of ``near``.

    Of all orders the one with the largest sum of squared cosines: no axis stands for two.
    """
    found: dict[str, Tensor] = {}
    for stem, group in groupby(axes, lambda name: name.rstrip("0123456789")):
        names = list(group)
        if len(names) == 1:
            found[names[0]] = axes[names[0]]
            continue
        there, here = (torch.stack([table[name] for name in names], dim=1) for table in (near, axes))
        squares = (there @ here.mT).detach().square()
        orders = torch.tensor(list(permutations(range(len(names)))), device=here.device)
        sums = sum(squares[:, k, orders[:, k]] for k in range(len(names)))
        assert isinstance(sums, Tensor), stem
        best = orders[sums.argmax(-1)]
        moved = here.gather(1, best[..., None].expand_as(here))
        found |= dict(zip(names, moved.unbind(1), strict=True))
    return found


def largest_peak(coefficients: Float[Tensor, "v l"]) -> Float[Tensor, "v 3"]:
    """The axis, among 300, of the largest amplitude; zero coefficients: z."""
    axes = sphere.directions(_N_STARTS)
    amplitudes = coefficients.detach().double() @ sh.basis(axes, PEAK_ORDER).to(coefficients.device).mT
    found = axes.to(coefficients)[amplitudes.argmax(-1)]
    return torch.where((coefficients != 0).any(-1, keepdim=True), found, found.new_tensor([0.0, 0.0, 1.0]))


def peak(coefficients: Float[Tensor, "v l"], start: Float[Tensor, "v 3"]) -> Float[Tensor, "v 3"]:
    """The peak uphill from ``start``; differentiable in the coefficients."""
    matrix = sh_polynomial.from_harmonics(PEAK_ORDER).to(coefficients)
    # One column after another: the same sums for any number of voxels.
    components = (matrix[:, :, None] * coefficients.mT[None]).sum(1)
    directions, _ = Peak.apply(components, start.to(coefficients).mT.contiguous())
    return directions.mT
