"""The encoder and decoder that the five published codecs share, and the codec around them; they differ in their bottleneck only.

A. Lizarraga et al., "Differentiable VQ-VAE's for robust white matter streamline encodings" (github.com/drewrl3v/diff-vq-vae); the
networks are those of A. van den Oord et al., "Neural discrete representation learning", 2017, doi:10.48550/arXiv.1711.00937. What the paper
leaves out (widths, blocks, the rectified skip) was read from the settings that its authors released; no code was taken.
A group of 64 lines is one picture, so codes change with the order and the direction of lines. Departure: the trunk may be
computed by numbers of 16 bits (bfloat16) in training, its ends never.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from tractode.contracts import Codec, Codes
from tractode.errors import InputDataError
from tractode.fields import Streamlines
from tractode.generative.bundle_groups import N_LINES, grouped, lines_of, pictures, ungrouped
from tractode.generative.space import SPACE

_TILE = 16  # groups at a time: sums of a convolution may change with how many there are


@dataclass(frozen=True)
class ResNetSettings:
    """Sizes of the networks.

    Parameters
    ----------
    width, narrow
        Channels of the trunk, and inside its residual blocks.
    n_blocks
        Residual blocks of each network.
    channels
        Channels of the latent, a picture of 16 × 16 places.
    is_skip_rectified
        Whether a block adds to what is left of its input after the rectification, as the released model does.
    """

    width: int = 128
    narrow: int = 32
    n_blocks: int = 2
    channels: int = 64
    is_skip_rectified: bool = True


class Residual(nn.Module):
    """x + 1×1(relu(3×3(relu(x)))), without offsets."""

    def __init__(self, settings: ResNetSettings) -> None:
        super().__init__()
        self.across = nn.Conv2d(settings.width, settings.narrow, 3, padding=1, bias=False)
        self.along = nn.Conv2d(settings.narrow, settings.width, 1, bias=False)
        self.is_skip_rectified = settings.is_skip_rectified

    def forward(self, x: Shaped[Tensor, "g c i j"]) -> Shaped[Tensor, "g c i j"]:
        risen = functional.relu(x)
        change = self.along(functional.relu(self.across(risen)))
        return (risen if self.is_skip_rectified else x) + change


class Encoder(nn.Module):
    """A picture of 64 × 64 → a latent of 16 × 16."""

    def __init__(self, settings: ResNetSettings) -> None:
        super().__init__()
        half = settings.width // 2
        self.first = nn.Conv2d(3, half, 4, 2, 1)
        self.trunk = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(half, settings.width, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(settings.width, settings.width, 3, padding=1),
            *(Residual(settings) for _ in range(settings.n_blocks)),
            nn.ReLU(),
        )
        self.last = nn.Conv2d(settings.width, settings.channels, 1)

    def forward(self, images: Float[Tensor, "g 3 i j"], is_short: bool = False) -> Float[Tensor, "g c k l"]:
        return self.last(_run(self.trunk, self.first(images), is_short))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A latent of 16 × 16 → a picture of 64 × 64."""

    def __init__(self, settings: ResNetSettings) -> None:
        super().__init__()
        half = settings.width // 2
        self.first = nn.Conv2d(settings.channels, settings.width, 3, padding=1)
        self.trunk = nn.Sequential(
            *(Residual(settings) for _ in range(settings.n_blocks)),
            nn.ReLU(),
            nn.ConvTranspose2d(settings.width, half, 4, 2, 1),
            nn.ReLU(),
        )
        self.last = nn.ConvTranspose2d(half, 3, 4, 2, 1)

    def forward(self, latents: Float[Tensor, "g c k l"], is_short: bool = False) -> Float[Tensor, "g 3 i j"]:
        return self.last(_run(self.trunk, self.first(latents), is_short))  # type: ignore[no-any-return]


def _run(trunk: nn.Module, x: Float[Tensor, "g c i j"], is_short: bool) -> Float[Tensor, "g d k l"]:
    """The trunk, by short numbers where that was asked for."""
    if not is_short:
        return trunk(x)  # type: ignore[no-any-return]
    with torch.autocast(x.device.type, torch.bfloat16):
        return trunk(x.contiguous(memory_format=torch.channels_last)).float()  # type: ignore[no-any-return]


class Bottleneck(nn.Module, ABC):
    """What stands between encoder and decoder.

    ``share`` is how much of the training is over: what changes in its course (a temperature) is ruled by it.
    """

    is_discrete: bool
    is_deterministic: bool = True
    share: Tensor
    dtype: torch.dtype = torch.int32

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.zeros((), dtype=torch.float64))

    @property
    @abstractmethod
    def bits(self) -> float:
        """Of a group of 64 lines, as stored."""

    @abstractmethod
    def squeeze(
        self, latents: Float[Tensor, "g c i j"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "g c i j"], Float[Tensor, ""]]:
        """In training: what the decoder sees, differentiable, and what is added to the loss."""

    @abstractmethod
    def codes(self, latents: Float[Tensor, "g c i j"]) -> Shaped[Tensor, "g n"]:
        """What is stored of a group."""

    @abstractmethod
    def values(self, codes: Shaped[Tensor, "g n"]) -> Float[Tensor, "g *m"]:
        """The numbers that stored codes stand for."""

    def widen(self, values: Float[Tensor, "g *m"]) -> Float[Tensor, "g c i j"]:
        """What the decoder sees of those numbers: themselves."""
        return values

    def restore(self, codes: Shaped[Tensor, "g n"]) -> Float[Tensor, "g c i j"]:
        """What the decoder sees of stored codes."""
        return self.widen(self.values(codes))

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each of a group's codes may have; empty for continuous ones."""
        return ()


class GroupNetwork(nn.Module):
    """Encoder, bottleneck, decoder."""

    def __init__(self, settings: ResNetSettings, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.settings = settings
        self.encoder, self.decoder, self.bottleneck = Encoder(settings), Decoder(settings), bottleneck

    def forward(
        self, images: Float[Tensor, "g 3 i j"], generator: torch.Generator, is_short: bool = False
    ) -> tuple[Float[Tensor, "g 3 i j"], Float[Tensor, ""]]:
        """In training: the picture again, and what the bottleneck adds to the loss."""
        seen, added = self.bottleneck.squeeze(self.encoder(images, is_short), generator)
        return self.decoder(seen, is_short), added


class GroupCodec(Codec):
    """A codec of groups of 64 lines in random order. `network` is for training; `encode` and `decode` for use.

    Raises
    ------
    InputDataError
        E-CODEC-LINES: a line without points or with coordinates that are no numbers; E-CODEC-SPACE: lines of another space.
    """

    citation: ClassVar[str] = "lizarraga2023"
    is_reversal_invariant: ClassVar[bool] = False
    is_order_invariant: ClassVar[bool] = False
    space = SPACE

    def __init__(self, network: GroupNetwork, settings: Any) -> None:
        self.network, self.settings = network.eval(), settings

    @classmethod
    @abstractmethod
    def bottleneck_of(cls, settings: Any, channels: int) -> Bottleneck:
        """The untrained bottleneck."""

    @classmethod
    @abstractmethod
    def settings_of(cls, record: Mapping[str, Any]) -> Any:
        """The bottleneck's settings from plain data."""

    @classmethod
    def untrained(cls, resnet: ResNetSettings, settings: Any, seed: int = 0) -> GroupCodec:
        """A network to be fitted; the same seed gives the same one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(GroupNetwork(resnet, cls.bottleneck_of(settings, resnet.channels)), settings)

    @classmethod
    def tiny(cls, seed: int = 0) -> GroupCodec:
        return cls.untrained(ResNetSettings(width=8, narrow=4, n_blocks=1, channels=8), cls.settings_of({}), seed)

    @classmethod
    def from_weights(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> GroupCodec:
        made = cls.untrained(ResNetSettings(**settings["resnet"]), cls.settings_of(settings["bottleneck"]))
        made.network.load_state_dict(dict(tensors))
        return made

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and settings to store; `from_weights` is the inverse."""
        record = {
            "codec": self.label,
            "resnet": dataclasses.asdict(self.network.settings),
            "bottleneck": dataclasses.asdict(self.settings),
        }
        return dict(self.network.state_dict()), record

    def to(self, device: torch.device | str) -> GroupCodec:
        self.network.to(device)
        return self

    @property
    def is_discrete(self) -> bool:
        return self.network.bottleneck.is_discrete

    @property
    def is_deterministic(self) -> bool:
        return self.network.bottleneck.is_deterministic

    @property
    def bits_per_streamline(self) -> float:
        return self.network.bottleneck.bits / N_LINES

    @property
    def levels(self) -> tuple[int, ...]:
        """Of each of a group's codes; empty for continuous ones."""
        return self.network.bottleneck.levels

    @torch.no_grad()
    def encode(self, streamlines: Streamlines) -> Codes:
        """Codes of the lines, in the order given, 64 to a row. Shuffle them beforehand: models were trained on groups in random order."""
        if streamlines.space != self.space:
            raise InputDataError(
                f"Streamlines are in {streamlines.space}", id="E-CODEC-SPACE", needed=f"lines in {self.space}"
            )
        if bool((streamlines.n_points == 0).any()) or not bool(streamlines.points.isfinite().all()):
            raise InputDataError("A streamline has no points, or points that are no numbers", id="E-CODEC-LINES")
        if not len(streamlines):
            empty = torch.zeros(0, self.network.bottleneck.codes(self.latents(torch.zeros(1, 64, 64, 3))).shape[1])
            return Codes(empty.to(self.network.bottleneck.dtype), 0)
        latents = self.latents(grouped(streamlines))
        codes = torch.cat([self.network.bottleneck.codes(tile) for tile in latents.split(_TILE)])
        return Codes(codes, len(streamlines))

    @torch.no_grad()
    def decode(self, codes: Codes, n_points: int = 64) -> Streamlines:
        if not codes.n_streamlines:
            return Streamlines(torch.zeros(0, 3), torch.zeros(1, dtype=torch.long), self.space)
        latents = torch.cat([self.network.bottleneck.restore(tile) for tile in codes.values.split(_TILE)])
        return ungrouped(self.groups(latents).cpu(), codes.n_streamlines, n_points, self.space)

    def latents(self, groups: Float[Tensor, "g 64 64 3"]) -> Float[Tensor, "g c i j"]:
        """What the encoder makes of groups of lines (mm), before the bottleneck."""
        return torch.cat([self.network.encoder(pictures(tile.to(self._device))) for tile in groups.split(_TILE)])

    def groups(self, latents: Float[Tensor, "g c i j"]) -> Float[Tensor, "g 64 64 3"]:
        """Lines (mm) of latents behind the bottleneck."""
        return torch.cat([lines_of(self.network.decoder(tile)) for tile in latents.split(_TILE)])

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device
