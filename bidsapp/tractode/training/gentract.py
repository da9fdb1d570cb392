"""Fitting the generator of streamlines: at every step one synthetic subject, a thousand of its streamlines, one time each.

The losses are those of the path (flow matching, Lipman et al. 2022, doi:10.48550/arXiv.2210.02747, from a source that is
coupled with the data or from noise; or diffusion, Ho et al. 2020, doi:10.48550/arXiv.2006.11239) and, for the confidence, the
cross-entropy of whether lines that the model itself drew are near one of the subject's. Sargood et al. 2025,
doi:10.48550/arXiv.2511.13183, draw no confidence and show the field always; here it is withheld at times, so that what the
model owes to the subject can be measured and amplified.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tractode.generative import knots as knotted
from tractode.generative.field_encoder import Context
from tractode.generative.paths import path_of
from tractode.generative.source import Source, SourceSettings
from tractode.generative.space import SPACING_MM, mirrored
from tractode.generative.streamline_network import NetworkSettings, StreamlineNetwork
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.tract_subject import TractSubject

PathName = Literal["bridge", "flow", "diffusion"]


@runtime_checkable
class Subjects(Protocol):
    """Subjects by number, made or read when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> TractSubject: ...


@dataclass(frozen=True)
class GenTractSettings:
    """How a step's batch is drawn.

    Parameters
    ----------
    path
        ``bridge``: the flow starts at the atlas's line. ``flow`` and ``diffusion`` start at noise.
    n_lines, n_judged
        Lines of the flow's loss, and lines drawn with ``judged_steps`` evaluations for the confidence's.
    valid_mm
        A drawn line is valid if a line of the same bundle is this near (root mean square over the knots).
    withheld
        Share of the steps in which the subject is not shown.
    shifted
        Share of the steps in which the subject is moved by up to one voxel along each axis.
    """

    path: PathName = "bridge"
    n_lines: int = 1024
    n_judged: int = 192
    judged_steps: int = 4
    judged_weight: float = 0.2
    valid_mm: float = 4.0
    withheld: float = 0.08
    shifted: float = 0.3
    source: SourceSettings = field(default_factory=SourceSettings)


class LocalProblem:
    """The network of local conditioning, and the subjects it learns from."""

    def __init__(
        self,
        subjects: Subjects,
        library: BundleLibrary,
        network: NetworkSettings | None = None,
        settings: GenTractSettings | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        n_mean: int = 40,
    ) -> None:
        self.subjects, self.library = subjects, library
        self.settings = settings or GenTractSettings()
        self.device = torch.device(device)
        self.source = source_of(library, self.settings.source)
        self._rows = (~library.is_held_out).nonzero().ravel()
        given = network or NetworkSettings(gain=0.125 if self.settings.path == "bridge" else 1.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = StreamlineNetwork(NetworkSettings(**{**asdict(given), "n_bundles": len(library.names)}))
        self.module.mean.copy_(mean_field(subjects, n_mean)[: len(self.module.mean)])
        self.module.to(self.device)

    def record(self) -> dict[str, Any]:
        settings = asdict(self.settings)
        settings["source"]["sd_mm"] = list(self.settings.source.sd_mm)
        return {
            "network": self.module.settings.record(),
            "batch": settings,
            "bundles": list(self.library.names),
            "n_subjects": len(self.subjects),
        }

    def loss(self, generator: torch.Generator) -> Float[Tensor, ""]:
        settings = self.settings
        seen = self._subject(generator)
        hidden = bool(torch.rand((), generator=generator) < settings.withheld)
        context = self.module.see_nobody() if hidden else self.module.see(seen.field, *seen.examples)
        moving = self._moving_loss(context, seen, generator)
        if not settings.n_judged:
            return moving
        return moving + settings.judged_weight * self._judged_loss(context, seen, generator)

    def _moving_loss(self, context: Context, seen: _Seen, generator: torch.Generator) -> Float[Tensor, ""]:
        chosen = _chosen(seen.kept_bundle, self.settings.n_lines, self.settings.source.evenness, generator)
        rows = seen.kept[chosen.to(self.device)]
        start = self._start(seen, rows, generator)
        ends = self.module.to_state(seen.lines[rows])
        path = path_of(self.settings.path)
        state, time, target = path.training_pair(ends, start, generator)
        found = self.module(context, state, time, seen.bundle[rows])
        return ((found - target) / self.module.settings.gain).square().mean()

    def _judged_loss(self, context: Context, seen: _Seen, generator: torch.Generator) -> Float[Tensor, ""]:
        rows = self._to_judge(seen, generator)
        with torch.no_grad():
            start = self._start(seen, rows, generator)
            ends = path_of(self.settings.path).sample(
                lambda state, time: self.module(context, state, time, seen.bundle[rows]),
                start,
                self.settings.judged_steps,
            )
            is_valid = self._is_valid(seen, rows, self.module.to_knots(ends))
        logit = self.module.confidence(context, ends, seen.bundle[rows])
        return functional.binary_cross_entropy_with_logits(logit, is_valid.float())

    def _start(self, seen: _Seen, rows: Int[Tensor, " n"], generator: torch.Generator) -> Tensor:
        """States at time 0."""
        if self.settings.path != "bridge":
            shape = (len(rows), knotted.N_KNOTS, 3)
            return torch.randn(shape, generator=generator).to(self.device)
        n_modes = len(self.settings.source.sd_mm)
        draws = torch.randn(len(rows), n_modes, 3, generator=generator).to(self.device)
        noise = knotted.smooth_noise(draws, self.settings.source.sd_mm)
        return self.module.to_state(seen.atlas[rows] + noise)

    def _to_judge(self, seen: _Seen, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Lines as a user draws them: of the families that the subject has, some of any bundle."""
        n = self.settings.n_judged
        family = self.library.is_simulated
        has = torch.stack([(seen.present & ~family).any(), (seen.present & family).any()])
        own = has[family.long()[seen.bundle.cpu()]].nonzero().ravel()
        first = own[_chosen(seen.bundle.cpu()[own], n - n // 5, self.settings.source.evenness, generator)]
        rest = _chosen(seen.bundle.cpu(), n // 5, self.settings.source.evenness, generator)
        return torch.cat([first, rest]).to(self.device)

    def _is_valid(self, seen: _Seen, rows: Int[Tensor, " n"], knots: Float[Tensor, "n k 3"]) -> Tensor:
        distance = torch.cdist(knots.flatten(1), seen.lines.flatten(1)) / knots.shape[1] ** 0.5
        same = seen.bundle[rows][:, None] == seen.bundle
        near = torch.where(same, distance, torch.full_like(distance, torch.inf)).amin(1) < self.settings.valid_mm
        return near & seen.present.to(self.device)[seen.bundle[rows]]

    def _subject(self, generator: torch.Generator) -> _Seen:
        """A random subject, mirrored half of the time, at times shifted."""
        number = int(torch.randint(len(self.subjects), (), generator=generator))
        subject = self.subjects[number]
        coeffs, lines = subject.coeffs.float(), knotted.knots_of(subject.lines[self._rows].float())
        atlas, bundle, present = self.source.knots, self.source.bundle, subject.present
        examples = self.source.examples()
        if torch.rand((), generator=generator) < 0.5:
            coeffs = mirrored(coeffs)
            lines, atlas = lines * _MIRROR, atlas * _MIRROR
            bundle = self.library.mirror[bundle]
            examples = examples[0] * _MIRROR, self.library.mirror[examples[1]]
            present = present[self.library.mirror]
        if torch.rand((), generator=generator) < self.settings.shifted:
            shift = torch.randint(-1, 2, (3,), generator=generator)
            coeffs = coeffs.roll(tuple(shift.tolist()), (1, 2, 3))
            lines = lines + SPACING_MM * shift
        kept = subject.kept[self._rows].nonzero().ravel()
        device = self.device
        return _Seen(
            coeffs.to(device),
            lines.to(device),
            atlas.to(device),
            bundle.to(device),
            present,
            kept.to(device),
            bundle[kept],
            (examples[0].to(device), examples[1].to(device)),
        )


@dataclass(frozen=True, eq=False)
class _Seen:
    """One subject in one step; rows are those of the source."""

    field: Float[Tensor, "l _ _ _"]
    lines: Float[Tensor, "s k 3"]
    atlas: Float[Tensor, "s k 3"]
    bundle: Int[Tensor, " s"]
    present: Tensor
    kept: Int[Tensor, " m"]
    kept_bundle: Int[Tensor, " m"]
    examples: tuple[Tensor, Tensor]


_MIRROR = torch.tensor([-1.0, 1.0, 1.0])


def mean_field(subjects: Subjects, n: int) -> Float[Tensor, "l i j k"]:
    """Mean field of the first subjects and of their mirror images."""
    n = min(n, len(subjects))
    total = sum((subjects[number].coeffs.float() for number in range(n)), torch.tensor(0.0)) / n
    return (total + mirrored(total)) / 2


def source_of(library: BundleLibrary, settings: SourceSettings | None = None) -> Source:
    """The library's lines that are not held out, as the flow's start."""
    rows = (~library.is_held_out).nonzero().ravel()
    return Source(
        knotted.knots_of(library.lines[rows]).contiguous(), library.bundle[rows], settings or SourceSettings()
    )


def _chosen(bundle: Int[Tensor, " s"], n: int, evenness: float, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Indices of ``n`` lines, drawn with replacement: bundles by their count to the power ``1 − evenness``."""
    counts = torch.bincount(bundle).double()
    weight = counts.clamp_min(1) ** -evenness
    return torch.multinomial(weight[bundle].float(), n, replacement=True, generator=generator)
