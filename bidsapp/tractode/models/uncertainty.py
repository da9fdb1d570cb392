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
from tractode.models.bootstrap import Kind, draws, refits
from tractode.models.laplace import is_there, linearised
from tractode.models.noise import Noise, explained, noise_of
from tractode.models.readouts import Readouts, read, specs
from tractode.ops import cone

__all__ = ["Errors", "errors", "intervals", "specs", "standard_deviations", "why_not"]

Method = Literal["laplace", "bootstrap"]

TILE = 2048  # voxels at a time
CONE = 0.9  # the share that the cones hold


@dataclass(frozen=True, eq=False)
class Errors:
    """Of each readout of some voxels: its value, bias and standard deviation; of each axis the half-angle of its cone (rad).

    ``freedom`` is the number of degrees of freedom that the noise level rests on.
    """

    values: dict[str, Float[Tensor, "v _"]]
    biases: dict[str, Float[Tensor, "v _"]]
    deviations: dict[str, Float[Tensor, "v _"]]
    axes: dict[str, Float[Tensor, "v 3"]]
    cones: dict[str, Float[Tensor, "v 1"]]
    freedom: Float[Tensor, "v 1"]

    def intervals(self, level: float) -> dict[str, tuple[Float[Tensor, "v _"], Float[Tensor, "v _"]]]:
        """Ends of the intervals that hold the true scalars with this probability; of cones from 0 to the half-angle."""
        half = torch.from_numpy(stats.t.ppf((1 + level) / 2, self.freedom.clamp(min=1).cpu().numpy())).to(self.freedom)
        found = {}
        for name, value in self.values.items():
            centre = value - self.biases[name]
            found[name] = (centre - half * self.deviations[name], centre + half * self.deviations[name])
        return found | {name: (torch.zeros_like(angle), angle) for name, angle in self.cones.items()}


def standard_deviations(
    model: SignalModel,
    signal: Float[Tensor, "v n"],
    gtab: GradientTable,
    method: Method = "laplace",
    n: int = 50,
    generator: torch.Generator | None = None,
    *,
    has_floor: bool = True,
    kind: Kind = "residual",
) -> dict[str, Float[Tensor, "v _"]]:
    """Standard deviation of each scalar map, in its units, and half-angle (rad) of the cone that holds 90 % of each axis.

    Keys are those of `specs`. ``n`` is the number of repetitions of the bootstrap; without a ``generator`` they are always
    the same. ``has_floor`` is False where the signals are not magnitudes of complex noise. dtype follows the signal.
    Raises `InputDataError` where `why_not` gives a reason.
    """
    found = errors(model, signal, gtab, method, n, generator, has_floor=has_floor, kind=kind, biases=False)
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
    kind: Kind = "residual",
) -> dict[str, tuple[Float[Tensor, "v _"], Float[Tensor, "v _"]]]:
    """Ends of the interval that holds the true value of each scalar map with probability ``level``; of axes 0 and the cone."""
    found = errors(model, signal, gtab, method, n, generator, has_floor=has_floor, kind=kind, level=level)
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
    kind: Kind = "residual",
    biases: bool = True,
) -> Errors:
    """Everything that can be said of the errors; without ``biases`` they are 0 and a fit or two are saved."""
    rows, table = explained(model, signal, gtab)
    numbers = draws(len(table), n, generator) if method == "bootstrap" else None
    parts = []
    for tile in rows.split(TILE) if len(rows) else [rows]:
        if numbers is None:
            parts.append(_by_laplace(model, tile, table, level, has_floor, biases))
        else:
            with torch.no_grad():
                params = model.fit(tile, table)
                noise = noise_of(model, tile, table, params, has_floor)
                samples = refits(model, noise, table, numbers, kind)
                parts.append(_by_samples(model, params, noise, table, samples, level, biases))
    return _joined(parts, signal.dtype)


def _by_laplace(
    model: SignalModel, signal: Float[Tensor, "v n"], gtab: GradientTable, level: float, has_floor: bool, biases: bool
) -> Errors:
    """The bias is what the noise floor does to the fit's own signal."""
    found = linearised(model, signal, gtab, level, has_floor)
    bias = {name: torch.zeros_like(value) for name, value in found.values.items()}
    if biases and has_floor:
        with torch.no_grad():
            raised, true = (
                read(model, model.fit(signals, gtab)).scalars
                for signals in (found.noise.magnitude, found.noise.amplitude)
            )
            bias = {name: raised[name] - true[name] for name in bias}
    values = {name: value.detach() for name, value in found.values.items()}
    return Errors(values, bias, found.deviations, found.axes, found.cones, found.noise.freedom)


def _by_samples(
    model: SignalModel,
    params: Float[Tensor, "v p"],
    noise: Noise,
    gtab: GradientTable,
    samples: Iterator[Float[Tensor, "k v p"]],
    level: float,
    biases: bool,
) -> Errors:
    """Moments of the scalars about the first fit's, and all angles of the axes."""
    at = read(model, params)
    reference = read(model, model.fit(noise.amplitude, gtab), at.axes) if biases else at
    # Repetitions scatter about the fit of the expected magnitudes, which the noise of the measured ones has moved once.
    centre = read(model, model.fit(noise.magnitude, gtab), at.axes).axes if at.axes else {}
    first = {name: torch.zeros_like(value) for name, value in at.scalars.items()}
    second, count = dict(first), 0
    turned: dict[str, list[Tensor]] = {name: [] for name in at.axes}
    for part in samples:
        moved = _of_all(model, part, centre)
        count += len(part)
        for name, value in at.scalars.items():
            off = moved.scalars[name].unflatten(0, part.shape[:2]) - value
            first[name] = first[name] + off.sum(0)
            second[name] = second[name] + off.square().sum(0)
        for name, found in turned.items():
            found.append(moved.axes[name].unflatten(0, part.shape[:2]))
    mean = {name: total / count for name, total in first.items()}
    deviations = {
        name: ((total - count * mean[name].square()) / (count - 1)).clamp(min=0).sqrt()
        for name, total in second.items()
    }
    bias = {
        name: at.scalars[name] + mean[name] - reference.scalars[name] if biases else torch.zeros_like(mean[name])
        for name in mean
    }
    cones = {
        name: cone.of_samples(centre[name], torch.cat(found), level)[:, None] * is_there(at.axes[name])
        for name, found in turned.items()
    }
    return Errors(at.scalars, bias, deviations, at.axes, cones, noise.freedom)


def _of_all(model: SignalModel, params: Float[Tensor, "k v p"], near: dict[str, Float[Tensor, "v 3"]]) -> Readouts:
    """The readouts of all repetitions, one after another."""
    return read(model, params.flatten(0, 1), {name: axis.repeat(len(params), 1) for name, axis in near.items()})


def _joined(parts: list[Errors], dtype: torch.dtype) -> Errors:
    def joined(tables: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([table[name] for table in tables]).to(dtype) for name in tables[0]}

    return Errors(
        joined([part.values for part in parts]),
        joined([part.biases for part in parts]),
        joined([part.deviations for part in parts]),
        joined([part.axes for part in parts]),
        joined([part.cones for part in parts]),
        torch.cat([part.freedom for part in parts]).to(dtype),
    )
