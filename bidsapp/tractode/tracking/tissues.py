"""Five-tissue maps looked up at points: cortical grey, subcortical grey, white matter, CSF, pathological tissue.

Smith et al., *Anatomically-constrained tractography*, NeuroImage 2012, doi:10.1016/j.neuroimage.2012.06.005. Values are
interpolated trilinearly; between the outermost voxel centres and the edge of the image those of the outermost centre
are repeated. A point where the tissues sum to less than half, or whose nearest voxel holds none, is outside the brain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from tractode.errors import ShapeError
from tractode.fields import Image, ImageGrid
from tractode.tracking.sampling import ComponentTable, to_voxel

LEAST_SUM = 0.5
INTERFACE_ACCURACY = 0.01
NAMES = ("cortical grey matter", "subcortical grey matter", "white matter", "CSF", "pathological tissue")


@dataclass(frozen=True, eq=False)
class Tissues:
    """Fractions at points, each in [0, 1], and whether a point lies in the brain."""

    cortical: Float[Tensor, " p"]
    subcortical: Float[Tensor, " p"]
    white: Float[Tensor, " p"]
    csf: Float[Tensor, " p"]
    pathological: Float[Tensor, " p"]
    is_valid: Bool[Tensor, " p"]

    @property
    def grey(self) -> Float[Tensor, " p"]:
        return self.cortical + self.subcortical

    @property
    def excess(self) -> Float[Tensor, " p"]:
        """Grey minus white matter: 0 at their interface."""
        return self.grey - self.white

    @property
    def is_csf(self) -> Bool[Tensor, " p"]:
        others = (self.cortical, self.subcortical, self.white, self.pathological)
        return torch.stack([self.csf >= other for other in others]).all(0)

    @property
    def is_grey(self) -> Bool[Tensor, " p"]:
        return (self.grey >= self.white) & (self.grey > self.csf) & (self.grey > self.pathological)

    @property
    def is_subcortical(self) -> Bool[Tensor, " p"]:
        own = self.subcortical
        return (own > self.cortical) & (own >= self.white) & (own > self.csf) & (own > self.pathological)

    @property
    def is_pathological(self) -> Bool[Tensor, " p"]:
        own = self.pathological
        return (own >= self.cortical) & (own >= self.subcortical) & (own >= self.white) & (own > self.csf)


@dataclass(frozen=True, eq=False)
class TissueMaps:
    """A five-tissue image ready to be looked up.

    Raises `ShapeError` where it has not five channels.
    """

    image: Image

    def __post_init__(self) -> None:
        if self.image.values.shape[0] != len(NAMES):
            raise ShapeError(f"Tissue maps are {', '.join(NAMES)}; got {self.image.values.shape[0]} channels.")

    @property
    def grid(self) -> ImageGrid:
        return self.image.grid

    @cached_property
    def _table(self) -> ComponentTable:
        # All five values of a voxel beside one another: a point costs eight reads, not forty.
        return ComponentTable.of_values(self.grid, self.image.values)

    def _on(self, device: torch.device) -> ComponentTable:
        table = self._table
        if table.values.device == device:
            return table
        known: dict[torch.device, ComponentTable] = self._elsewhere
        if device not in known:
            known[device] = ComponentTable(table.grid, table.values.to(device), table.rows.to(device))
        return known[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, ComponentTable]:
        return {}

    def at(self, points: Float[Tensor, "p 3"]) -> Tissues:
        """Tissues at points (RAS+ mm), in the dtype of the maps; differentiable in the points and the maps."""
        table = self._on(points.device)
        sampled, has_data = table.sample(to_voxel(self.grid, points.mT).to(table.values))
        sampled = torch.where(has_data, sampled, 0.0).clamp(0, 1)
        is_valid = has_data & (sampled.detach().sum(0) >= LEAST_SUM)
        cortical, subcortical, white, csf, pathological = sampled.unbind(0)
        return Tissues(cortical, subcortical, white, csf, pathological, is_valid)

    def slope(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
        """The gradient of grey minus white matter, 1/mm."""
        with torch.enable_grad():
            at = points.detach().requires_grad_()
            return torch.autograd.grad(self.at(at).excess.sum(), at)[0]

    def interface_voxels(self) -> Image:
        """A mask of the voxels that touch the interface: grey exceeds white matter on one side of them and not on the other."""
        values = self.image.values.float()
        excess = (values[0] + values[1] - values[2])[None, None]
        has_both = (functional.max_pool3d(excess, 3, 1, 1) > 0) & (-functional.max_pool3d(-excess, 3, 1, 1) < 0)
        is_near_white = functional.max_pool3d(values[2][None, None], 3, 1, 1) > 0
        return Image(self.grid, (has_both & is_near_white)[0])
