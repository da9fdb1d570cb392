"""White-matter tract integrity: water in and around axons, from the kurtosis of a voxel of one coherent bundle.

Fieremans, Jensen & Helpern, *White matter characterization with diffusional kurtosis imaging*, NeuroImage 2011,
doi:10.1016/j.neuroimage.2011.06.006. Departures: the largest kurtosis is sought from 200 directions on by a pattern search
instead of among directions alone; where there is no kurtosis at all, there is no water in axons and its diffusivity is 0.
The model's assumptions (impermeable, nearly parallel axons, slower diffusion inside) hold in few voxels: see the theory page.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tractode.contracts import MapSpec
from tractode.models.dki import DKI
from tractode.ops import kurtosis, least_squares, sphere, symmetric

_TILE = 512
_N_DIRECTIONS = 200
_N_ROUNDS, _FIRST_RADIUS, _N_RING = 9, 0.12, 6  # ends below 0.03 degrees
_LARGEST_KURTOSIS = 10.0
_LEAST = 1e-12


@dataclass(frozen=True)
class WMTI(DKI):
    """Parameters and fit are those of `DKI`; the maps read them by a model of two compartments."""

    label: ClassVar[str] = "wmti"
    citation: ClassVar[str] = "Fieremans2011"
    maps: ClassVar[tuple[MapSpec, ...]] = (
        MapSpec("awf", "Axonal water fraction", "arbitrary"),
        MapSpec("da", "Diffusivity inside axons", "mm^2/s", of_part=True),
        MapSpec("depar", "Diffusivity outside axons, along them", "mm^2/s", of_part=True),
        MapSpec("deperp", "Diffusivity outside axons, across them", "mm^2/s", of_part=True),
        MapSpec("tort", "Tortuosity outside axons: the ratio along to across", "arbitrary"),
    )

    def to_maps(self, params: Float[Tensor, "v 22"]) -> dict[str, Float[Tensor, "v _"]]:
        columns = least_squares.in_tiles(_columns, params, _TILE, threaded=True).split(1, dim=-1)
        return dict(zip((spec.param for spec in self.maps), columns, strict=True))


def _columns(params: Float[Tensor, "t 22"]) -> Float[Tensor, "t 5"]:
    tensor, product = params[:, :6] * 1e3, params[:, 6:21]
    largest = largest_kurtosis(tensor, product).clamp(0, _LARGEST_KURTOSIS)[:, None]
    second, fourth, inverse = (part.to(params) for part in _sampling())
    d = (tensor @ second.mT).clamp_min(0)
    k = _ratio(product @ fourth.mT, d)
    k = torch.minimum(k.clamp_min(0), largest)
    # Equations 13 and 14 with AWF = K/(K + 3) put in: sqrt(K f / 3(1 − f)) = sqrt(K Kmax) / 3, sqrt(K (1 − f) / 3f) = sqrt(K / Kmax).
    outside = d * (1 + (k * largest).clamp_min(_LEAST).sqrt() / 3)
    inside = d * (1 - _ratio_of_roots(k, largest))
    hindered = symmetric.eigenvalues(outside @ inverse.mT)
    along, across = hindered[:, :1], hindered[:, 1:].mean(-1, keepdim=True)
    axonal = symmetric.trace(inside @ inverse.mT)[:, None].clamp_min(0) * (largest > 0)
    usable = across > 1e-3 * along
    tortuosity = torch.where(usable, along / torch.where(usable, across, 1), 0)
    return torch.cat([largest / (largest + 3), axonal * 1e-3, along * 1e-3, across * 1e-3, tortuosity], -1)


def largest_kurtosis(tensor: Float[Tensor, "t 6"], product: Float[Tensor, "t 15"]) -> Float[Tensor, " t"]:
    """The greatest ``K(g) = V(g) / D(g)²`` of all directions, in units of ``product`` over ``tensor`` squared.

    Its derivative is that at the direction found, which is exact at a maximum.
    """

    def along(g: Tensor) -> Tensor:
        d = (tensor[:, None] * symmetric.quadratic_form(g)).sum(-1).clamp_min(0)
        return _ratio((product[:, None] * kurtosis.quartic_form(g)).sum(-1), d)

    with torch.no_grad():
        second, fourth, _ = (part.to(tensor) for part in _sampling())
        first = _ratio(product @ fourth.mT, (tensor @ second.mT).clamp_min(0)).argmax(-1)
        best = sphere.directions(_N_DIRECTIONS, hemisphere=True).to(tensor)[first]
        angles = torch.arange(_N_RING, device=tensor.device).to(tensor) * (2 * torch.pi / _N_RING)
        ring = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], -1)
        ring = torch.cat([torch.zeros_like(ring[:1]), ring])
        radius = _FIRST_RADIUS
        for _ in range(_N_ROUNDS):
            around = best[:, None] + radius * ring @ sphere.frame_to_z(best)
            around = around / around.norm(dim=-1, keepdim=True)
            chosen = along(around).argmax(-1)
            best = around.gather(1, chosen[:, None, None].expand(-1, 1, 3))[:, 0]
            radius /= 2 if radius > 0.06 else 1.7
    return along(best[:, None])[:, 0]


def _ratio(product: Float[Tensor, "*v"], diffusivity: Float[Tensor, "*v"]) -> Float[Tensor, "*v"]:
    """``V / D²``; 0 where there is no diffusion."""
    usable = diffusivity > 1e-3  # µm²/ms
    return torch.where(usable, product / torch.where(usable, diffusivity, 1).square(), 0)


def _ratio_of_roots(k: Float[Tensor, "t m"], largest: Float[Tensor, "t 1"]) -> Float[Tensor, "t m"]:
    usable = largest > 0
    return (k / torch.where(usable, largest, 1)).clamp_min(_LEAST).sqrt()


@cache
def _sampling() -> tuple[Float[Tensor, "m 6"], Float[Tensor, "m 15"], Float[Tensor, "6 m"]]:
    """Forms of degree 2 and 4 along the directions, and what fits a tensor to values along them."""
    g = sphere.directions(_N_DIRECTIONS, hemisphere=True).to(torch.float64)
    second = symmetric.quadratic_form(g)
    return second, kurtosis.quartic_form(g), torch.linalg.pinv(second)
