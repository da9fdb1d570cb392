"""Fitting the contrastive descriptor: one anatomy painted twice, its places to be told apart and recognised.

A. van den Oord et al. (2018), doi:10.48550/arXiv.1807.03748, equation 4, both ways, over voxels: the descriptor of a place in
one painting must be nearer to that of the same place in the other than to those of other places. Some of those lie a few
voxels off, where registration errs, the rest anywhere in the crop.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tractode.registration.metrics.contrastive import DescriptorNetwork, DescriptorSettings
from tractode.simulate.painting import compact, paint, random_palette


@dataclass(frozen=True)
class ContrastiveSettings:
    """How a batch is drawn.

    Parameters
    ----------
    crop
        Edge of the painted crops, voxels after averaging.
    factors
        How many voxels of the label map are averaged along each axis; one of these at each step.
    centres, neighbours, reach
        Places drawn from the crop, and how many others, up to ``reach`` voxels off, are drawn around each.
    temperature
        Of the softmax.
    """

    crop: int = 40
    factors: tuple[int, ...] = (2, 2, 2, 3)
    centres: int = 192
    neighbours: int = 3
    reach: int = 3
    temperature: float = 0.1


class ContrastiveProblem:
    """Label maps (codes of FreeSurfer, any grid of about 1 mm), and the network to fit."""

    def __init__(
        self,
        labels: list[Int[Tensor, "_ _ _"]],
        names: list[str],
        network: DescriptorSettings | None = None,
        settings: ContrastiveSettings | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.settings = settings or ContrastiveSettings()
        self.names = names
        self.device = torch.device(device)
        self.maps = [compact(_trimmed(volume))[0].to(torch.int16) for volume in labels]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = DescriptorNetwork(network or DescriptorSettings())
        self.module.to(self.device)

    def record(self) -> dict[str, Any]:
        batch = {**asdict(self.settings), "factors": list(self.settings.factors)}
        return {"network": self.module.settings.record(), "batch": batch, "label_maps": self.names}

    def loss(self, generator: torch.Generator) -> Float[Tensor, ""]:
        settings = self.settings
        factor = settings.factors[int(torch.randint(len(settings.factors), (), generator=generator))]
        labels = self._crop(factor, generator)
        n_labels = int(labels.max()) + 1
        first, second = (
            self.module(paint(labels, random_palette(n_labels, generator), generator, factor).to(self.device))
            for _ in range(2)
        )
        places = self._places(labels[::factor, ::factor, ::factor], generator).to(self.device)
        a, b = (image.flatten(1)[:, places].mT for image in (first, second))
        logits = a @ b.mT / settings.temperature
        target = torch.arange(len(places), device=self.device)
        return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.mT, target)) / 2

    def _crop(self, factor: int, generator: torch.Generator) -> Int[Tensor, "n n n"]:
        """A random crop whose middle is not air."""
        volume = self.maps[int(torch.randint(len(self.maps), (), generator=generator))]
        edge = self.settings.crop * factor
        for _ in range(20):
            start = [int(torch.randint(max(n - edge, 0) + 1, (), generator=generator)) for n in volume.shape]
            middle = [s + min(edge, n) // 2 for s, n in zip(start, volume.shape, strict=True)]
            if int(volume[middle[0], middle[1], middle[2]]) > 0:
                break
        crop = volume[start[0] : start[0] + edge, start[1] : start[1] + edge, start[2] : start[2] + edge]
        missing = [edge - n for n in crop.shape]
        crop = functional.pad(crop, [0, missing[2], 0, missing[1], 0, missing[0]]).to(torch.int64)
        for axis in range(3):
            if torch.rand((), generator=generator) < 0.5:
                crop = crop.flip(axis)
        order = torch.randperm(3, generator=generator).tolist()
        return crop.permute(order).contiguous()

    def _places(self, labels: Int[Tensor, "n n n"], generator: torch.Generator) -> Int[Tensor, " p"]:
        """Flat indices of places, most of them near a border between labels, without repeats."""
        settings, n = self.settings, labels.shape[0]
        coarse = labels[None].float()
        spread = functional.max_pool3d(coarse, 3, 1, 1) + functional.max_pool3d(-coarse, 3, 1, 1)
        likely = (spread[0] > 0).float() + 0.1 * (labels > 0) + 1e-4
        centres = torch.multinomial(likely.flatten(), settings.centres, generator=generator)
        index = torch.stack([centres // n**2, centres // n % n, centres % n], dim=-1)
        shape = (settings.centres, settings.neighbours, 3)
        offsets = torch.randint(-settings.reach, settings.reach + 1, shape, generator=generator)
        around = (index[:, None] + offsets).clamp(0, n - 1).reshape(-1, 3)
        every = torch.cat([index, around])
        return torch.unique(every[:, 0] * n**2 + every[:, 1] * n + every[:, 2])


def _trimmed(labels: Int[Tensor, "i j k"], margin: int = 8) -> Int[Tensor, "r s t"]:
    """Without most of the air around the head."""
    inside = labels.nonzero()
    low = (inside.amin(0) - margin).clamp_min(0).tolist()
    high = (inside.amax(0) + margin + 1).tolist()
    return labels[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
