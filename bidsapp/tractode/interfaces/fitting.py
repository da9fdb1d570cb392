"""A model fitted to a series block of voxels by block, its maps kept for the masked voxels alone and written volume by volume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import OrientationModel, SignalModel
from tractode.fields import GradientTable, Image, ImageGrid
from tractode.io.gradients import GradientPolicy, parse_gradients, to_table
from tractode.io.masked_series import MaskedSeries
from tractode.io.nifti import read_image, write_volumes
from tractode.models import uncertainty
from tractode.models.fixels import fixel_maps

#: Voxels that are fitted at a time; a multiple of every tile size, so that results do not depend on it.
SLAB = 1 << 16
#: Voxels, evenly spread, from which a model learns what it must know first (a response); all of them where there are fewer.
FEW_ENOUGH = 250_000

# What `PrepareDwi` wrote needs no judging again: its b=0 volumes have b-value 0 and nothing else has.
_OURS = GradientPolicy(estimate_s0=True, b0_threshold=0.0)


@dataclass(eq=False)
class MaskedMaps:
    """Values of the masked voxels by map, ``(v, c)`` float32, in the order of a `MaskedSeries`."""

    grid: ImageGrid
    index: np.ndarray
    values: dict[str, Float[Tensor, "v c"]] = field(default_factory=dict)
    n_bootstrapped: int = 0  # voxels whose errors were found by bootstrap

    def put(self, which: slice, maps: Mapping[str, Float[Tensor, "b c"]]) -> None:
        """One block's values of every map."""
        for name, values in maps.items():
            if name not in self.values:
                self.values[name] = torch.zeros(len(self.index), values.shape[1])
            self.values[name][which] = values.detach().to("cpu", torch.float32)

    def volumes(self, name: str) -> Iterator[np.ndarray]:
        """The map's volumes on the grid, 0 outside the mask; each overwrites the one before."""
        flat = np.zeros(self.grid.n_voxels, np.float32)
        for column in self.values[name].T:
            flat[self.index] = column.numpy()
            yield flat.reshape(self.grid.shape, order="F")

    def image(self, name: str) -> Image:
        """The map as an image."""
        return Image(self.grid, torch.stack([torch.from_numpy(volume.copy()) for volume in self.volumes(name)]))

    def write(self, path: Path, name: str) -> None:
        """The map as a file, of which one volume is in memory at a time."""
        write_volumes(path, self.grid, self.volumes(name), self.values[name].shape[1])


def fit_blocks(
    model: SignalModel,
    series: MaskedSeries,
    gtab: GradientTable,
    grid: ImageGrid,
    *,
    device: str = "cpu",
    method: Literal["none", "laplace", "bootstrap"] = "none",
    seed: int = 0,
    fixels: bool = False,
    noise: Float[Tensor, "v 1"] | None = None,
) -> tuple[MaskedMaps, MaskedMaps]:
    """Every map of the model, and where ``method`` is not ``none`` their standard errors (`tractode.models.uncertainty`), calibrated.

    With ``fixels`` those of `tractode.models.fixels` are among the maps, if the model is one of orientations. ``noise`` is the level
    (a standard deviation) in each voxel of the series where it is known; the residuals of a denoised series tell too little of it.
    """
    maps, spread = MaskedMaps(grid, series.index), MaskedMaps(grid, series.index)
    rule = None
    if method != "none":
        rule = uncertainty.calibrated(model, gtab, method, knows_sigma=noise is not None, device=device)
    for which, block in series.blocks(SLAB):
        signal = block.to(device)
        with torch.no_grad():
            params = model.fit(signal, gtab)
            maps.put(which, model.to_maps(params))
            if fixels and isinstance(model, OrientationModel):
                maps.put(which, fixel_maps(model, params))
            del params
        if method != "none":
            # Draws are shared by all voxels: the same seed for every block makes blocks of no consequence.
            generator = torch.Generator().manual_seed(seed)
            level = None if noise is None else noise[which].to(device)
            found = uncertainty.errors(
                model, signal, gtab, method=method, generator=generator, sigma=level, calibration=rule
            )
            spread.put(which, found.deviations | found.cones)
            spread.n_bootstrapped += int(found.by_bootstrap.sum())
    return maps, spread


def read_noise(prepared: Mapping[str, str], index: np.ndarray, space: str) -> Float[Tensor, "v 1"] | None:
    """The noise level that `PrepareDwi` wrote, of the voxels of a `MaskedSeries`; ``None`` where the series was not denoised.

    Where denoising did not reach, it is the median of the others.
    """
    if "noise" not in prepared:
        return None
    image, _ = read_image(Path(prepared["noise"]), space)
    level = torch.from_numpy(image.values[0].numpy().ravel(order="F")[index]).float()[:, None]
    known = level > 0
    return torch.where(known, level, level[known].median()) if bool(known.any()) else None


def read_prepared_table(prepared: Mapping[str, str], n_volumes: int, grid: ImageGrid) -> GradientTable:
    """The table that `PrepareDwi` wrote, in the scanner frame."""
    stored, _ = parse_gradients(Path(prepared["bval"]), Path(prepared["bvec"]), n_volumes, policy=_OURS)
    return to_table(stored, grid.affine)
