"""GenTract as it was published: autoencoders, context encoder, transformer and a path from noise, put together.

A. Sargood et al., "GenTract: generative global tractography", arXiv:2511.13183 (2025), section 4, with the settings that
its authors released. Coefficients are z-scored and coordinates scaled to [−1, 1] with statistics of the training set.
``RECIPES["paper"]`` is its size; ``RECIPES["small"]`` is the same on two cores: 6 coefficients, voxels of 3 mm, 16 points, no
dropout (with it, attention on a processor has to keep every weight and takes longer).

Departures: those of the parts (`coefficient_vae`, `latent_encoder`, `transformer`, `diffusion`, `flow_matching`), and guidance:
``prediction(nobody) + guidance · (prediction(subject) − prediction(nobody))``, where 1 is none and 0 draws without a subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tractode.errors import ShapeError
from tractode.fields import ImageGrid, ShField
from tractode.generative.coefficient_vae import CoefficientVaes, VaeSettings
from tractode.generative.diffusion import Diffusion
from tractode.generative.flow_matching import FlowMatching
from tractode.generative.latent_encoder import LatentEncoder, LatentEncoderSettings
from tractode.generative.space import SPACING_MM, training_grid
from tractode.generative.transformer import Memory, StreamlineTransformer, TransformerSettings
from tractode.ops import interpolate

Path = Diffusion | FlowMatching
_TILE = 64


@dataclass(frozen=True)
class PaperSettings:
    """The published model's sizes.

    Parameters
    ----------
    n_coefficients
        Spherical-harmonic coefficients that are looked at, from the first.
    spacing_mm
        Voxels on which they are looked at, mm.
    n_points
        Points of a streamline.
    paradigm
        What the network predicts: the noise of a diffusion, or the velocity of a flow.
    flow_times
        Of flow matching: ``edm``, as published: training times near the data, midpoint steps on the graded grid; ``uniform``:
        even times, Euler steps on an even grid.
    box_low, box_high
        RAS mm that become −1 and 1.
    """

    n_coefficients: int = 28
    spacing_mm: float = 1.875
    n_points: int = 128
    paradigm: Literal["diffusion", "flow_matching"] = "diffusion"
    flow_times: Literal["edm", "uniform"] = "edm"
    box_low: tuple[float, float, float] = (-100.76, -115.52, -99.00)
    box_high: tuple[float, float, float] = (98.51, 85.17, 100.57)
    vae: VaeSettings = field(default_factory=VaeSettings)
    encoder: LatentEncoderSettings = field(default_factory=LatentEncoderSettings)
    transformer: TransformerSettings = field(default_factory=TransformerSettings)

    @property
    def grid(self) -> ImageGrid:
        """Where a subject's field is looked at, in the training space."""
        grid = training_grid()
        return grid if self.spacing_mm == SPACING_MM else grid.resampled(self.spacing_mm)

    @property
    def path(self) -> Path:
        """How data and noise are joined."""
        if self.paradigm == "diffusion":
            return Diffusion()
        if self.flow_times == "uniform":
            return FlowMatching()
        return FlowMatching(times="edm", grid="edm", method="midpoint")

    def record(self) -> dict[str, Any]:
        """As plain data, for a settings file."""
        plain = {**asdict(self), "box_low": list(self.box_low), "box_high": list(self.box_high)}
        return {**plain, "vae": self.vae.record()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> PaperSettings:
        parts = {
            "vae": VaeSettings.from_record(record["vae"]),
            "encoder": LatentEncoderSettings(**record["encoder"]),
            "transformer": TransformerSettings(**record["transformer"]),
            "box_low": tuple(record["box_low"]),
            "box_high": tuple(record["box_high"]),
        }
        return cls(**{**record, **parts})


RECIPES: Mapping[str, PaperSettings] = {
    "paper": PaperSettings(),
    "small": PaperSettings(
        n_coefficients=6,
        spacing_mm=SPACING_MM,
        n_points=16,
        vae=VaeSettings(channels=(4, 8, 16), n_blocks=1, groups=4),
        encoder=LatentEncoderSettings(channels=16, embedding=32),
        transformer=TransformerSettings(layers=4, width=64, heads=4, feedforward=256, dropout=0.0),
    ),
}


class Denoiser(nn.Module):
    """What is fitted after the autoencoders: context encoder and transformer."""

    def __init__(self, settings: PaperSettings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = LatentEncoder(settings.n_coefficients, settings.vae.latent_channels, settings.encoder)
        self.transformer = StreamlineTransformer(self.encoder.n_features, settings.transformer)

    def memory(self, latents: Float[Tensor, "n c a b d"]) -> Memory:
        """What every streamline looks at, once a subject."""
        shape = [(n + 1) // 2 for n in latents.shape[2:]]
        axes = [torch.linspace(-1, 1, n, dtype=latents.dtype, device=latents.device) for n in shape]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        return self.transformer.memory(self.encoder(latents), places)

    def forward(
        self,
        x: Float[Tensor, "s p 3"],
        time: Float[Tensor, " s"],
        memory: Memory,
        is_blind: Bool[Tensor, " s"] | None = None,
    ) -> Float[Tensor, "s p 3"]:
        return self.transformer(x, time, memory, is_blind)


class PaperModel(nn.Module):
    """Orientation field in, whole streamlines out, both in the training space."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: PaperSettings) -> None:
        super().__init__()
        self.settings = settings
        self.vaes = CoefficientVaes(settings.n_coefficients, settings.vae)
        self.denoiser = Denoiser(settings)
        self.register_buffer("mean", torch.zeros(settings.n_coefficients))
        self.register_buffer("deviation", torch.ones(settings.n_coefficients))

    @classmethod
    def from_weights(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> PaperModel:
        """The model of stored weights, ready to draw."""
        model = cls(PaperSettings.from_record(settings))
        model.load_state_dict(dict(tensors))
        return model.requires_grad_(False).eval()

    def with_box(self, low: Float[Tensor, "3"], high: Float[Tensor, "3"]) -> PaperModel:
        """The same weights for coordinates scaled with another box (RAS mm)."""
        a, b, c = low.tolist()
        d, e, f = high.tolist()
        self.settings = replace(self.settings, box_low=(a, b, c), box_high=(d, e, f))
        self.denoiser.settings = self.settings
        return self

    def volumes(self, field: ShField) -> Float[Tensor, "n i j k"]:
        """The z-scored coefficients on the model's grid.

        Raises
        ------
        ShapeError
            The field has fewer coefficients than the model looks at.
        """
        n, grid = self.settings.n_coefficients, self.settings.grid
        if len(field.coeffs) < n:
            raise ShapeError(
                f"This model looks at {n} coefficients; a field of order {field.order} has {len(field.coeffs)}."
            )
        values = field.coeffs[:n].to(self.mean)
        if not field.grid.matches(grid):
            points_vox = field.grid.to_voxel(grid.centres(device=values.device).double())
            values = _resampled(values, points_vox.to(values))
        each = (slice(None), None, None, None)
        return (values - self.mean[each]) / self.deviation[each]

    @torch.no_grad()
    def latents(self, field: ShField) -> Float[Tensor, "n c a b d"]:
        """What the autoencoders keep of a field."""
        return self.vaes.latents(self.volumes(field))

    @torch.no_grad()
    def context(self, field: ShField) -> Memory:
        """Once a subject."""
        return self.denoiser.memory(self.latents(field))

    @torch.no_grad()
    def sample(
        self, context: Memory, n: int, generator: torch.Generator, n_steps: int = 10, guidance: float = 1.0
    ) -> Float[Tensor, "s p 3"]:
        """``n`` streamlines of a subject, RAS mm. The same generator draws the same, for the first lines of a longer row too."""
        self.denoiser.eval()
        drawn = []
        for start in range(0, n, _TILE):
            # Tiles of one size, also for the last few lines: the order of sums in matrix products depends on it.
            shape = (_TILE, self.settings.n_points, 3)
            noise = torch.randn(shape, generator=generator, device=generator.device).to(self.mean)
            points = self.settings.path.sample(
                lambda x, time: self._prediction(x, time, context, guidance), noise, n_steps
            )
            drawn.append(self.to_mm(points[: n - start]))
        return torch.cat(drawn) if drawn else self.mean.new_zeros(0, self.settings.n_points, 3)

    def _prediction(
        self, x: Float[Tensor, "s p 3"], time: Float[Tensor, " s"], context: Memory, guidance: float
    ) -> Float[Tensor, "s p 3"]:
        if guidance == 1:
            return self.denoiser(x, time, context)
        blind = self.denoiser(x, time, context, torch.ones(len(x), dtype=torch.bool, device=x.device))
        return blind if guidance == 0 else blind + guidance * (self.denoiser(x, time, context) - blind)

    def to_unit(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """RAS mm → the box's [−1, 1]."""
        low, high = self._box(points)
        return 2 * (points - low) / (high - low) - 1

    def to_mm(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """[−1, 1] → RAS mm."""
        low, high = self._box(points)
        return low + (points + 1) * (high - low) / 2

    def _box(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.settings.box_low), like.new_tensor(self.settings.box_high)


def _resampled(values: Float[Tensor, "n i j k"], points_vox: Float[Tensor, "a b d 3"]) -> Float[Tensor, "n a b d"]:
    return interpolate.sample(values, points_vox).permute(3, 0, 1, 2)
