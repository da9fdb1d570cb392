"""Stated errors set right by simulation: how far readouts of a scan like this one are from the truth, in stated deviations.

Vovk, Gammerman & Shafer, *Algorithmic learning in a random world*, 2005, doi:10.1007/b106715; with the error divided by
what is stated of it, Lei, G'Sell, Rinaldo, Tibshirani & Wasserman, *Distribution-free predictive inference for regression*,
JASA 2018, doi:10.1080/01621459.2017.1307116. Voxels of a broad population (mixtures of tensors that no model
here shares) are measured with the scan's own table at several noise levels; the truth is what the model reads from them
without noise, and the quantiles of the error over the stated deviation are what intervals are made of. They hold bias,
constraints and choices among forms alike, on average over the population. Departure: the quantiles are functions of
the voxel's ratio of signal to noise; the stated deviation is nowhere less than a share of the population's error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tractode.contracts import SignalModel
from tractode.fields import GradientTable
from tractode.models.readouts import Readouts, read
from tractode.ops import cone, sphere

RATIOS = (5.0, 10.0, 20.0, 40.0)  # of signal at b=0 to noise
N_VOXELS = 360
_N_THIRDS = 3
_LEAST_SHARE = 0.3  # of the population's error: a deviation that is stated smaller counts as that
_ALIKE = 1.1  # b-values of one shell differ by less
_N_FIBRES, _N_SIDES = 3, 24  # axes that stand for the dispersion of each fibre
_NORMAL = 1.6448536269514722  # half-width of a normal's interval of 90 %


@dataclass(frozen=True, eq=False)
class Stated:
    """What a method says of some voxels: readouts, deviations of the scalars, half-angles (rad) of cones, signal to noise."""

    at: Readouts
    deviations: dict[str, Float[Tensor, "v _"]]
    cones: dict[str, Float[Tensor, "v 1"]]
    ratio: Float[Tensor, "v 1"]
    scale: Float[Tensor, "v 1"]

    @staticmethod
    def joined(parts: Sequence[Stated]) -> Stated:
        """Of several tiles one after the other."""

        def one(tables: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}

        at = Readouts(one([part.at.scalars for part in parts]), one([part.at.axes for part in parts]))
        ratio, scale = torch.cat([part.ratio for part in parts]), torch.cat([part.scale for part in parts])
        return Stated(at, one([p.deviations for p in parts]), one([p.cones for p in parts]), ratio, scale)

    def filled(self, rows: Int[Tensor, " k"], other: Stated) -> Stated:
        """With what another method says of the errors of some voxels."""

        def put(into: dict[str, Tensor], values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: into[name].index_copy(0, rows, values[name]) for name in into}

        return replace(self, deviations=put(self.deviations, other.deviations), cones=put(self.cones, other.cones))


@dataclass(frozen=True, eq=False)
class Quantiles:
    """Of one readout at each of `RATIOS`: the least deviation, and for thirds of its values (of an axis, of its stated cones)
    the ends and size of intervals.

    ``centres`` are the medians of the thirds; ``ends`` and ``sizes`` are in deviations; ``power`` says how the readout grows
    with the signal.
    """

    least: Float[Tensor, " r"]
    centres: Float[Tensor, "r k"]
    ends: Float[Tensor, "r k 2"]
    sizes: Float[Tensor, "r k 1"]
    power: int

    def spread(
        self, deviation: Float[Tensor, "v _"], ratio: Float[Tensor, "v 1"], scale: Float[Tensor, "v 1"]
    ) -> Tensor:
        """The stated deviation, nowhere less than the least."""
        low, share = _place(ratio)
        least = torch.lerp(self.least.to(ratio)[low], self.least.to(ratio)[low + 1], share)
        return torch.hypot(deviation, (least * scale[:, 0] ** self.power)[:, None])

    def at(
        self, table: Float[Tensor, "r k m"], value: Float[Tensor, "v 1"], ratio: Float[Tensor, "v 1"]
    ) -> Float[Tensor, "v m"]:
        """An entry for values of the readout (over the signal's scale), between thirds and between ratios."""
        low, share = _place(ratio)
        lower, upper = (_between(self.centres.to(value)[row], table.to(value)[row], value) for row in (low, low + 1))
        return torch.lerp(lower, upper, share[:, None])


@dataclass(frozen=True, eq=False)
class Calibration:
    """By readout, what makes intervals of what is stated."""

    level: float
    tables: dict[str, Quantiles]

    def deviations(self, stated: Stated) -> dict[str, Float[Tensor, "v _"]]:
        """Deviations of which 1.645 hold the true value as often as the calibration says."""
        return {
            name: self._of(name, stated, self.tables[name].sizes) * self._spread(name, stated) / _NORMAL
            for name in stated.deviations
        }

    def intervals(self, stated: Stated) -> dict[str, tuple[Float[Tensor, "v _"], Float[Tensor, "v _"]]]:
        """Ends of the intervals of scalars."""
        found = {}
        for name, value in stated.at.scalars.items():
            ends, spread = self._of(name, stated, self.tables[name].ends), self._spread(name, stated)
            found[name] = (value + spread * ends[:, :1], value + spread * ends[:, 1:])
        return found

    def cones(self, stated: Stated) -> dict[str, Float[Tensor, "v 1"]]:
        """Half-angles (rad) that hold the true axis; 0 where there is none."""
        found = {}
        for name, angle in stated.cones.items():
            table = self.tables[name]
            wide = table.spread(angle, stated.ratio, stated.scale) * table.at(table.sizes, angle, stated.ratio)
            found[name] = wide.clamp(max=cone.widest(self.level)) * (angle > 0)
        return found

    def _spread(self, name: str, stated: Stated) -> Float[Tensor, "v _"]:
        """0 where nothing was measured."""
        return self.tables[name].spread(stated.deviations[name], stated.ratio, stated.scale) * (stated.scale > 0)

    def _of(self, name: str, stated: Stated, table: Float[Tensor, "r k m"]) -> Float[Tensor, "v m"]:
        unit = stated.scale.clamp(min=torch.finfo(stated.scale.dtype).tiny) ** self.tables[name].power
        return self.tables[name].at(table, stated.at.scalars[name] / unit, stated.ratio)


def calibrate(
    model: SignalModel,
    gtab: GradientTable,
    signals: Float[Tensor, "v n"],
    is_white: Bool[Tensor, " v"],
    state: Callable[[Float[Tensor, "v n"], Float[Tensor, "v 1"]], Stated],
    level: float,
    has_floor: bool,
) -> Calibration:
    """What that which ``state`` says (of signals and their noise level) must be multiplied with to hold the truth.

    ``signals`` and ``is_white`` are those of `population` that the model explains, ``gtab`` their table; ``has_floor`` says
    that what is measured are magnitudes. Always the same for the same table and model.
    """
    params = model.fit(signals, gtab)
    truth, twice = read(model, params), read(model, model.fit(2 * signals, gtab))
    powers = {
        name: int((twice.scalars[name] - value).abs().sum() > 0.5 * value.abs().sum())
        for name, value in truth.scalars.items()
    }
    rows: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in (*truth.scalars, *truth.axes)}
    for number, ratio in enumerate(RATIOS):
        sigma = signals.new_tensor(1 / ratio)
        measured = _measured(signals, sigma, torch.Generator().manual_seed(number), has_floor)
        found = state(measured, sigma.expand(len(measured), 1))
        for name, value in truth.scalars.items():
            at = found.at.scalars[name]
            relative = at / found.scale ** powers[name]
            rows[name].append(_row(relative, value - at, found.deviations[name], level, _N_THIRDS))
        matched = read(model, params, found.at.axes).axes
        for name, axis in matched.items():
            there = is_white & (axis.norm(dim=-1) > 0.5) & (found.cones[name][:, 0] > 0)
            angle = sphere.angle(found.at.axes[name], axis)[there][:, None]
            cones = found.cones[name][there]
            rows[name].append(_row(cones, angle, cones, level, _N_THIRDS))
    tables = {}
    for name, parts in rows.items():
        least, centres, ends, sizes = (torch.stack(part) for part in zip(*parts, strict=True))
        tables[name] = Quantiles(least, centres, ends, sizes, powers.get(name, 0))
    return Calibration(level, tables)


def _row(
    value: Float[Tensor, "v 1"], error: Float[Tensor, "v 1"], stated: Float[Tensor, "v 1"], level: float, n_parts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`Quantiles` at one ratio of signal to noise: least deviation, centres, ends, sizes."""
    known = error.isfinite().ravel() & stated.isfinite().ravel()
    value, error, stated = value[known].ravel(), error[known].ravel(), stated[known].ravel()
    if len(value) < n_parts:
        none = error.new_zeros(n_parts)
        return error.new_tensor(0.0), none, none[:, None].expand(-1, 2), none[:, None]
    least = _LEAST_SHARE * error.square().mean().sqrt()
    off = error / torch.hypot(stated, least).clamp(min=torch.finfo(error.dtype).tiny)
    centres, ends, sizes = [], [], []
    for part in value.argsort(stable=True).tensor_split(n_parts):
        centres.append(value[part].median())
        ends.append(torch.stack([_quantile(off[part], (1 - level) / 2), _quantile(off[part], (1 + level) / 2)]))
        sizes.append(_quantile(off[part].abs(), level)[None])
    return least, torch.stack(centres), torch.stack(ends), torch.stack(sizes)


def _quantile(values: Float[Tensor, " n"], share: float) -> Float[Tensor, ""]:
    """What this share of further values will lie below: the k-th of n holds k / (n + 1)."""
    rank = min(max(share * (len(values) + 1) - 1, 0.0) / max(len(values) - 1, 1), 1.0)
    return torch.quantile(values, rank)


def _place(ratio: Float[Tensor, "v 1"]) -> tuple[Int[Tensor, " v"], Float[Tensor, " v"]]:
    """Which two of `RATIOS` a voxel lies between, and how far; linear in the logarithm, constant beyond."""
    step = math.log(RATIOS[1] / RATIOS[0])
    place = ((ratio[:, 0].clamp(min=1e-6) / RATIOS[0]).log() / step).nan_to_num(0.0).clamp(0, len(RATIOS) - 1)
    low = place.floor().long().clamp(max=len(RATIOS) - 2)
    return low, place - low


def _between(
    centres: Float[Tensor, "v k"], table: Float[Tensor, "v k m"], value: Float[Tensor, "v 1"]
) -> Float[Tensor, "v m"]:
    """Linear between the centres, constant beyond."""
    found = table[:, 0]
    for k in range(1, centres.shape[1]):
        step = (centres[:, k] - centres[:, k - 1]).clamp(min=torch.finfo(value.dtype).tiny)[:, None]
        share = ((value - centres[:, k - 1 : k]) / step).clamp(0, 1)
        found = torch.lerp(found, table[:, k], share)
    return found


def _measured(
    signal: Float[Tensor, "v n"], sigma: Float[Tensor, ""], generator: torch.Generator, has_floor: bool
) -> Float[Tensor, "v n"]:
    real, imaginary = (
        sigma * torch.randn(2, *signal.shape, generator=generator, dtype=torch.float64).to(signal)
    ).unbind()
    return torch.hypot(signal + real, imaginary) if has_floor else signal + real


def unweighted(signal: Float[Tensor, "v n"], gtab: GradientTable) -> Float[Tensor, "v 1"]:
    """The signal at b=0; of a table without it what the lowest b-value shows, over what it shows of the population."""
    if bool(gtab.is_b0.any()):
        return signal[:, gtab.is_b0.to(signal.device)].mean(-1, keepdim=True)
    lowest = gtab.bvals <= _ALIKE * gtab.bvals.min()
    share = population(gtab)[0][:, lowest.cpu()].mean(-1).median()
    return signal[:, lowest.to(signal.device)].mean(-1, keepdim=True) / share.to(signal)


def population(gtab: GradientTable, n: int = N_VOXELS) -> tuple[Float[Tensor, "v n"], Bool[Tensor, " v"]]:
    """Signals of voxels with one to three dispersed fibres, grey matter and CSF, 1 at b=0; and which are mostly fibres.

    Each fibre is a bundle of axes, each with a stick and a tensor (diffusivities in µm²/ms).
    """
    generator = torch.Generator().manual_seed(20)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    b, g = gtab.bvals.cpu().double() / 1000, gtab.bvecs.cpu().double()
    axes = normal(n, _N_FIBRES, 1, 3)
    axes = axes / axes.norm(dim=-1, keepdim=True)
    axes = axes + uniform(math.log(0.08), math.log(0.45), n, _N_FIBRES, 1, 1).exp() * normal(n, _N_FIBRES, _N_SIDES, 3)
    axes = axes / axes.norm(dim=-1, keepdim=True)
    shares = uniform(0.2, 1.0, n, _N_FIBRES) * (
        torch.arange(_N_FIBRES) <= torch.bucketize(uniform(0.0, 1.0, n, 1), torch.tensor([0.5, 0.85]).double())
    )
    shares = shares / shares.sum(-1, keepdim=True)
    white = torch.where(uniform(0.0, 1.0, n) < 0.75, uniform(0.6, 1.0, n), uniform(0.0, 0.5, n))
    fluid = (1 - white) * uniform(0.0, 0.6, n)
    cosines = (axes @ g.mT).square()  # v fibre side n
    inside = uniform(0.3, 0.7, n, 1, 1, 1)
    along, outer = uniform(1.3, 2.4, n, 1, 1, 1), uniform(1.0, 2.2, n, 1, 1, 1)
    across = outer * uniform(0.15, 0.6, n, 1, 1, 1)
    sticks = (-b * along * cosines).exp()
    tensors = (-b * (across + (outer - across) * cosines)).exp()
    bundles = (inside * sticks + (1 - inside) * tensors).mean(2)
    fibres = (shares[..., None] * bundles).sum(1)
    grey = (-b * uniform(0.6, 1.1, n, 1)).exp()
    signals = white[:, None] * fibres + fluid[:, None] * (-3 * b).exp() + (1 - white - fluid)[:, None] * grey
    return signals, white > 0.5
