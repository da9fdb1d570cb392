"""GenTract, made to look at its subject: whole streamlines drawn by a flow that starts at an atlas and sees the field.

A. Sargood et al., "GenTract: generative global tractography", 2025, doi:10.48550/arXiv.2511.13183. Departures: `field_encoder`
(local conditioning), `source` (the flow starts at the atlas's streamlines), `streamline_network` (bundles are an input, every
line has a confidence), a few Euler steps instead of 10-50 of DDIM. The published model itself is `published_model`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tractode.fields import Image, ImageGrid, ShField, Streamlines
from tractode.generative import knots as knotted
from tractode.generative.field_encoder import Context
from tractode.generative.guidance import climbed
from tractode.generative.paths import path_of
from tractode.generative.source import Source, SourceSettings
from tractode.generative.space import ORDER, SPACE, normalised
from tractode.generative.streamline_network import NetworkSettings, StreamlineNetwork
from tractode.ops import spherical_harmonics as sh

_TILE = 512
_PILOT = 12
_USUAL_POWER, _MOST_RAISED = 1.0, 2.5
_LEAST_ALIKE = 0.25  # two real scans: 0.39 and 0.42, with a flipped gradient table 0.13 and 0.16


@dataclass(frozen=True)
class Sampling:
    """How lines are drawn.

    Parameters
    ----------
    n_steps
        Steps of the flow, one evaluation of the network each.
    min_confidence
        Lines with less are drawn again.
    contrast
        Classifier-free guidance (Ho & Salimans 2022, doi:10.48550/arXiv.2207.12598): the velocity leaves that of no subject
        behind by this share of their difference. 0 for none.
    climb_mm
        After the last step lines climb the field's amplitude along them by this much. 0 for none.
    noise
        How much of the disturbance that starts had in training they get: less draws lines nearer to the bundle's own,
        more of them alike.
    least_presence
        Bundles whose lines are less confident than this in a first small draw are not drawn.
    keeps_all
        Whether all lines drawn are given, for a caller who judges them by ``min_confidence``.
    """

    n_steps: int = 4
    min_confidence: float = 0.12
    contrast: float = 0.0
    climb_mm: float = 1.0
    noise: float = 0.3
    least_presence: float = 0.02
    keeps_all: bool = False
    most_rounds: int = 20


@dataclass(frozen=True, eq=False)
class Seen:
    """A subject, encoded once, and nobody (where guidance needs it)."""

    subject: Context
    nobody: Context | None


class GenTract:
    """A trained generator. The subject's field must be in the training space, on `grid` (see `space.training_grid`)."""

    label: ClassVar[str] = "gentract"
    citation: ClassVar[str] = "sargood2025"
    is_differentiable: ClassVar[bool] = False
    space: ClassVar[str] = SPACE
    order: ClassVar[int] = ORDER

    def __init__(
        self,
        network: StreamlineNetwork,
        source: Source,
        names: tuple[str, ...],
        is_simulated: tuple[bool, ...],
        path: str = "bridge",
        sampling: Sampling | None = None,
    ) -> None:
        self.network = network.eval()
        self.source, self.names, self.is_simulated = source, names, is_simulated
        self.path_name, self.path = path, path_of(path)
        self.sampling = sampling or Sampling()

    @classmethod
    def from_weights(
        cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], sampling: Sampling | None = None
    ) -> GenTract:
        """What `weights` gave: tensors by name, and their settings."""
        network = StreamlineNetwork(NetworkSettings.from_record(settings["network"]))
        inner = {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
        network.load_state_dict(inner)
        spread = SourceSettings(**{**settings["source"], "sd_mm": tuple(settings["source"]["sd_mm"])})
        source = Source(tensors["source.knots"].float(), tensors["source.bundle"].round().long(), spread)
        stored = Sampling(**settings.get("sampling", {}))
        names, simulated = tuple(settings["bundles"]), tuple(bool(flag) for flag in settings["is_simulated"])
        return cls(network, source, names, simulated, settings["path"], sampling or stored)

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and settings to store; `from_weights` is the inverse."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {"source.knots": self.source.knots, "source.bundle": self.source.bundle.float()}
        spread = dataclasses.asdict(self.source.settings)
        return tensors, {
            "path": self.path_name,
            "bundles": list(self.names),
            "is_simulated": list(self.is_simulated),
            "network": self.network.settings.record(),
            "source": {**spread, "sd_mm": list(spread["sd_mm"])},
            "sampling": dataclasses.asdict(self.sampling),
        }

    @classmethod
    def tiny(cls, seed: int = 0) -> GenTract:
        """A small untrained model of three bundles, for tests: its lines are those of its source, about."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = StreamlineNetwork(NetworkSettings(n_bundles=3, width=16, depth=1, heads=2, encoder=(4, 4, 8)))
        along = torch.linspace(-1, 1, knotted.N_KNOTS)
        lines = torch.stack(
            [torch.stack([30 * along, -20 + 0 * along, 20 + 15 * (1 - along**2)], -1) + shift for shift in range(30)]
        )
        bundle = torch.arange(30) % 3
        lines = lines + 10.0 * bundle[:, None, None] * torch.tensor([0.0, 1.0, 0.0])
        network.mean[0] = 0.3
        return cls(
            network,
            Source(lines, bundle, SourceSettings()),
            ("one", "two", "three"),
            (False,) * 3,
            sampling=Sampling(n_steps=2, min_confidence=0.0, least_presence=0.0),
        )

    @property
    def grid(self) -> ImageGrid:
        return self.network.grid

    def with_sampling(self, **changes: Any) -> GenTract:
        """The same model that draws otherwise."""
        sampling = dataclasses.replace(self.sampling, **changes)
        return GenTract(self.network, self.source, self.names, self.is_simulated, self.path_name, sampling)

    def to(self, device: torch.device | str) -> GenTract:
        self.network.to(device)
        source = Source(self.source.knots.to(device), self.source.bundle.to(device), self.source.settings)
        return GenTract(self.network, source, self.names, self.is_simulated, self.path_name, self.sampling)

    def parameters(self, grid: ImageGrid | None = None) -> dict[str, Any]:
        """Facts for the sidecar and the report."""
        told = {"Algorithm": "GenTract", "TrainingSpace": SPACE, "Path": self.path_name}
        return {
            **told,
            "Bundles": len(self.names),
            **{key.title().replace("_", ""): value for key, value in dataclasses.asdict(self.sampling).items()},
        }

    def context(self, field: ShField) -> Seen:
        """The subject, encoded once. The field's scale does not matter, its grid must be `grid`."""
        if field.grid.space != SPACE or field.grid.shape != self.grid.shape:
            raise ValueError(
                f"The field must be on the training grid {self.grid.shape} of {SPACE}; got {field.grid.shape} of {field.grid.space}."
            )
        known = ShField(self.grid, of_order(field.coeffs, ORDER).float().to(self._device) * self.visible, ORDER)
        coeffs = sharpened(normalised(known).coeffs, self.network.mean)
        with torch.no_grad():
            nobody = self.network.see_nobody() if self.sampling.contrast else None
            return Seen(self.network.see(coeffs, *self.source.examples()), nobody)

    def nobody(self) -> Seen:
        """No subject: what the model draws without looking."""
        with torch.no_grad():
            return Seen(self.network.see_nobody(), None)

    def sample(
        self, context: Seen, n: int, generator: torch.Generator, bundles: Sequence[str] | None = None
    ) -> Iterator[Streamlines]:
        """``n`` lines of 64 points in the training space (fewer where none are found), in batches.

        ``per_streamline`` has ``confidence`` and ``bundle`` (index into `names`), both (s, 1). The lines depend on the
        generator alone: they are drawn in tiles of one size, whatever asks for them.
        """
        weights = self._weights(context, generator, bundles)
        found, least = 0, 0.0 if self.sampling.keeps_all else self.sampling.min_confidence
        for _ in range(self.sampling.most_rounds * -(-n // _TILE)):
            if found >= n or not float(weights.sum()):
                return
            chosen = torch.multinomial(weights, _TILE, replacement=True, generator=generator)
            knots, confidence = self._tile(context, chosen, generator)
            good = (confidence >= least).nonzero().ravel()[: n - found]
            found += len(good)
            if len(good):
                yield self._lines(knots[good], confidence[good], chosen.to(good.device)[good])

    def draw(
        self,
        context: Seen,
        rows: Int[Tensor, " s"],
        generator: torch.Generator,
        ends: Float[Tensor, "s 2 3"] | None = None,
    ) -> tuple[Float[Tensor, "s k 3"], Float[Tensor, " s"]]:
        """Knots (mm) and confidence of lines that start at given rows of the source, in tiles.

        ``ends`` (mm) are where each line shall begin and end: its end knots go straight there, the others as the network says.
        """
        places = [None] * -(-len(rows) // _TILE) if ends is None else list(_padded(ends))
        parts = [
            self._moved(context, part, generator, place) for part, place in zip(_padded(rows), places, strict=True)
        ]
        knots, confidence = (torch.cat(both)[: len(rows)] for both in zip(*parts, strict=True))
        return knots, confidence

    def between(
        self, context: Seen, ends: Float[Tensor, "s 2 3"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "s k 3"], Float[Tensor, " s"]]:
        """A line for each pair of ends (mm), either way round, started at the source's line whose ends are nearest."""
        own = self.source.knots[:, [0, -1]]
        direct, turned = (torch.cdist(pairs.flatten(1), own.flatten(1)) for pairs in (ends, ends.flip(1)))
        is_turned = turned.amin(1) < direct.amin(1)
        rows = torch.where(is_turned, turned.argmin(1), direct.argmin(1))
        wanted = torch.where(is_turned[:, None, None], ends.flip(1), ends)
        knots, confidence = self.draw(context, rows, generator, wanted)
        return torch.where(is_turned[:, None, None], knots.flip(1), knots), confidence

    def presence(self, context: Seen, generator: torch.Generator) -> Float[Tensor, " b"]:
        """Mean confidence of a few lines of each bundle: how likely the subject has it, as far as the model sees."""
        return self._pilot(context, generator)[0]

    def _pilot(self, context: Seen, generator: torch.Generator) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Of a few lines of each bundle the mean confidence, and the share that would be accepted (never quite 0)."""
        n_bundles = len(self.names)
        has = self.source.counts(n_bundles).cpu() > 0
        bundles = has.nonzero().ravel().repeat_interleave(_PILOT)
        uniform = torch.rand(len(bundles), generator=generator)
        rows = self.source.rows(bundles.to(self._device), uniform.to(self._device))
        confidence = self.draw(context, rows, generator)[1].cpu()
        accepted = (confidence >= self.sampling.min_confidence).float()
        total, n_accepted = (torch.zeros(n_bundles).index_add_(0, bundles, value) for value in (confidence, accepted))
        return total / _PILOT, (n_accepted + 1) / (_PILOT + 1)

    def spread(
        self, context: Seen, generator: torch.Generator, n_lines: int = 12, n_repeats: int = 6
    ) -> Float[Tensor, " b"]:
        """How far repeated draws of the same lines lie apart, root mean square over knots in mm, for each bundle."""
        n_bundles = len(self.names)
        has = (self.source.counts(n_bundles).cpu() > 0).nonzero().ravel()
        bundles = has.repeat_interleave(n_lines)
        rows = self.source.rows(
            bundles.to(self._device), torch.rand(len(bundles), generator=generator).to(self._device)
        )
        knots, _ = self.draw(context, rows.repeat_interleave(n_repeats), generator)
        repeats = knots.reshape(len(has), n_lines, n_repeats, -1, 3)
        apart = (repeats - repeats.mean(2, keepdim=True)).square().sum(-1).mean((1, 2, 3)) * n_repeats / (n_repeats - 1)
        out = torch.full((n_bundles,), torch.nan)
        out[has] = apart.sqrt().cpu()
        return out

    def why_not(self, field: ShField, mask: Image) -> str | None:
        """Why this field cannot be generated from, in words for a user; ``None`` if it can. Both on the training grid."""
        return why_not(field, mask, self.network.mean)

    @property
    def visible(self) -> Bool[Tensor, "i j k"]:
        """Where training subjects showed anything: the template's white matter and a little around it."""
        return self.network.mean[0] != 0

    @property
    def _device(self) -> torch.device:
        return self.network.centre.device

    def _weights(self, context: Seen, generator: torch.Generator, bundles: Sequence[str] | None) -> Float[Tensor, " b"]:
        """How often each bundle is drawn: so that of those that the subject seems to have as many are accepted as in the atlas.

        Simulated courses and the atlas's bundles are two pictures of the same anatomy, so only the one that fits is drawn.
        """
        weights = self.source.weights(len(self.names)).cpu()
        presence, acceptance = self._pilot(context, generator)
        if bundles is not None:
            return weights * torch.tensor([name in bundles for name in self.names]) / acceptance
        simulated = torch.tensor(self.is_simulated)
        if simulated.any() and not simulated.all():
            is_simulated = bool(presence[simulated].mean() > presence[~simulated].mean())
            weights = weights * (simulated == is_simulated)
        return weights * (presence >= self.sampling.least_presence) / acceptance

    def _tile(self, context: Seen, bundles: Int[Tensor, " s"], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        uniform = torch.rand(len(bundles), generator=generator)
        rows = self.source.rows(bundles.to(self._device), uniform.to(self._device))
        return self._moved(context, rows, generator)

    @torch.no_grad()
    def _moved(
        self, context: Seen, rows: Int[Tensor, " s"], generator: torch.Generator, ends: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One tile of lines after the flow, and their confidence."""
        bundle = self.source.bundle[rows]
        is_bridge = self.path_name == "bridge"
        if is_bridge:
            draws = torch.randn(len(rows), len(self.source.settings.sd_mm), 3, generator=generator)
            start = self.network.to_state(self.source.start(rows, self.sampling.noise * draws.to(self._device)))
        else:
            start = torch.randn(len(rows), knotted.N_KNOTS, 3, generator=generator).to(self._device)

        def velocity(state: Tensor, time: Tensor) -> Tensor:
            own = self.network(context.subject, state, time, bundle)
            if self.sampling.contrast and context.nobody is not None:
                own = own + self.sampling.contrast * (own - self.network(context.nobody, state, time, bundle))
            return own if ends is None else _to_ends(own, start, self.network.to_state(ends))

        state = self.path.sample(velocity, start, self.sampling.n_steps)
        if ends is None:
            state = self._climbed(context, state)
        logit = self.network.confidence(context.subject, state, bundle)
        return self.network.to_knots(state), logit.sigmoid()

    def _climbed(self, context: Seen, state: Float[Tensor, "s k 3"]) -> Float[Tensor, "s k 3"]:
        if not self.sampling.climb_mm:
            return state
        knots = climbed(context.subject, self.grid, self.network.to_knots(state), ORDER, self.sampling.climb_mm)
        return self.network.to_state(knots)

    def _lines(self, knots: Tensor, confidence: Tensor, bundle: Tensor) -> Streamlines:
        points = knotted.points_of(knots)
        n, m = points.shape[:2]
        data = {"confidence": confidence[:, None].float(), "bundle": bundle[:, None]}
        return Streamlines(points.reshape(-1, 3), torch.arange(0, n * m + 1, m, device=points.device), SPACE, {}, data)


def _padded(rows: Shaped[Tensor, "s *p"]) -> Iterator[Shaped[Tensor, "t *p"]]:
    """Tiles of one size, the last filled up with its first row."""
    for part in rows.split(_TILE):
        yield torch.cat([part, part[:1].expand(_TILE - len(part), *part.shape[1:])])


def _to_ends(
    velocity: Float[Tensor, "s k 3"], start: Float[Tensor, "s k 3"], ends: Float[Tensor, "s 2 3"]
) -> Float[Tensor, "s k 3"]:
    """The velocity whose end knots arrive where they shall at t = 1; what they need more fades along the line."""
    k = velocity.shape[1]
    missing = ends - start[:, [0, -1]] - velocity[:, [0, -1]]
    fade = torch.linspace(1, 0, k).to(velocity)[:, None] ** 4
    return velocity + fade * missing[:, :1] + fade.flip(0) * missing[:, 1:]


def of_order(coeffs: Float[Tensor, "l i j k"], order: int) -> Float[Tensor, "m i j k"]:
    """Coefficients cut to an order, or filled up with zeros."""
    n = sh.n_coefficients(order)
    if len(coeffs) >= n:
        return coeffs[:n]
    return torch.cat([coeffs, coeffs.new_zeros(n - len(coeffs), *coeffs.shape[1:])])


def sharpened(coeffs: Float[Tensor, "l i j k"], mean: Float[Tensor, "m i j k"]) -> Float[Tensor, "l i j k"]:
    """The field with its degrees above 0 raised, where they are fainter than in training subjects, to what is usual there.

    Real fields are fainter than simulated ones (degree 2 over white matter: 0.50 and 0.56 in two scans, 0.74 to 1.24 in training
    subjects), because tissue between fibres, noise and motion add to degree 0; which way fibres run is what the model needs.
    """
    white = mean[0] > 0.5 * mean[0].max()
    power = coeffs[1:6, white].square().sum(0).mean().sqrt()
    factor = (_USUAL_POWER / power.clamp_min(1e-6)).clamp(1.0, _MOST_RAISED)
    return torch.cat([coeffs[:1], coeffs[1:] * factor])


def why_not(field: ShField, mask: Image, mean: Float[Tensor, "l i j k"]) -> str | None:
    """Whether a field looks like those that were trained on: order, field of view, anatomy, directions."""
    if not bool(torch.isfinite(field.coeffs).all()):
        return "the orientation field holds values that are not finite"
    if field.order < 4:
        return f"the orientation field has order {field.order}, and at least order 4 is needed to tell crossing fibres apart"
    mean = mean.to(field.coeffs)
    white = mean[0] > 0.5 * mean[0].max()
    covered = float((mask.mask & white).sum() / white.sum().clamp_min(1))
    if covered < 0.85:
        return f"the scan covers {covered:.0%} of the template's white matter, and the model was trained on whole brains (85 % are needed)"
    inside = white & mask.mask
    values = of_order(field.coeffs, 4)[1:15, inside]
    known = of_order(mean, 4)[1:15, inside]
    alike = float((values * known).sum() / (values.norm() * known.norm()).clamp_min(1e-12))
    if alike < _LEAST_ALIKE:
        return (
            f"the fibre directions agree too little with those of known brains (correlation {alike:.2f}, at least {_LEAST_ALIKE} is needed): "
            "the registration to the template or the gradient table may be wrong"
        )
    return None
