"""The error of everything that is read from a model: standard deviations, cones of axes, intervals that hold the truth.

Two ways for every signal model: Laplace's approximation (`tractode.models.laplace`), one fit and some derivatives, and
the bootstrap (`tractode.models.bootstrap`), many fits. Intervals are the bootstrap's basic ones, Davison & Hinkley,
*Bootstrap methods and their application*, 1997, section 5.2, doi:10.1017/CBO9780511802843: what the repetitions are off
from the signal they were made of, turned round. That signal is taken without its noise floor, so that the bias of
magnitudes, and any other that the repetitions show, is part of the interval. Departures: the quantiles are those of a
normal distribution with the repetitions' mean and standard deviation (a few dozen do not show a tail), wider by Student's
factor where sigma rests on few volumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from tractode.contracts import SignalModel
from tractode.fields import GradientTable
from tractode.models import noise as noise_level
from tractode.models.bootstrap import Kind, draws, repetitions
from tractode.models.laplace import is_there, linearised
from tractode.models.noise import Noise, explained, noise_of, without_floor
from tractode.models.readouts import read, specs
from tractode.ops import cone

__all__ = ["Errors", "errors", "intervals", "specs", "standard_deviations", "why_not"]

Method = Literal["laplace", "bootstrap"]

TILE = 2048  # voxels at a time
CONE = 0.9  # the share that the cones hold
_LARGEST_NORM = 1.5  # FA² is 3/2 of the deviatoric share
_FURTHER = 5  # steps towards the amplitude: what they change is not known well, and part of the error


@dataclass(frozen=True, eq=False)
class Errors:
    """Of each readout of some voxels: its value and standard deviation; of each axis the half-angle of its cone (rad).

    ``centres`` and ``spreads`` are those of the values without the noise's bias (for ``norms`` of their odds); ``freedom``
    is the number of degrees of freedom that the spreads rest on.
    """

    values: dict[str, Float[Tensor, "v _"]]
    deviations: dict[str, Float[Tensor, "v _"]]
    axes: dict[str, Float[Tensor, "v 3"]]
    cones: dict[str, Float[Tensor, "v 1"]]
    centres: dict[str, Float[Tensor, "v _"]]
    spreads: dict[str, Float[Tensor, "v _"]]
    freedom: Float[Tensor, "v 1"]
    norms: frozenset[str] = frozenset()

    def intervals(self, level: float) -> dict[str, tuple[Float[Tensor, "v _"], Float[Tensor, "v _"]]]:
        """Ends of the intervals that hold the true scalars with this probability; of cones from 0 to the half-angle."""
        half = torch.from_numpy(stats.t.ppf((1 + level) / 2, self.freedom.clamp(min=1).cpu().numpy())).to(self.freedom)
        found = {}
        for name, centre in self.centres.items():
            ends = centre - half * self.spreads[name], centre + half * self.spreads[name]
            found[name] = (_norm(ends[0]), _norm(ends[1])) if name in self.norms else ends
        return found | {name: (torch.zeros_like(angle), angle) for name, angle in self.cones.items()}


def _odds(norm: Float[Tensor, "*v"]) -> Float[Tensor, "*v"]:
    """``x² / (1.5 − x²)``: of an anisotropy, the squared deviatoric over the squared isotropic part; noise adds to the first.

    Beyond 1, where a norm is no share of anything, twice its square.
    """
    square = norm.square()
    return torch.where(square > 1, 2 * square, square / (_LARGEST_NORM - square.clamp(max=1)))


def _norm(odds: Float[Tensor, "*v"]) -> Float[Tensor, "*v"]:
    odds = odds.clamp(min=0)
    return torch.where(odds > 2, odds / 2, _LARGEST_NORM * odds / (1 + odds)).sqrt()


def standard_deviations(
    model: SignalModel,
    signal: Float[Tensor, "v n"],
    gtab: GradientTable,
    method: Method = "laplace",
    n: int = 50,
    generator: torch.Generator | None = None,
    *,
    has_floor: bool = True,
    sigma: Float[Tensor, "v 1"] | None = None,
    kind: Kind = "residual",
) -> dict[str, Float[Tensor, "v _"]]:
    """Standard deviation of each scalar map, in its units, and half-angle (rad) of the cone that holds 90 % of each axis.

    Keys are those of `specs`. ``n`` is the number of repetitions of the bootstrap; without a ``generator`` they are always
    the same. ``has_floor`` is False where the signals are not magnitudes of complex noise; ``sigma`` is the noise level of a
    channel where it is known better than from each voxel alone. dtype follows the signal.
    Raises `InputDataError` where `why_not` gives a reason.
    """
    found = errors(
        model, signal, gtab, method, n, generator, has_floor=has_floor, sigma=sigma, kind=kind, corrects=False
    )
    return found.deviations | found.cones


def intervals(
    model: SignalModel,
    signal: Float[Tensor, "v n"],
    gtab: GradientTable,
    method: Method = "bootstrap",
    level: float = 0.9,
    n: int = 50,
    generator: torch.Generator | None = None,
    *,
    has_floor: bool = True,
    sigma: Float[Tensor, "v 1"] | None = None,
    kind: Kind = "residual",
) -> dict[str, tuple[Float[Tensor, "v _"], Float[Tensor, "v _"]]]:
    """Ends of the interval that holds the true value of each scalar map with probability ``level``; of axes 0 and the cone."""
    found = errors(model, signal, gtab, method, n, generator, has_floor=has_floor, sigma=sigma, kind=kind, level=level)
    return found.intervals(level)


def why_not(kind: type[SignalModel] | SignalModel, gtab: GradientTable) -> str | None:
    """Why the error of this model cannot be told from this table, in words for a user; ``None`` if it can."""
    model = kind() if isinstance(kind, type) else kind
    return model.why_not(gtab) or noise_level.why_not(model, gtab)


def errors(
    model: SignalModel,
    signal: Float[Tensor, "v n"],
    gtab: GradientTable,
    method: Method = "laplace",
    n: int = 50,
    generator: torch.Generator | None = None,
    *,
    level: float = CONE,
    has_floor: bool = True,
    sigma: Float[Tensor, "v 1"] | None = None,
    kind: Kind = "residual",
    corrects: bool = True,
) -> Errors:
    """Everything that can be said of the errors; without ``corrects`` there are no centres and spreads, for half the work."""
    rows, table = explained(model, signal, gtab)
    numbers = draws(len(table), n, generator) if method == "bootstrap" else None
    parts = []
    tiles = rows.split(TILE) if len(rows) else (rows,)
    levels = sigma.split(TILE) if sigma is not None and len(rows) else [sigma] * len(tiles)
    for tile, known in zip(tiles, levels, strict=True):
        with torch.no_grad():
            params = model.fit(tile, table)
            noise = noise_of(model, tile, table, params, has_floor, known)
            if numbers is not None:
                signals = repetitions(noise, numbers, kind)
                parts.append(_by_samples(model, params, noise, table, signals, level, corrects))
        if numbers is None:
            parts.append(_by_laplace(model, tile, noise, table, level, corrects))
    return _joined(parts, signal.dtype)


def _by_laplace(
    model: SignalModel,
    signal: Float[Tensor, "v n"],
    noise: Noise,
    gtab: GradientTable,
    level: float,
    corrects: bool,
) -> Errors:
    """The bias is what the noise floor does to the fit's own signal."""
    found = linearised(model, signal, gtab, noise, lambda s: model.fit(s, gtab), level)
    freed, spreads = found, found.deviations
    if corrects and noise.has_floor:

        def estimate(signals: Float[Tensor, "v n"]) -> Float[Tensor, "v p"]:
            params = model.fit(signals, gtab)
            return without_floor(model, params, gtab, noise_of(model, signals, gtab, params, sigma=noise.known(1)))

        freed = linearised(model, signal, gtab, noise, estimate, level)
        with torch.no_grad():
            further = read(model, without_floor(model, model.fit(signal, gtab), gtab, noise, _FURTHER)).scalars
        spreads = {name: torch.hypot(freed.values[name] - further[name], sd) for name, sd in freed.deviations.items()}
    return Errors(found.values, found.deviations, found.axes, found.cones, freed.values, spreads, noise.freedom)


def _by_samples(
    model: SignalModel,
    params: Float[Tensor, "v p"],
    noise: Noise,
    gtab: GradientTable,
    repeated: Iterator[Float[Tensor, "k v n"]],
    level: float,
    corrects: bool,
) -> Errors:
    """Moments of the scalars, as they are and without floor, and all angles of the axes."""
    at = read(model, params)
    expected = model.fit(noise.magnitude, gtab)
    # Repetitions scatter about the fit of the expected magnitudes, which the noise of the measured ones has moved once.
    centre = read(model, expected, at.axes).axes
    norms = frozenset(spec.param for spec in model.maps if spec.is_norm)
    plain, freed = Moments(), Moments(norms)
    turned: dict[str, list[Tensor]] = {name: [] for name in at.axes}
    for part in repeated:
        signals = part.flatten(0, 1)
        everyone = model.fit(signals, gtab)
        moved = read(model, everyone, {name: axis.repeat(len(part), 1) for name, axis in centre.items()})
        plain.add(moved.scalars, len(part))
        for name, found in turned.items():
            found.append(moved.axes[name].unflatten(0, part.shape[:2]))
        if corrects:
            freed.add(_freed(model, signals, everyone, gtab, noise), len(part))
    cones = {
        name: cone.of_samples(centre[name], torch.cat(found), level)[:, None] * is_there(at.axes[name])
        for name, found in turned.items()
    }
    centres, spreads = {}, {}
    if corrects:
        # Repetitions are made of the fit's magnitudes, that is, of the signal that is left without their floor.
        own = freed.scaled(read(model, without_floor(model, params, gtab, noise)).scalars)
        origin = own if noise.has_floor else freed.scaled(read(model, expected).scalars)
        centres = {name: own[name] - (mean - origin[name]) for name, mean in freed.mean.items()}
        further = freed.scaled(read(model, without_floor(model, params, gtab, noise, _FURTHER)).scalars)
        spreads = {name: torch.hypot(own[name] - further[name], sd) for name, sd in freed.deviations().items()}
    # The spread of a few repetitions is itself known as well as from so many degrees of freedom.
    freedom = 1 / (1 / noise.freedom + 1 / (plain.count - 1))
    return Errors(at.scalars, plain.deviations(), at.axes, cones, centres, spreads, freedom, norms)


def _freed(
    model: SignalModel, signal: Float[Tensor, "kv n"], params: Float[Tensor, "kv p"], gtab: GradientTable, noise: Noise
) -> dict[str, Float[Tensor, "kv _"]]:
    """Scalars without the noise floor, whose level is found anew unless it is known: it may be wrong, too."""
    if not noise.has_floor:
        return read(model, params).scalars
    sigma = noise.known(len(signal) // max(1, len(noise.sigma)))
    return read(model, without_floor(model, params, gtab, noise_of(model, signal, gtab, params, sigma=sigma))).scalars


class Moments:
    """Mean and standard deviation of readouts that come some repetitions at a time; of odds for ``norms``."""

    def __init__(self, norms: frozenset[str] = frozenset()) -> None:
        self.norms, self.count = norms, 0
        self.mean: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}

    def scaled(self, values: dict[str, Float[Tensor, "v _"]]) -> dict[str, Float[Tensor, "v _"]]:
        return {name: _odds(value) if name in self.norms else value for name, value in values.items()}

    def add(self, values: dict[str, Float[Tensor, "kv _"]], k: int) -> None:
        """``k`` repetitions of all voxels (Chan, Golub & LeVeque's update of the sum of squares)."""
        for name, value in self.scaled(values).items():
            rows = value.unflatten(0, (k, -1))
            mean = rows.mean(0)
            squares = (rows - mean).square().sum(0)
            if not self.count:
                self.mean[name], self.squares[name] = mean, squares
                continue
            off, total = mean - self.mean[name], self.count + k
            self.squares[name] = self.squares[name] + squares + off.square() * (self.count * k / total)
            self.mean[name] = self.mean[name] + off * (k / total)
        self.count += k

    def deviations(self) -> dict[str, Float[Tensor, "v _"]]:
        return {name: (squares / (self.count - 1)).sqrt() for name, squares in self.squares.items()}


def _joined(parts: list[Errors], dtype: torch.dtype) -> Errors:
    def joined(name: str) -> dict[str, Tensor]:
        tables = [getattr(part, name) for part in parts]
        return {key: torch.cat([table[key] for table in tables]).to(dtype) for key in tables[0]}

    return Errors(
        values=joined("values"),
        deviations=joined("deviations"),
        axes=joined("axes"),
        cones=joined("cones"),
        centres=joined("centres"),
        spreads=joined("spreads"),
        freedom=torch.cat([part.freedom for part in parts]).to(dtype),
        norms=parts[0].norms,
    )
