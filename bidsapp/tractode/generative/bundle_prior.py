"""New streamlines of a named bundle: Gaussians in a codec's latent space, a few for each bundle.

No paper. A bundle's latents are parted by the direction that its lines were given, then at the median of their principal axis, over
and over while both halves keep enough lines; every part is a Gaussian of low rank (its largest principal axes) with what is left on the diagonal.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tractode.errors import UsageError
from tractode.fields.line_shape import runs_back

RANK = 10
_FEWEST = 60
_PARTINGS = 3


class BundlePrior(nn.Module):
    """Parts of bundles, each ``mean + factor z + rest e`` with normal z and e. Buffers only.

    ``reference`` is the mean course of each bundle (mm), in the one direction of `fields.line_shape`: what a bundle's lines
    are turned alike to. ``bundle`` says whose each part is, ``share`` how many of its bundle's lines it holds.
    """

    reference: Tensor
    bundle: Tensor
    share: Tensor
    mean: Tensor
    factor: Tensor
    rest: Tensor

    def __init__(self, names: tuple[str, ...], n_parts: int, n_latent: int, rank: int = RANK) -> None:
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("reference", torch.zeros(len(self.names), 31, 3))
        self.register_buffer("bundle", torch.zeros(n_parts, dtype=torch.long))
        self.register_buffer("share", torch.ones(n_parts))
        self.register_buffer("mean", torch.zeros(n_parts, n_latent))
        self.register_buffer("factor", torch.zeros(n_parts, n_latent, rank))
        self.register_buffer("rest", torch.zeros(n_parts, n_latent))

    def settings(self) -> dict[str, object]:
        """What `from_settings` needs to make this again."""
        parts, n_latent, rank = self.factor.shape
        return {"names": list(self.names), "n_parts": parts, "n_latent": n_latent, "rank": rank}

    @classmethod
    def from_settings(cls, settings: dict[str, object]) -> BundlePrior:
        names, parts, n_latent, rank = (settings[key] for key in ("names", "n_parts", "n_latent", "rank"))
        return cls(tuple(names), int(parts), int(n_latent), int(rank))  # type: ignore[arg-type, call-overload]

    @classmethod
    def fit(
        cls,
        latents: Float[Tensor, "n d"],
        label: Int[Tensor, " n"],
        names: tuple[str, ...],
        lines: Float[Tensor, "n 31 3"],
        rank: int = RANK,
    ) -> BundlePrior:
        """From the latents of lines of every bundle and those lines, each in its one direction; ``label`` is the index into ``names``."""
        latents = latents.float()
        reference = torch.stack([_course(lines[label == index].float()) for index in range(len(names))])
        along = (reference[label][:, -1] - reference[label][:, 0])[:, None]
        agrees = ((lines[:, -1:] - lines[:, :1]) * along).sum((1, 2)) >= 0
        parts = []
        for index in range(len(names)):
            of_bundle = label == index
            for way in (agrees, ~agrees):
                rows = (of_bundle & way).nonzero().ravel()
                # A handful that runs the other way is no part of its own, nor of the others.
                if len(rows) > 0.02 * int(of_bundle.sum()):
                    parts += [(index, some) for some in _parted(latents, rows, _PARTINGS)]
        prior = cls(names, len(parts), latents.shape[1], rank)
        prior.reference.copy_(reference)
        counts = torch.bincount(label, minlength=len(names))
        for place, (index, rows) in enumerate(parts):
            prior.bundle[place], prior.share[place] = index, len(rows) / float(counts[index])
            prior.mean[place], prior.factor[place], prior.rest[place] = _gaussian(latents[rows], rank)
        return prior

    def sample(
        self, name: str, n: int, generator: torch.Generator | None = None, spread: float = 1.0
    ) -> Float[Tensor, "n d"]:
        """Latents of ``n`` new lines; ``spread`` scales how far they are from the middle of their part.

        Raises
        ------
        UsageError
            E-BUNDLE-NAME: no bundle of that name.
        """
        if name not in self.names:
            raise UsageError(
                f"No bundle is called {name!r}",
                id="E-BUNDLE-NAME",
                needed="one of " + ", ".join(self.names),
                fix="give one of these names",
            )
        own = (self.bundle == self.names.index(name)).nonzero().ravel()
        which = own[torch.multinomial(self.share[own].cpu().float(), n, replacement=True, generator=generator)]
        z = torch.randn(n, self.factor.shape[2], generator=generator).to(self.factor)
        e = torch.randn(n, self.rest.shape[1], generator=generator).to(self.rest)
        wide = torch.einsum("sdr,sr->sd", self.factor[which], z) + self.rest[which] * e
        return self.mean[which] + spread * wide


def _course(lines: Float[Tensor, "n 31 3"], most: int = 300) -> Float[Tensor, "31 3"]:
    """The mean of a bundle's lines, all turned to run as the one does that is nearest to the others."""
    some = lines[:: max(1, len(lines) // most)]
    flat, turned = some.flatten(1), some.flip(1).flatten(1)
    middle = some[int(torch.minimum(torch.cdist(flat, flat), torch.cdist(flat, turned)).sum(1).argmin())]
    for _ in range(2):
        is_back = (lines.flip(1) - middle).square().sum((1, 2)) < (lines - middle).square().sum((1, 2))
        middle = torch.where(is_back[:, None, None], lines.flip(1), lines).mean(0)
    return middle.flip(0) if bool(runs_back(middle[None])) else middle


def _parted(latents: Float[Tensor, "n d"], rows: Int[Tensor, " m"], times: int) -> list[Int[Tensor, " k"]]:
    """Rows halved along their principal axis while both halves have enough."""
    if times == 0 or len(rows) < 2 * _FEWEST:
        return [rows]
    centred = latents[rows] - latents[rows].mean(0)
    axis = torch.linalg.eigh(centred.mT @ centred)[1][:, -1]
    order = (centred @ axis).argsort()
    half = len(rows) // 2
    return [*_parted(latents, rows[order[:half]], times - 1), *_parted(latents, rows[order[half:]], times - 1)]


def _gaussian(latents: Float[Tensor, "n d"], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, largest principal axes scaled by their standard deviations, and the deviation that they leave in each coordinate."""
    mean = latents.mean(0)
    centred = latents - mean
    covariance = centred.mT @ centred / max(len(latents) - 1, 1)
    value, axis = torch.linalg.eigh(covariance)
    factor = latents.new_zeros(latents.shape[1], rank)
    kept = min(rank, latents.shape[1])
    factor[:, :kept] = (axis * value.clamp(min=0).sqrt()).flip(1)[:, :kept]
    rest = (covariance.diagonal() - factor.square().sum(1)).clamp(min=0).sqrt()
    return mean, factor, rest
