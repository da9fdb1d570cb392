"""The bootstrap of a voxel's residuals: the same model fitted again and again to signals that could have been measured.

Residuals drawn anew: Chung, Lu & Henry, *Comparison of bootstrap approaches for estimation of uncertainties of DTI
parameters*, NeuroImage 2006, doi:10.1016/j.neuroimage.2006.07.001. Each volume's own residual with a random sign: the
wild bootstrap, Whitcher, Tuch, Wisco, Sorensen & Wang, *Using the wild bootstrap to quantify uncertainty in diffusion
tensor imaging*, Hum. Brain Mapp. 2008, doi:10.1002/hbm.20395. Departures: the residuals are those of smooth shells
(`tractode.models.noise`), corrected for leverage and for the smaller variance near the noise floor; all voxels share one
set of draws, so that a voxel's answer depends neither on its neighbours nor on their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.contracts import SignalModel
from tractode.fields import GradientTable
from tractode.models.noise import Noise, explained, noise_of

Kind = Literal["residual", "wild"]

ROWS = 16384  # signals fitted at once


@dataclass(frozen=True, eq=False)
class Samples:
    """Parameters fitted to each repetition, beside those of the measured signal."""

    params: Float[Tensor, "v p"]
    samples: Float[Tensor, "n v p"]
    noise: Noise


def bootstrap(
    model: SignalModel,
    signal: Float[Tensor, "v n"],
    gtab: GradientTable,
    n: int = 50,
    generator: torch.Generator | None = None,
    kind: Kind = "residual",
    has_floor: bool = True,
) -> Samples:
    """Parameters of ``n`` repetitions, float64; ``n × v × p`` numbers. ``has_floor``: see `tractode.models.noise`."""
    signal, gtab = explained(model, signal, gtab)
    with torch.no_grad():
        params = model.fit(signal, gtab)
        noise = noise_of(model, signal, gtab, params, has_floor)
        samples = torch.cat(
            [
                model.fit(signals.flatten(0, 1), gtab).unflatten(0, signals.shape[:2])
                for signals in repetitions(noise, draws(len(gtab), n, generator), kind)
            ]
        )
        return Samples(params, samples, noise)


def draws(n_volumes: int, n: int, generator: torch.Generator | None = None) -> Int[Tensor, "n m"]:
    """Random whole numbers, a row for each repetition; without a generator always the same."""
    if n < 2:
        raise ValueError(f"A bootstrap needs at least 2 repetitions to have a spread; got {n}.")
    generator = generator or torch.Generator().manual_seed(0)
    return torch.randint(0, 2**31 - 1, (n, n_volumes), generator=generator)


def repetitions(noise: Noise, numbers: Int[Tensor, "n m"], kind: Kind) -> Iterator[Float[Tensor, "k v m"]]:
    """Signals that could have been measured, some repetitions at a time."""
    for part in numbers.split(max(1, ROWS // max(1, len(noise.magnitude)))):
        yield torch.stack([repeated(noise, row, kind) for row in part])


def repeated(noise: Noise, numbers: Int[Tensor, " m"], kind: Kind) -> Float[Tensor, "v m"]:
    """One more measurement: the fit's magnitudes with noise. A magnitude is not negative."""
    if kind == "wild":
        drawn = noise.residuals * (numbers % 2 * 2 - 1).to(noise.residuals)
    else:
        drawn = noise.residuals.gather(1, noise.pool.gather(1, numbers.to(noise.pool) % noise.n_drawn))
    return (noise.magnitude + noise.spread * drawn).abs()
