"""The diffusion signal of fibres, grey matter and CSF, and its noise.

Fibres: a restricted (stick) and a hindered (axially symmetric tensor) compartment, Panagiotaki et al., *Compartment
models of the diffusion MR signal in brain white matter*, NeuroImage 2012, doi:10.1016/j.neuroimage.2011.09.081, spread
over orientations by spherical convolution, Tournier et al., NeuroImage 2004, doi:10.1016/j.neuroimage.2004.07.037.
Dispersion: Watson's distribution. Departure: the orientation distribution is cut at SH order 8, and the signal is
computed from the cut one, so that the stored truth is exactly what made the signal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.fields import GradientTable
from tractode.ops import spherical_harmonics as sh


@dataclass(frozen=True)
class TissueModel:
    """Diffusivities in mm²/s; b=0 intensities relative to white matter (T2-weighted, echo time about 80 ms)."""

    restricted_fraction: float = 0.5
    parallel: float = 1.9e-3
    perpendicular: float = 0.6e-3
    grey: float = 0.85e-3
    csf: float = 3.0e-3
    s0_white: float = 1.0
    s0_grey: float = 1.35
    s0_csf: float = 3.2


_QUADRATURE = np.polynomial.legendre.leggauss(200)


def _legendre(order: int) -> Float[Tensor, "r q"]:
    nodes = _QUADRATURE[0]
    rows = [np.polynomial.legendre.Legendre.basis(degree)(nodes) for degree in range(0, order + 1, 2)]
    return torch.from_numpy(np.stack(rows))


def _weights() -> tuple[Float[Tensor, " q"], Float[Tensor, " q"]]:
    return torch.from_numpy(_QUADRATURE[0].copy()), torch.from_numpy(_QUADRATURE[1].copy())


def fibre_response(b: float, model: TissueModel, order: int) -> Float[Tensor, " r"]:
    """Funk–Hecke factors of one coherent fibre's signal at b (s/mm²), for each even degree."""
    cosine, weight = _weights()
    stick = torch.exp(-b * model.parallel * cosine**2)
    hindered = torch.exp(-b * (model.perpendicular + (model.parallel - model.perpendicular) * cosine**2))
    signal = model.restricted_fraction * stick + (1 - model.restricted_fraction) * hindered
    return 2 * math.pi * _legendre(order) @ (weight * signal)


def watson(kappa: Float[Tensor, "*v"], order: int) -> Float[Tensor, "*v r"]:
    """SH factors of Watson's distribution of the given concentrations, for each even degree; the first is 1."""
    cosine, weight = _weights()
    density = weight * torch.exp(kappa[..., None] * (cosine**2 - 1))
    return (density @ _legendre(order).mT) / density.sum(-1, keepdim=True)


def watson_mean_square(kappa: Float[Tensor, "*v"]) -> Float[Tensor, "*v"]:
    """Mean of cos² between a fibre and its population's axis: from 1/3 (isotropic) to 1 (parallel)."""
    cosine, weight = _weights()
    density = weight * torch.exp(kappa[..., None] * (cosine**2 - 1))
    return (density @ cosine**2) / density.sum(-1)


def concentration(mean_square: Float[Tensor, "*v"]) -> Float[Tensor, "*v"]:
    """Watson's κ from the mean of cos², by a table; κ ≤ 100."""
    table = torch.cat([torch.zeros(1, dtype=torch.float64), torch.logspace(-2, 2, 400, dtype=torch.float64)])
    values = watson_mean_square(table)
    index = torch.searchsorted(values, mean_square.double().contiguous()).clamp(1, len(table) - 1)
    low, high = values[index - 1], values[index]
    share = ((mean_square - low) / (high - low)).clamp(0, 1)
    return table[index - 1] + share * (table[index] - table[index - 1])


def predict(
    fod: Float[Tensor, "v l"], tissues: Float[Tensor, "v 3"], gtab: GradientTable, model: TissueModel
) -> Float[Tensor, "v n"]:
    """Noise-free signal relative to white matter at b=0.

    ``fod`` integrates to the white-matter fraction; ``tissues`` are grey, white and CSF fractions, the white one unused.
    """
    order = _order(fod.shape[1])
    degree = sh.degrees(order) // 2
    columns, fod, tissues = [], fod.double(), tissues.double()
    directions = torch.where(gtab.is_b0[:, None], torch.tensor([0.0, 0, 1]).to(gtab.bvecs), gtab.bvecs)
    values = sh.basis(directions.double(), order)
    for b, row in zip(gtab.bvals.tolist(), values, strict=True):
        fibres = fod @ (row * fibre_response(b, model, order)[degree])
        grey = model.s0_grey * math.exp(-b * model.grey) * tissues[:, 0]
        csf = model.s0_csf * math.exp(-b * model.csf) * tissues[:, 2]
        columns.append(model.s0_white * fibres + grey + csf)
    return torch.stack(columns, dim=1)


def _order(n: int) -> int:
    return round((math.sqrt(8 * n + 1) - 3) / 2)


def rician(signal: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Magnitude of the signal with Gaussian noise of ``sigma`` in both channels; ``sigma`` 0 leaves it alone."""
    if sigma == 0:
        return signal
    real = signal + sigma * torch.randn(signal.shape, generator=generator, dtype=signal.dtype)
    imaginary = sigma * torch.randn(signal.shape, generator=generator, dtype=signal.dtype)
    return torch.hypot(real, imaginary)
