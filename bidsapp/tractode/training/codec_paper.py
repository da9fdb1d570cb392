"""Fitting the five published codecs: the mean squared error of groups of streamlines in scaled coordinates.

A. Lizarraga et al., "Differentiable VQ-VAE's for robust white matter streamline encodings" (github.com/drewrl3v/diff-vq-vae), section 2.3. Departures: AdamW
without decay of weights (which is Adam) under a cosine schedule; the data are persons varied from a library of bundles, so
that neither lines nor persons are in training and in the test.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tractode.fields import Streamlines
from tractode.fields.line_shape import resampled
from tractode.generative.bundle_groups import N_POINTS, pictures
from tractode.generative.resnet_codec import GroupCodec, GroupNetwork
from tractode.generative.space import SPACE
from tractode.simulate.line_groups import Groups


@dataclass(frozen=True)
class GroupSettings:
    """``batch`` groups a step; ``is_short``: trunk by numbers of 16 bits (bfloat16), three times as fast on some processors."""

    batch: int = 32
    is_short: bool = False


class GroupProblem:
    """A published codec and the groups it learns from."""

    def __init__(
        self,
        codec: GroupCodec,
        groups: Groups,
        settings: GroupSettings | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.codec, self.groups = codec, groups
        self.settings, self.device = settings or GroupSettings(), torch.device(device)
        self.module: GroupNetwork = codec.network.to(self.device)

    def record(self) -> dict[str, Any]:
        return {**self.codec.weights()[1], "batch": asdict(self.settings), "n_persons": len(self.groups.persons)}

    def advance(self, share: float) -> None:
        """Tells how much of the training is over."""
        self.module.bottleneck.share.fill_(share)

    def loss(self, generator: torch.Generator) -> Float[Tensor, ""]:
        images = self.images(generator)
        found, added = self.module(images, generator, self.settings.is_short)
        return functional.mse_loss(found, images) + added

    def images(self, generator: torch.Generator) -> Float[Tensor, "g 3 64 64"]:
        """A batch of groups."""
        return pictures(at_64(self.groups.draw(self.settings.batch, generator))).to(self.device).contiguous()


def at_64(groups: Float[Tensor, "g s p 3"]) -> Float[Tensor, "g s 64 3"]:
    """Lines of groups by 64 points equally spaced along them."""
    n, n_points = groups.shape[0] * groups.shape[1], groups.shape[2]
    offsets = torch.arange(n + 1) * n_points
    lines = resampled(Streamlines(groups.reshape(-1, 3), offsets, SPACE), N_POINTS)
    return lines.to(groups).reshape(*groups.shape[:2], N_POINTS, 3)
