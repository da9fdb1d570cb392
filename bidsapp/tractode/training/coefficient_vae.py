"""Fitting the autoencoders of `generative/coefficient_vae.py`: one volume of one coefficient a step.

P. Guo et al., "MAISI", WACV 2025, doi:10.48550/arXiv.2409.11169, with GenTract's weights (A. Sargood et al. 2025,
doi:10.48550/arXiv.2511.13183, and its code): ``|x − x'| + 1e-6 KL + 0.1 perceptual + 0.1 adversarial``, the last by least squares
(X. Mao et al., ICCV 2017, doi:10.1109/ICCV.2017.304) on patches.

Departures: crops may be fitted instead of whole volumes; the discriminators take their step together with the autoencoders
instead of after them, so that the house's one loop fits both; each coefficient has a discriminator of its own and steps fall on
the coefficients at random. The perceptual term needs SqueezeNet's weights, which are not part of MONAI and would have to be
downloaded: its weight is nought unless asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tractode.errors import ResourceUnavailableError
from tractode.generative.coefficient_vae import CoefficientVaes, padded


@dataclass(frozen=True)
class VaeTrainingSettings:
    """Weights of the terms, the edge of random crops in voxels (0: whole volumes), and the discriminator's first width.

    ``adversarial`` 0 leaves the discriminators out; ``perceptual`` above 0 needs weights that are not shipped.
    """

    kl: float = 1e-6
    perceptual: float = 0.0
    adversarial: float = 0.1
    crop: int = 0
    discriminator_channels: int = 32
    discriminator_layers: int = 3


RECIPES: dict[str, VaeTrainingSettings] = {
    "paper": VaeTrainingSettings(perceptual=0.1),
    "small": VaeTrainingSettings(crop=24, discriminator_channels=4, discriminator_layers=1),
}


class VaeProblem:
    """Z-scored volumes (subjects, coefficients, grid), and the autoencoders to fit."""

    def __init__(
        self,
        volumes: Sequence[Float[Tensor, "n i j k"]],
        vaes: CoefficientVaes,
        settings: VaeTrainingSettings | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = settings or VaeTrainingSettings()
        self.volumes = [padded(one) for one in volumes]
        self.vaes = vaes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            critics = [_discriminator(self.settings) for _ in vaes.each] if self.settings.adversarial else []
        self.critics = nn.ModuleList(critics)
        self.module = nn.ModuleDict({"vaes": vaes, "critics": self.critics})
        self.perceptual = perceptual_loss() if self.settings.perceptual else None

    def record(self) -> dict[str, Any]:
        return {"vae": self.vaes.settings.record(), "terms": asdict(self.settings), "n_subjects": len(self.volumes)}

    def loss(self, generator: torch.Generator) -> Float[Tensor, ""]:
        """The terms of one random coefficient of one random subject."""
        subject = self.volumes[_below(len(self.volumes), generator)]
        index = _below(len(subject), generator)
        x = self._crop(subject[index], generator)
        mean, deviation = self.vaes.encode(index, x)
        noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)
        back = self.vaes.decode(index, mean + deviation * noise)
        total = (back - x).abs().mean() + self.settings.kl * divergence(mean, deviation)
        if self.perceptual is not None:
            total = total + self.settings.perceptual * self.perceptual(back[None, None], x[None, None])
        if self.settings.adversarial:
            total = total + adversarial_terms(self.critics[index], x, back, self.settings.adversarial)
        return total

    def _crop(self, volume: Float[Tensor, "i j k"], generator: torch.Generator) -> Float[Tensor, "a b d"]:
        edge = self.settings.crop
        if not edge:
            return volume
        starts = [_below(max(n - edge, 0) + 1, generator) for n in volume.shape]
        i, j, k = (slice(start, start + edge) for start in starts)
        return volume[i, j, k]


def divergence(mean: Float[Tensor, "*c"], deviation: Float[Tensor, "*c"]) -> Float[Tensor, ""]:
    """Kullback–Leibler divergence of a latent from a standard normal one, summed over the latent."""
    variance = deviation**2
    return 0.5 * (mean**2 + variance - variance.clamp_min(1e-30).log() - 1).sum()


def adversarial_terms(
    critic: nn.Module, x: Float[Tensor, "i j k"], back: Float[Tensor, "i j k"], weight: float
) -> Float[Tensor, ""]:
    """What the autoencoder pays for being found out (times ``weight``), and what the critic pays for being wrong.

    Neither term's gradient reaches the other's network.
    """
    still = {name: value.detach() for name, value in (*critic.named_parameters(), *critic.named_buffers())}
    found_out = torch.func.functional_call(critic, still, (back[None, None],))[-1]
    real, unreal = critic(x[None, None])[-1], critic(back.detach()[None, None])[-1]
    wrong = 0.5 * (((real - 1) ** 2).mean() + (unreal**2).mean())
    return weight * ((found_out - 1) ** 2).mean() + wrong


def perceptual_loss() -> nn.Module:
    """The perceptual term of the paper: SqueezeNet on a fifth of the slices along each axis.

    Raises
    ------
    ResourceUnavailableError
        Its weights, or the package that reads them, are not here.
    """
    from monai.losses.perceptual import PerceptualLoss

    try:
        return PerceptualLoss(spatial_dims=3, network_type="squeeze", is_fake_3d=True, fake_3d_ratio=0.2)
    except Exception as error:
        raise ResourceUnavailableError(
            f"The perceptual loss cannot be had ({type(error).__name__})",
            id="E-TRAIN-PERCEPTUAL",
            needed="the package lpips and SqueezeNet's weights in torch's cache",
            fix="leave the perceptual weight at 0",
        ) from error


def _discriminator(settings: VaeTrainingSettings) -> nn.Module:
    from monai.networks.nets.patchgan_discriminator import PatchDiscriminator

    return PatchDiscriminator(
        spatial_dims=3,
        channels=settings.discriminator_channels,
        in_channels=1,
        num_layers_d=settings.discriminator_layers,
        norm="INSTANCE",
    )


def _below(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator, device=generator.device))
