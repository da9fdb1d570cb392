"""One variational autoencoder for each spherical-harmonic coefficient: a volume becomes four channels at a quarter of its size.

A. Sargood et al., "GenTract: generative global tractography", arXiv:2511.13183 (2025), section 4.1; the autoencoder is MAISI's
(P. Guo et al., WACV 2025, doi:10.48550/arXiv.2409.11169), here built from MONAI's `AutoencoderKL`, which has its layers but not
its splitting of large volumes. Fitting: `training/coefficient_vae.py`.

Departures: fitted from nothing (the paper starts from MAISI's weights); the size is a setting; the latent of a subject is the
mean of its distribution, not a draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_REDUCTION = 4


@dataclass(frozen=True)
class VaeSettings:
    """Width of the three levels, channels of the latent, residual blocks a level and groups of its normalisation."""

    channels: tuple[int, int, int] = (64, 128, 256)
    latent_channels: int = 4
    n_blocks: int = 2
    groups: int = 32

    def record(self) -> dict[str, Any]:
        """As plain data, for a settings file."""
        return {**asdict(self), "channels": list(self.channels)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> VaeSettings:
        return cls(**{**record, "channels": tuple(record["channels"])})


class CoefficientVaes(nn.Module):
    """``n`` autoencoders that share nothing; volumes and latents travel as ``(n, …)``."""

    def __init__(self, n: int, settings: VaeSettings) -> None:
        super().__init__()
        self.settings = settings
        self.each = nn.ModuleList([_autoencoder(settings) for _ in range(n)])

    def latents(self, volumes: Float[Tensor, "n i j k"]) -> Float[Tensor, "n c a b d"]:
        """The mean latent of every coefficient's volume; sizes are padded to what `padded` needs, then quartered."""
        return torch.stack([self.encode(n, volume)[0] for n, volume in enumerate(padded(volumes))])

    def reconstructed(self, volumes: Float[Tensor, "n i j k"]) -> Float[Tensor, "n i j k"]:
        """Every volume from its mean latent."""
        i, j, k = volumes.shape[1:]
        back = [self.decode(n, latent) for n, latent in enumerate(self.latents(volumes))]
        return torch.stack(back)[:, :i, :j, :k]

    def encode(self, index: int, volume: Float[Tensor, "i j k"]) -> tuple[Tensor, Tensor]:
        """Mean and deviation of one coefficient's latent, each ``(c, a, b, d)``; sizes that 4 divides."""
        mean, deviation = self.each[index].encode(volume[None, None])  # type: ignore[operator]
        return mean[0], deviation[0]

    def decode(self, index: int, latent: Float[Tensor, "c a b d"]) -> Float[Tensor, "i j k"]:
        return self.each[index].decode(latent[None])[0, 0]  # type: ignore[operator]


def padded(volumes: Float[Tensor, "n i j k"], multiple: int = 2 * _REDUCTION) -> Float[Tensor, "n a b d"]:
    """Zeros behind the last voxels, so that latent and context have whole sizes."""
    missing = [-n % multiple for n in volumes.shape[1:]]
    return functional.pad(volumes, [0, missing[2], 0, missing[1], 0, missing[0]])


def _autoencoder(settings: VaeSettings) -> nn.Module:
    # Imported where it is needed: MONAI takes seconds and is not needed by anything else.
    from monai.networks.nets.autoencoderkl import AutoencoderKL

    return AutoencoderKL(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=settings.channels,
        num_res_blocks=(settings.n_blocks,) * 3,
        attention_levels=(False,) * 3,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.groups,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )
