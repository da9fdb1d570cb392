"""Intensity normalisation by all tissues at once: their sum is made the same everywhere, in every participant.

Raffelt, Dhollander, Tournier, Tabbara, Smith, Pierre & Connelly, *Bias field correction and intensity normalisation for
quantitative analysis of apparent fibre density*, ISMRM 2017, abstract 3541; in the log domain as Dhollander, Tabbara,
Rosnarho-Tornstrand, Tournier, Raffelt & Connelly, *Multi-tissue log-domain intensity and inhomogeneity normalisation for
quantitative apparent fibre density*, ISMRM 2021, abstract 2472; used by MRtrix3's ``mtnormalise`` (Tournier et al. 2019,
doi:10.1016/j.neuroimage.2019.116137). Departures: the polynomial is one of voxel indices scaled to the mask's extent
(the same space of fields); all voxels of the mask are used, in float64.

For tissues ``t_i``, balance factors ``β_i`` (geometric mean 1) and a field ``F = exp(Σ w_k p_k(x))``, p_k polynomials of
the place up to an order: ``Σ_i β_i t_i ≈ ρ F`` by least squares of the logarithms over voxels that are no outliers; the
tissues are divided by F. F includes the constant, so the sum of a typical voxel becomes ρ.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tractode.errors import InputDataError

REFERENCE = 1 / math.sqrt(4 * math.pi)  # the coefficient of degree 0 of a distribution with integral 1


@dataclass(frozen=True)
class NormaliseSettings:
    order: int = 3
    rounds: int = 15
    balance_rounds: int = 7
    reference: float = REFERENCE
    first_fence: float = 3.0  # interquartile ranges beyond the quartiles, of the logarithm
    last_fence: float = 1.5
    fewest_voxels: int = 500


@dataclass(frozen=True, eq=False)
class Normalised:
    """``tissues`` divided by ``field``; ``balance`` of each tissue; ``outliers`` were not used for the field."""

    tissues: dict[str, Float[Tensor, "c i j k"]]
    field: Float[Tensor, "i j k"]
    balance: dict[str, float]
    outliers: Bool[Tensor, "i j k"]


def normalise(
    tissues: Mapping[str, Float[Tensor, "c i j k"]],
    mask: Bool[Tensor, "i j k"],
    settings: NormaliseSettings | None = None,
) -> Normalised:
    """The tissues (first component: the coefficient of degree 0) normalised; raises `InputDataError` (E-MTNORMALISE-MASK).

    Values outside the mask are divided by the field as well, which is a polynomial there too.
    """
    settings = settings or NormaliseSettings()
    densities = torch.stack([values[0].to(torch.float64).clamp_min(0) for values in tissues.values()], -1)
    inside = mask & torch.isfinite(densities).all(-1) & (densities.sum(-1) > 0)
    if int(inside.sum()) < settings.fewest_voxels:
        raise InputDataError(
            f"Only {int(inside.sum())} voxels of the mask hold some tissue",
            id="E-MTNORMALISE-MASK",
            needed=f"at least {settings.fewest_voxels}",
            fix="look at the mask and at the tissue maps",
        )
    everywhere = polynomials(inside, settings.order)
    basis, inner = everywhere[inside], densities[inside]
    balance, used = _fitted(inner, basis, settings)
    weights = _field_weights(inner @ balance, basis, used, settings.reference)
    field = (everywhere @ weights).exp()
    outliers = torch.zeros_like(mask)
    outliers[inside] = ~used
    return Normalised(
        {name: (values / field.to(values)).to(values) for name, values in tissues.items()},
        field,
        dict(zip(tissues, balance.tolist(), strict=True)),
        outliers,
    )


def polynomials(inside: Bool[Tensor, "i j k"], order: int) -> Float[Tensor, "i j k p"]:
    """Products of powers of the voxels' indices up to a total ``order``, scaled so that the mask lies in [−1, 1]³.

    World coordinates depend on indices linearly, so the fields that can be made are the same.
    """
    axes = [torch.arange(n, dtype=torch.float64) for n in inside.shape]
    centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    low, high = centres[inside].amin(0), centres[inside].amax(0)
    x = (centres - (low + high) / 2) / ((high - low) / 2).clamp_min(1e-6)
    powers = [p for p in itertools.product(range(order + 1), repeat=3) if sum(p) <= order]
    return torch.stack([(x ** torch.tensor(p, dtype=torch.float64)).prod(-1) for p in sorted(powers, key=sum)], -1)


def _fitted(
    densities: Float[Tensor, "v t"], basis: Float[Tensor, "v p"], settings: NormaliseSettings
) -> tuple[Float[Tensor, " t"], Bool[Tensor, " v"]]:
    """The balance factors and which voxels are no outliers, by turns with the field."""
    balance = densities.new_ones(densities.shape[1])
    log_field = densities.new_zeros(len(densities))
    used = _within(densities.sum(-1).log(), settings.first_fence)
    for _ in range(settings.rounds):
        for _ in range(settings.balance_rounds if densities.shape[1] > 1 else 0):
            balance = _balanced(densities[used], log_field[used], settings.reference, balance)
            corrected = (densities @ balance).clamp_min(1e-300).log() - log_field
            now = _within(corrected, settings.last_fence)
            if torch.equal(now, used):
                break
            used = now
        log_field = basis @ _field_weights(densities @ balance, basis, used, settings.reference)
        used = _within((densities @ balance).clamp_min(1e-300).log() - log_field, settings.last_fence)
    return balance, used


def _balanced(
    densities: Float[Tensor, "u t"], log_field: Float[Tensor, " u"], reference: float, before: Float[Tensor, " t"]
) -> Float[Tensor, " t"]:
    """Factors with which the corrected tissues add up to the reference as well as can be, geometric mean 1; all above 0 or as before."""
    corrected = densities / log_field.exp()[:, None]
    target = corrected.new_full((len(corrected), 1), reference)
    factors = torch.linalg.lstsq(corrected.mT @ corrected, corrected.mT @ target, driver="gelsd").solution[:, 0]
    return factors / factors.log().mean().exp() if bool((factors > 0).all()) else before


def _field_weights(
    total: Float[Tensor, " v"], basis: Float[Tensor, "v p"], used: Bool[Tensor, " v"], reference: float
) -> Float[Tensor, " p"]:
    """The polynomial nearest to the logarithm of the sum over the reference."""
    target = (total[used] / reference).log()[:, None]
    chosen = basis[used]
    return torch.linalg.lstsq(chosen.mT @ chosen, chosen.mT @ target, driver="gelsd").solution[:, 0]


def _within(values: Float[Tensor, " v"], fence: float) -> Bool[Tensor, " v"]:
    """Between the quartiles, or beyond them by at most so many interquartile ranges."""
    order = values.sort().values
    low, high = order[round(0.25 * (len(order) - 1))], order[round(0.75 * (len(order) - 1))]
    return (values >= low - fence * (high - low)) & (values <= high + fence * (high - low))
