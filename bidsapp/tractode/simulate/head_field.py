"""The magnetic field of one participant's head, in Hz at any of its points: that of the air below the brain, after the shim.

The field belongs to the head: every scan of a session sees the same one, wherever the head lay (`at` takes points of the
session's T1w space). Its spheres of air are those of `susceptibility`, in the template and carried into the participant by
the inverse of his or her warp. Departures: the shim is that of the whole brain and of first order; small turns of the head
between the scans of a session leave the field as it is, those between sessions do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import Affine, Chain, Displacement, ImageGrid
from tractode.simulate.susceptibility import SusceptibilitySettings, field_of_air, shim, without_shim
from tractode.simulate.tissues import Anatomy
from tractode.simulate.warp import tabulated

# Sphenoid sinus, ethmoid cells with the nose, mastoid cells with the ears: larger than they are, since they stand for all air and bone
# below the brain, and 4 mm away from it. At 3 T, after the shim, 95 % of the brain have less than about 50 Hz.
SINUSES = SusceptibilitySettings(
    air=(
        ((0.0, 36.0, -60.0), 24.0),
        ((0.0, 74.0, -50.0), 22.0),
        ((56.0, -24.0, -66.0), 20.0),
        ((-56.0, -24.0, -66.0), 20.0),
    )
)
_MARGIN = 40.0  # mm around the brain in which the field is known


@dataclass(frozen=True, eq=False)
class HeadField:
    """``scale`` multiplies the field of the air; the shim (`susceptibility.shim`) has been fitted before."""

    warp: Displacement
    axis: Float[Tensor, " 3"]
    coefficients: Float[Tensor, " 4"]
    air: SusceptibilitySettings
    scale: float = 1.0

    def at(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p"]:
        """Hz (float64) at points of the T1w space; meant for the brain and 40 mm around it."""
        points = points.double()
        return self.scale * without_shim(_of_air(self.warp, points, self.axis, self.air), points, self.coefficients)


def head_table(anatomy: Anatomy, warp: Chain) -> Displacement:
    """A participant's warp tabulated over the head and 40 mm around it, for all scans of a session."""
    return tabulated(warp, _around(_brain(anatomy, warp, 6), warp.source))


def head_field(
    anatomy: Anatomy,
    warp: Chain,
    strength_hz: float | None = None,
    air: SusceptibilitySettings = SINUSES,
    table: Displacement | None = None,
) -> HeadField:
    """The field of the participant whose T1w space → template is ``warp``; the magnet lies along the scanner's z axis.

    ``strength_hz`` scales it so that 95 % of the brain's voxels are nearer to zero than that many Hz; ``table`` is the warp
    tabulated (`head_table`), where it is at hand.
    """
    points = _brain(anatomy, warp, 3)
    table = table or head_table(anatomy, warp)
    axis = _axis_in_template(warp)
    field = _of_air(table, points, axis, air)
    coefficients = shim(field, points, torch.ones(len(points), dtype=torch.float64))
    left = without_shim(field, points, coefficients).abs().quantile(0.95)
    scale = 1.0 if strength_hz is None else strength_hz / float(left)
    return HeadField(table, axis, coefficients, air, scale)


def _brain(anatomy: Anatomy, warp: Chain, every: int) -> Float[Tensor, "p 3"]:
    """Points of the brain in the participant's T1w space: every so many of the template's voxels."""
    inside = (anatomy.tissues.values.sum(0)[::every, ::every, ::every] > 0.5).nonzero().double() * every
    return warp.inverse().map(anatomy.tissues.grid.to_world(inside))


def _of_air(
    warp: Displacement, points: Float[Tensor, "*p 3"], axis: Float[Tensor, " 3"], air: SusceptibilitySettings
) -> Float[Tensor, "*p"]:
    return field_of_air(warp.map(points), axis, air)


def _around(points: Float[Tensor, "p 3"], space: str) -> ImageGrid:
    low, high = points.amin(0) - _MARGIN, points.amax(0) + _MARGIN
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 3] = low
    i, j, k = (high - low).ceil().int().tolist()
    return ImageGrid((i, j, k), affine, space)


def _axis_in_template(warp: Chain) -> Float[Tensor, " 3"]:
    """The scanner's z in the template: turned by the affine parts of the warp, its deformation aside."""
    matrix = torch.eye(3, dtype=torch.float64)
    for part in warp.parts:
        if isinstance(part, Affine):
            matrix = part.matrix[:3, :3].double() @ matrix
    u, _, vh = torch.linalg.svd(matrix)
    return (u @ vh)[:, 2]
