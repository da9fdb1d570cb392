"""The error of everything that is read from a model: standard deviations, cones of axes, intervals that hold the truth.

Two ways for every signal model: Laplace's approximation (`tractode.models.laplace`), one fit and some derivatives, and
the bootstrap (`tractode.models.bootstrap`), many fits. Both tell how much a map varies, neither how far off it is on
average: noise adds to anisotropies, bounds cut, the noise floor lifts. `tractode.models.calibration` sees that on
simulated voxels, and intervals and calibrated deviations rest on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.contracts import SignalModel
from tractode.fields import GradientTable
from tractode.models import calibration
from tractode.models import noise as noise_level
from tractode.models.bootstrap import Kind, draws, repetitions
from tractode.models.calibration import Calibration, Stated
from tractode.models.laplace import is_there, linearised
from tractode.models.noise import Noise, explained, noise_of
from tractode.models.readouts import Readouts, read, specs
from tractode.ops import cone

__all__ = ["Calibration", "Errors", "calibrated", "errors", "intervals", "specs", "standard_deviations", "why_not"]

Method = Literal["laplace", "bootstrap"]

TILE = 2048  # voxels at a time
CONE = 0.9  # the share that the cones hold


@dataclass(frozen=True, eq=False)
class Errors:
    """Of each readout of some voxels: its value and standard deviation; of each axis the half-angle of its cone (rad).

    ``ends`` are those of the intervals of the scalars; none without a calibration. ``by_bootstrap`` names the voxels that
    were bootstrapped, be it because a derivative of Laplace's approximation failed there.
    """

    values: dict[str, Float[Tensor, "v _"]]
    deviations: dict[str, Float[Tensor, "v _"]]
    axes: dict[str, Float[Tensor, "v 3"]]
    cones: dict[str, Float[Tensor, "v 1"]]
    ends: dict[str, tuple[Float[Tensor, "v _"], Float[Tensor, "v _"]]]
    by_bootstrap: Bool[Tensor, " v"]


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
    calibration: Calibration | None = None,
) -> dict[str, Float[Tensor, "v _"]]:
    """Standard deviation of each scalar map, in its units, and half-angle (rad) of the cone that holds 90 % of each axis.

    Keys are those of `specs`. ``n`` is the number of repetitions of the bootstrap; without a ``generator`` they are always
    the same. ``has_floor`` is False where the signals are not magnitudes of complex noise; ``sigma`` is the noise level of a
    channel where it is known better than from each voxel alone. With a ``calibration`` (`calibrated`) they are standard
    errors: value ± 1.645 of them holds the truth in 90 of 100 voxels, bias included. dtype follows the signal.
    Raises `InputDataError` where `why_not` gives a reason.
    """
    found = errors(
        model, signal, gtab, method, n, generator, has_floor=has_floor, sigma=sigma, kind=kind, calibration=calibration
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
    known = sigma is not None
    rule = calibrated(model, gtab, method, n, level=level, has_floor=has_floor, knows_sigma=known, kind=kind)
    found = errors(
        model, signal, gtab, method, n, generator, has_floor=has_floor, sigma=sigma, kind=kind, calibration=rule
    )
    return found.ends | {name: (torch.zeros_like(angle), angle) for name, angle in found.cones.items()}


def calibrated(
    model: SignalModel,
    gtab: GradientTable,
    method: Method = "laplace",
    n: int = 50,
    *,
    level: float = CONE,
    has_floor: bool = True,
    knows_sigma: bool = False,
    kind: Kind = "residual",
    device: str | torch.device = "cpu",
) -> Calibration:
    """What `errors` of this table must be multiplied with: the errors of some 1,500 simulated voxels, once a scan."""
    signals, is_white = (of_all.to(device) for of_all in calibration.population(gtab))
    rows, table = explained(model, signals, gtab)

    def state(signal: Float[Tensor, "v n"], sigma: Float[Tensor, "v 1"]) -> Stated:
        known = sigma if knows_sigma else None
        return _stated(model, signal, table, method, n, None, level, has_floor, known, kind)[0]

    with torch.no_grad():
        return calibration.calibrate(model, table, rows, is_white, state, level, has_floor)


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
    has_floor: bool = True,
    sigma: Float[Tensor, "v 1"] | None = None,
    kind: Kind = "residual",
    calibration: Calibration | None = None,
) -> Errors:
    """Everything that can be said of the errors; see `standard_deviations`."""
    rows, table = explained(model, signal, gtab)
    level = CONE if calibration is None else calibration.level
    stated, by_bootstrap = _stated(model, rows, table, method, n, generator, level, has_floor, sigma, kind)
    deviations, cones, ends = stated.deviations, stated.cones, {}
    if calibration is not None:
        deviations, cones = calibration.deviations(stated), calibration.cones(stated)
        ends = calibration.intervals(stated)
    at, dtype = stated.at, signal.dtype
    return Errors(
        _of_type(at.scalars, dtype),
        _of_type(deviations, dtype),
        _of_type(at.axes, dtype),
        _of_type(cones, dtype),
        {name: (low.to(dtype), high.to(dtype)) for name, (low, high) in ends.items()},
        by_bootstrap,
    )


def _stated(
    model: SignalModel,
    rows: Float[Tensor, "v n"],
    table: GradientTable,
    method: Method,
    n: int,
    generator: torch.Generator | None,
    level: float,
    has_floor: bool,
    sigma: Float[Tensor, "v 1"] | None,
    kind: Kind,
) -> tuple[Stated, Bool[Tensor, " v"]]:
    """What the method says of signals that the model explains, and which of them were bootstrapped."""
    numbers = draws(len(table), n, generator)
    parts, marks = [], []
    tiles = rows.split(TILE) if len(rows) else (rows,)
    levels = sigma.split(TILE) if sigma is not None and len(rows) else [sigma] * len(tiles)
    for tile, known in zip(tiles, levels, strict=True):
        with torch.no_grad():
            params = model.fit(tile, table)
            noise = noise_of(model, tile, table, params, has_floor, known)
        if method == "bootstrap":
            part = _by_samples(model, params, tile, noise, table, repetitions(noise, numbers, kind), level)
            mark = torch.ones(len(tile), dtype=torch.bool, device=tile.device)
        else:
            part, is_known = _by_laplace(model, tile, noise, table, level)
            mark = ~is_known
            if bool(mark.any()):  # a derivative that failed says nothing
                lost = mark.nonzero().ravel()
                less = noise.of(lost)
                again = repetitions(less, numbers, kind)
                part = part.filled(lost, _by_samples(model, params[lost], tile[lost], less, table, again, level))
        parts.append(part)
        marks.append(mark)
    return Stated.joined(parts), torch.cat(marks)


def _by_laplace(
    model: SignalModel, signal: Float[Tensor, "v n"], noise: Noise, gtab: GradientTable, level: float
) -> tuple[Stated, Bool[Tensor, " v"]]:
    found = linearised(model, signal, gtab, noise, level)
    at = Readouts(found.values, found.axes)
    return Stated(at, found.deviations, found.cones, *_scale(signal, gtab, noise)), found.is_known


def _by_samples(
    model: SignalModel,
    params: Float[Tensor, "v p"],
    signal: Float[Tensor, "v n"],
    noise: Noise,
    gtab: GradientTable,
    repeated: Iterator[Float[Tensor, "k v n"]],
    level: float,
) -> Stated:
    """Moments of the scalars and all angles of the axes; the fits need no derivative."""
    with torch.no_grad():
        at = read(model, params)
        # Repetitions scatter about the fit of the expected magnitudes, which the noise of the measured ones has moved once.
        centre = read(model, model.fit(noise.magnitude, gtab), at.axes).axes
        moments = Moments()
        turned: dict[str, list[Tensor]] = {name: [] for name in at.axes}
        for part in repeated:
            everyone = model.fit(part.flatten(0, 1), gtab)
            moved = read(model, everyone, {name: axis.repeat(len(part), 1) for name, axis in centre.items()})
            moments.add(moved.scalars, len(part))
            for name, found in turned.items():
                found.append(moved.axes[name].unflatten(0, part.shape[:2]))
        cones = {
            name: cone.of_samples(centre[name], torch.cat(found), level)[:, None] * is_there(at.axes[name])
            for name, found in turned.items()
        }
        return Stated(at, moments.deviations(), cones, *_scale(signal, gtab, noise))


def _scale(
    signal: Float[Tensor, "v n"], gtab: GradientTable, noise: Noise
) -> tuple[Float[Tensor, "v 1"], Float[Tensor, "v 1"]]:
    """Signal at b=0 over the noise, and itself."""
    scale = calibration.unweighted(signal, gtab)
    return scale / noise.sigma, scale


class Moments:
    """Mean and standard deviation of readouts that come some repetitions at a time."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}

    def add(self, values: dict[str, Float[Tensor, "kv _"]], k: int) -> None:
        """``k`` repetitions of all voxels (Chan, Golub & LeVeque's update of the sum of squares)."""
        for name, value in values.items():
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


def _of_type(table: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: values.to(dtype) for name, values in table.items()}
