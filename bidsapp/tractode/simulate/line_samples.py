"""Single streamlines to learn from, drawn at random: a line of a named bundle as it may lie in anybody, or one of no bundle.

No paper. Each line is of a person of its own: its bundle is widened, shifted and bent as in `bundle_variation` (waves are
random Fourier features, Rahimi & Recht 2007), what registration leaves is a sum of longer waves in place of the flow, and the
line itself may lie between its neighbours, waver, be cut at its ends and be misaligned. Nothing is kept between draws, so a
draw depends on its generator only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.fields.line_shape import runs_back
from tractode.simulate.bundle_library import N_POINTS, BundleLibrary
from tractode.simulate.bundle_variation import VariationSettings

Range = tuple[float, float]


@dataclass(frozen=True)
class LineSampleSettings:
    """How lines are drawn. Lengths in mm, shares are fractions of 1.

    Parameters
    ----------
    variation
        How persons differ; of its settings ``lines``, ``width``, ``shift_mm``, ``bend_mm``, ``wavelengths_mm`` and
        ``residual_mm`` are followed.
    evenness
        0 draws every line of the atlas as often, 1 every bundle as often.
    mirrored
        Share of lines that are mirrored, with the name of the other side.
    mixed
        Share of lines that are moved towards (or a little away from) a neighbour in their bundle.
    misaligned
        Share of lines that lie as a poor registration would leave them: turned by normal angles of ``rotation_deg`` about each
        axis through the head's middle, moved by ``translation_mm``, scaled by ``scale`` along each axis (standard deviations).
    graded
        Misaligned lines are so by anything from nothing to these deviations, each by a share of its own.
    cut, cut_ends
        Share of lines that lose a share of their length, drawn for each end up to ``cut_ends``.
    waver_mm
        Largest standard deviation of a smooth wavering along the line.
    other
        Share of lines of no bundle; they are misaligned and waver as the rest.
    simulated
        Share of lines that are courses of the simulator; they are of no bundle either.
    """

    variation: VariationSettings = field(default_factory=VariationSettings)
    evenness: float = 0.5
    mirrored: float = 0.5
    mixed: float = 0.5
    misaligned: float = 0.5
    rotation_deg: float = 3.5
    translation_mm: float = 3.5
    scale: float = 0.04
    graded: bool = False
    cut: float = 0.5
    cut_ends: float = 0.25
    waver_mm: float = 1.0
    other: float = 0.2
    simulated: float = 0.1


_WAVES, _RESIDUAL_WAVES = 5, 3
_RESIDUAL_MM = (60.0, 160.0)  # wavelengths of what registration leaves
_HELPERS = 4  # neighbours a line may lie between
_WAVER_MODES = 8
_MIRROR = torch.tensor([-1.0, 1.0, 1.0])


class LineSamples:
    """Draws lines in RAS+ mm of the template; a label is the index of a bundle of ``names``, or ``len(names)``: no bundle.

    Parameters
    ----------
    false_lines
        Lines of no bundle to draw from; `false_lines` makes some.
    """

    def __init__(
        self,
        library: BundleLibrary,
        settings: LineSampleSettings | None = None,
        false_lines: Float[Tensor, "f 31 3"] | None = None,
    ) -> None:
        self.settings = settings or LineSampleSettings()
        self.names = tuple(
            name for name, no in zip(library.names, library.is_simulated.tolist(), strict=True) if not no
        )
        if any(library.is_simulated[: len(self.names)].tolist()):
            raise ValueError("The bundles of the atlas must come first in the library.")
        rows = _free(library, self.settings.variation.lines).nonzero().ravel()
        self._lines, self._bundle = library.lines[rows], library.bundle[rows]
        self._mirror = torch.cat([library.mirror[: len(self.names)], torch.tensor([len(self.names)])])
        self._near = _neighbours(self._lines, self._bundle)
        self._middle = _middles(self._lines, self._bundle, len(library.names))
        self._false = torch.zeros(0, N_POINTS, 3) if false_lines is None else false_lines
        is_course = library.is_simulated[self._bundle]
        self._atlas_chance = self._chance(~is_course)
        self._course_chance = self._chance(is_course)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n 31 3"], Int[Tensor, " n"]]:
        """``n`` lines at 31 equally spaced points, each running the one way of `fields.line_shape`, and their labels."""
        settings, none = self.settings, len(self.names)
        n_false = round(settings.other * n) if len(self._false) else 0
        n_courses = round(settings.simulated * n) if bool(self._course_chance.any()) else 0
        rows = torch.cat(
            [
                torch.multinomial(self._atlas_chance, n - n_false - n_courses, replacement=True, generator=generator),
                torch.multinomial(self._course_chance, n_courses, replacement=True, generator=generator)
                if n_courses
                else torch.zeros(0, dtype=torch.long),
            ]
        )
        label = self._bundle[rows].clamp(max=none)
        own = self._of_persons(rows, generator)
        false = self._false[torch.randint(max(len(self._false), 1), (n_false,), generator=generator)]
        label = torch.cat([label, label.new_full((n_false,), none)])
        return augmented(torch.cat([own, false]), label, self._mirror, settings, generator)

    def _of_persons(self, rows: Int[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, "n 31 3"]:
        """Lines of the library as they lie in as many persons, registered well."""
        settings, n = self.settings, len(rows)
        person, lines = settings.variation, self._lines[rows]
        helper = self._near[rows, torch.randint(_HELPERS, (n,), generator=generator)]
        share = (1.2 * torch.rand(n, generator=generator) - 0.3) * _chosen(n, settings.mixed, generator)
        lines = lines.lerp(self._lines[helper], share[:, None, None])
        centre = self._middle[self._bundle[rows]]
        width = torch.exp(person.width * torch.randn(n, 1, 1, generator=generator))
        shift = person.shift_mm * torch.randn(n, 1, 3, generator=generator)
        lines = centre + (lines - centre) * width + shift
        low, high = person.residual_mm
        left = (low + (high - low) * torch.rand(n, generator=generator)) / math.sqrt(3)
        bend = torch.full((n,), float(person.bend_mm))
        return lines + _waves(lines, bend, person.wavelengths_mm, left, generator)

    def _chance(self, is_one: Bool[Tensor, " r"]) -> Float[Tensor, " r"]:
        counts = torch.bincount(self._bundle[is_one], minlength=int(self._bundle.max()) + 1).float()
        return is_one * counts.clamp(min=1).pow(-self.settings.evenness)[self._bundle]


def augmented(
    lines: Float[Tensor, "n 31 3"], label: Int[Tensor, " n"], mirror: Int[Tensor, " b"], settings: LineSampleSettings,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n 31 3"], Int[Tensor, " n"]]:  # fmt: skip
    """Lines mirrored, misaligned, wavering and cut at random, with the label that they then bear."""
    n = len(lines)
    flip = _chosen(n, settings.mirrored, generator).bool()
    lines = torch.where(flip[:, None, None], lines * _MIRROR, lines)
    label = torch.where(flip, mirror[label], label)
    lines = misaligned(lines, settings, generator)
    lines = lines + _waver(n, settings.waver_mm, generator)
    cuts = settings.cut_ends * torch.rand(n, 2, generator=generator) * _chosen(n, settings.cut, generator)[:, None]
    return one_way(spaced(lines, cuts[:, 0], 1 - cuts[:, 1])), label


def misaligned(
    lines: Float[Tensor, "n 31 3"], settings: LineSampleSettings, generator: torch.Generator
) -> Float[Tensor, "n 31 3"]:
    """A share of the lines turned, scaled and moved, each by an affine map of its own."""
    n = len(lines)
    amount = _chosen(n, settings.misaligned, generator)[:, None]
    if settings.graded:
        amount = amount * torch.rand(n, 1, generator=generator)
    angle = math.radians(settings.rotation_deg) * torch.randn(n, 3, generator=generator) * amount
    x, y, z = angle.unbind(1)
    nothing = torch.zeros_like(x)
    skew = torch.stack([nothing, -z, y, z, nothing, -x, -y, x, nothing], 1).reshape(n, 3, 3)
    turn = torch.eye(3) + skew + 0.5 * skew @ skew  # of the exponential's series, to 0.1 % at 10 degrees
    scale = torch.exp(settings.scale * torch.randn(n, 3, generator=generator) * amount)
    shift = settings.translation_mm * torch.randn(n, 1, 3, generator=generator) * amount[:, None]
    return (lines - _MIDDLE) @ (turn * scale[:, None]).mT + _MIDDLE + shift


_MIDDLE = torch.tensor([0.0, -18.0, 10.0])  # of the template's brain


def spaced(
    lines: Float[Tensor, "n m 3"], first: Float[Tensor, " n"] | None = None, last: Float[Tensor, " n"] | None = None
) -> Float[Tensor, "n 31 3"]:
    """Lines at 31 points equally spaced by arc length between two shares of their length (0 and 1: their ends)."""
    n, m = lines.shape[:2]
    step = lines.diff(dim=1).norm(dim=-1)
    arc = torch.cat([step.new_zeros(n, 1), step.cumsum(1)], 1)
    start = torch.zeros(n) if first is None else first
    end = torch.ones(n) if last is None else last
    share = torch.linspace(0, 1, N_POINTS)
    wanted = (start[:, None] + (end - start)[:, None] * share) * arc[:, -1:]
    upper = torch.searchsorted(arc, wanted).clamp(1, m - 1)
    low = arc.gather(1, upper - 1)
    part = ((wanted - low) / (arc.gather(1, upper) - low).clamp_min(1e-6)).clamp(0, 1)
    before = lines.gather(1, (upper - 1)[..., None].expand(-1, -1, 3))
    return before.lerp(lines.gather(1, upper[..., None].expand(-1, -1, 3)), part[..., None])


def one_way(lines: Float[Tensor, "n 31 3"]) -> Float[Tensor, "n 31 3"]:
    """Every line turned to run the one way of `fields.line_shape`."""
    return torch.where(runs_back(lines)[:, None, None], lines.flip(1), lines)


def false_lines(
    library: BundleLibrary, n: int, generator: torch.Generator, lines: str = "training", least_mm: float = 10.0
) -> Float[Tensor, "f 31 3"]:
    """Lines that are of no bundle: joined halves, short pieces, displaced lines and random curves, a quarter of each.

    What lies within ``least_mm`` of a line of the atlas (mean over points at the same share of the length) is left out, so
    there are fewer than ``n``. ``lines`` says which lines are taken apart: those to learn from, or those held out.
    """
    parts = library.lines[(_free(library, lines) & ~library.is_simulated[library.bundle]).nonzero().ravel()]
    some = n // 4
    made = torch.cat(
        [
            _joined(parts, some, generator),
            _pieces(parts, some, generator),
            _displaced(parts, some, generator),
            _curves(some, generator),
        ]
    )
    made = made[(made.amax(1) - made.amin(1)).norm(dim=1) > _SHORTEST_MM]
    true = library.lines[~library.is_simulated[library.bundle]]
    far = distance_to(made, true) > least_mm
    return made[far & _in_head(made)]


_SHORTEST_MM = 15.0


def distance_to(lines: Float[Tensor, "n 31 3"], others: Float[Tensor, "m 31 3"]) -> Float[Tensor, " n"]:
    """Root mean square distance over the points to the nearest of others, whichever way a line runs, mm."""
    flat = others.flatten(1)
    found = [
        torch.minimum(torch.cdist(part.flatten(1), flat).amin(1), torch.cdist(part.flip(1).flatten(1), flat).amin(1))
        for part in lines.split(1024)
    ]
    return torch.cat(found) / N_POINTS**0.5 if found else lines.new_zeros(0)


def _joined(parts: Float[Tensor, "m 31 3"], n: int, generator: torch.Generator) -> Float[Tensor, "n 31 3"]:
    """The beginning of one line and the rest of another that passes near, over a smooth bridge."""
    first = parts[torch.randint(len(parts), (n,), generator=generator)]
    first = _either_way(first, generator)
    at = torch.randint(8, N_POINTS - 8, (n,), generator=generator)
    place = first[torch.arange(n), at]
    # Of forty lines the one that comes nearest to where the first is left.
    choice = torch.randint(len(parts), (n, 40), generator=generator)
    rest = _either_way(parts[choice].flatten(0, 1), generator).unflatten(0, (n, 40))
    gap = (rest[:, :, 4:-8] - place[:, None, None]).norm(dim=-1)
    nearest, where = gap.amin(2).min(1)
    second = rest[torch.arange(n), where]
    enter = gap[torch.arange(n), where].argmin(1) + 4
    # Both parts are drawn out to the full number of points before they are put one after the other.
    head = spaced(first, torch.zeros(n), at / (N_POINTS - 1))
    tail = spaced(second, enter / (N_POINTS - 1), torch.ones(n))
    whole = torch.cat([head, tail], 1)
    smooth = whole.clone()
    for _ in range(4):
        smooth[:, 1:-1] = 0.25 * smooth[:, :-2] + 0.5 * smooth[:, 1:-1] + 0.25 * smooth[:, 2:]
    return spaced(smooth)[nearest < 12.0]


def _pieces(parts: Float[Tensor, "m 31 3"], n: int, generator: torch.Generator) -> Float[Tensor, "n 31 3"]:
    """A tenth to two fifths of a line, from anywhere along it."""
    chosen = parts[torch.randint(len(parts), (n,), generator=generator)]
    share = 0.1 + 0.3 * torch.rand(n, generator=generator)
    start = (1 - share) * torch.rand(n, generator=generator)
    return spaced(chosen, start, start + share)


def _displaced(parts: Float[Tensor, "m 31 3"], n: int, generator: torch.Generator) -> Float[Tensor, "n 31 3"]:
    """Lines turned by any angle about their own middle and moved by about 15 mm."""
    chosen = parts[torch.randint(len(parts), (n,), generator=generator)]
    turn, _ = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator))
    # Half are turned only a little, so that the place alone tells them from a bundle's.
    slight = (torch.rand(n, generator=generator) < 0.5)[:, None, None]
    turn = torch.where(slight, torch.eye(3), turn)
    middle = chosen.mean(1, keepdim=True)
    return spaced((chosen - middle) @ turn.mT + middle + 15 * torch.randn(n, 1, 3, generator=generator))


def _curves(n: int, generator: torch.Generator) -> Float[Tensor, "n 31 3"]:
    """Random smooth curves of 20 to 180 mm."""
    at = torch.linspace(0, 1, N_POINTS)
    modes = torch.arange(1, 5)
    wave = torch.cos(math.pi * modes[:, None] * at)
    amount = torch.randn(n, 4, 3, generator=generator) / modes[:, None] ** 1.7
    curve = torch.einsum("nka,kp->npa", amount, wave)
    length = curve.diff(dim=1).norm(dim=-1).sum(1)
    wanted = 20 + 160 * torch.rand(n, generator=generator)
    place = torch.randn(n, 1, 3, generator=generator) * torch.tensor([28.0, 35.0, 28.0]) + _MIDDLE
    return spaced(curve * (wanted / length)[:, None, None] + place)


def _in_head(lines: Float[Tensor, "n 31 3"]) -> Bool[Tensor, " n"]:
    """Within an ellipsoid a little larger than the template's brain."""
    return (((lines - _MIDDLE) / torch.tensor([78.0, 95.0, 85.0])).norm(dim=-1) < 1).all(1)


def _either_way(lines: Float[Tensor, "n 31 3"], generator: torch.Generator) -> Float[Tensor, "n 31 3"]:
    return torch.where(_chosen(len(lines), 0.5, generator).bool()[:, None, None], lines.flip(1), lines)


def _free(library: BundleLibrary, lines: str) -> Bool[Tensor, " s"]:
    """As in `bundle_variation`: the simulator's own courses hold nothing out."""
    if lines == "all":
        return torch.ones_like(library.is_held_out)
    free = library.is_held_out if lines == "held-out" else ~library.is_held_out
    return free | library.is_simulated[library.bundle]


def _chosen(n: int, share: float, generator: torch.Generator) -> Float[Tensor, " n"]:
    """1 for a random share of things, else 0."""
    return (torch.rand(n, generator=generator) < share).float()


def _waves(
    lines: Float[Tensor, "n 31 3"], bend_mm: Float[Tensor, " n"], bend_waves: Range, left_mm: Float[Tensor, " n"],
    generator: torch.Generator,
) -> Float[Tensor, "n 31 3"]:  # fmt: skip
    """``u(x) = Σ σ √(2/w) a cos(k·x + φ)`` for each line, of the bundle's wavelengths and of the longer ones of registration."""
    n, w = len(lines), _WAVES + _RESIDUAL_WAVES
    direction = torch.nn.functional.normalize(torch.randn(n, w, 3, generator=generator), dim=-1)
    is_bend = torch.arange(w) < _WAVES
    low = torch.where(is_bend, bend_waves[0], _RESIDUAL_MM[0])
    high = torch.where(is_bend, bend_waves[1], _RESIDUAL_MM[1])
    wavelength = low + (high - low) * torch.rand(n, w, generator=generator)
    phase = 2 * math.pi * torch.rand(n, 1, w, generator=generator)
    sd = torch.where(
        is_bend, bend_mm[:, None] * math.sqrt(2 / _WAVES), left_mm[:, None] * math.sqrt(2 / _RESIDUAL_WAVES)
    )
    amplitude = torch.randn(n, w, 3, generator=generator) * sd[..., None]
    waves = direction * (2 * math.pi / wavelength)[..., None]
    return (lines @ waves.mT + phase).cos() @ amplitude


def _waver(n: int, largest_mm: float, generator: torch.Generator) -> Float[Tensor, "n 31 3"]:
    """Smooth noise along a line: a few cosines, the shorter the weaker."""
    modes = torch.arange(1, _WAVER_MODES + 1)
    basis = torch.cos(math.pi * modes[:, None] * torch.linspace(0, 1, N_POINTS)) / modes[:, None]
    amount = torch.randn(n, 3, _WAVER_MODES, generator=generator) * largest_mm
    return (amount * torch.rand(n, 1, 1, generator=generator) @ basis).mT


def _neighbours(lines: Float[Tensor, "r 31 3"], bundle: Int[Tensor, " r"]) -> Int[Tensor, "r k"]:
    """For each line the nearest others of its bundle (itself where there are none)."""
    near = torch.arange(len(lines))[:, None].expand(-1, _HELPERS).clone()
    for index in bundle.unique().tolist():
        rows = (bundle == index).nonzero().ravel()
        flat = lines[rows].flatten(1)
        order = torch.cdist(flat, flat).argsort(1)[:, 1 : 1 + _HELPERS]
        near[rows, : order.shape[1]] = rows[order]
    return near


def _middles(lines: Float[Tensor, "r 31 3"], bundle: Int[Tensor, " r"], n: int) -> Float[Tensor, "b 31 3"]:
    counts = torch.bincount(bundle, minlength=n).clamp(min=1)[:, None, None]
    return torch.zeros(n, *lines.shape[1:]).index_add_(0, bundle, lines) / counts
