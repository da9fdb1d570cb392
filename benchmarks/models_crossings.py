"""Crossing fibres for `models_truth.py`: how many are resolved, how far off, and how many peaks are false."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import models_peers as peers
import models_voxels as voxels
import torch
from torch import Tensor

from tractode.fields import ImageGrid, ShField
from tractode.models.csa import CSA
from tractode.models.csd import CSD
from tractode.models.gqi import GQI
from tractode.models.msmt_csd import MSMTCSD
from tractode.models.q_ball import QBall
from tractode.ops import sphere
from tractode.tracking.peak_field import peak_field

ORDER = 8
ANGLES = (90, 60, 45)
NEAR = math.radians(20)
RELATIVE = 0.3  # of the largest peak, above the distribution's least value
RELATIVE_DENSITY = 0.2
LEAST = 0.1  # of a fibre's amplitude: what trackers take for a fibre
TABLE_OF = {"csd": "b3000", "csa": "b3000", "qball": "b3000", "msmt_csd": "multi", "gqi": "multi"}
SEPARATION = math.radians(25)

Fit = Callable[[Tensor], Tensor]


def methods(name: str) -> dict[str, Fit]:
    """Signals to SH coefficients: ours and the peers'. All deconvolutions have the same responses."""
    bvals = voxels.TABLES[TABLE_OF[name]]
    gtab, responses = voxels.table(bvals), peers.tissue_responses(bvals)
    if name == "msmt_csd":
        ours: Any = MSMTCSD.with_responses(list(responses.values()), gtab)
        return {
            "tractode": lambda s: ours.to_sh(ours.fit(s, gtab), ORDER),
            "mrtrix3": lambda s: peers.mrtrix_msmt(s, gtab, responses)["wm"],
        }
    if name == "csd":
        ours = CSD.with_responses([responses["wm"]], gtab)
        return {
            "tractode": lambda s: ours.to_sh(ours.fit(s, gtab), ORDER),
            "mrtrix3": lambda s: peers.mrtrix_csd(s, gtab, responses),
            "dipy": lambda s: peers.dipy_distribution("csd", s, gtab, responses),
        }
    ours = {"csa": CSA, "qball": QBall, "gqi": GQI}[name]()
    found: dict[str, Fit] = {
        "tractode": lambda s: ours.to_sh(ours.fit(s, gtab), ORDER),
        "dipy": lambda s: peers.dipy_distribution(name, s, gtab, responses),
    }
    if name == "gqi":
        squared = GQI(method="gqi2")
        found["tractode_gqi2"] = lambda s: squared.to_sh(squared.fit(s, gtab), ORDER)
        found["dipy_gqi2"] = lambda s: peers.dipy_distribution("gqi2", s, gtab, responses)
    return found


def measured(name: str, n: int, snrs: tuple[int, ...]) -> dict[str, Any]:
    """``{method: {snr: {angle: scores, "single": …, "grey": …}}}``"""
    gtab = voxels.table(voxels.TABLES[TABLE_OF[name]])
    scenes = {str(angle): voxels.crossings(n, math.radians(angle), seed=angle) for angle in ANGLES}
    scenes |= {"single": voxels.crossings(n, 0.0, seed=1)}
    if name in ("csd", "msmt_csd"):
        scenes |= {"grey": voxels.of_tissue(n, 0), "csf": voxels.of_tissue(n, 2)}
    found: dict[str, Any] = {"table": TABLE_OF[name]}
    for method, fit in methods(name).items():
        started, table = time.perf_counter(), {}
        for snr in snrs:
            row = {}
            for k, (which, scene) in enumerate(scenes.items()):
                coefficients = fit(voxels.noisy(scene.signal(gtab), snr, seed=100 * snr + k))
                row[which] = scores(coefficients, scene, name in ("csd", "msmt_csd"))
            table[f"snr_{snr}"] = row
        found[method] = table | {"seconds": round(time.perf_counter() - started, 1)}
    return found


def scores(coefficients: Tensor, scene: voxels.Voxels, is_density: bool) -> dict[str, Any]:
    """Shares of voxels: every fibre within 20° of a peak of its own; any peak that is no fibre's; error in degrees."""
    directions, amplitudes = peaks(coefficients, is_density)
    n = len(coefficients)
    taken = torch.zeros(amplitudes.shape, dtype=torch.bool)
    resolved, errors = torch.ones(n, dtype=torch.bool), []
    for k in range(scene.axes.shape[1]):
        axis = scene.axes[:, k]
        there = axis.norm(dim=-1) > 0.5
        angle = sphere.angle(directions, axis[:, None].expand_as(directions))
        angle = torch.where((amplitudes > 0) & ~taken, angle, torch.pi)
        nearest, which = angle.min(-1)
        hit = there & (nearest < NEAR)
        taken[hit.nonzero().ravel(), which[hit]] = True
        resolved &= hit | ~there
        errors.append(nearest[hit])
    false = ((amplitudes > 0) & ~taken).sum(-1)
    result: dict[str, Any] = {
        "n": n,
        "false_peaks": rounded(false.double().mean()),
        "any_false": rounded((false > 0).double().mean()),
    }
    if bool((scene.axes.norm(dim=-1) > 0.5).any()):
        error = torch.rad2deg(torch.cat(errors)) if errors else torch.zeros(0)
        result |= {
            "resolved": rounded(resolved.double().mean()),
            "error_deg": rounded(error.mean()) if len(error) else None,
        }
    return result


def peaks(coefficients: Tensor, is_density: bool) -> tuple[Tensor, Tensor]:
    """Up to five peaks ``v k 3`` and their amplitudes: above 0.1 of a fibre and 0.2 of the largest, or of a distribution 0.3 of its range."""
    raised = coefficients.double().clone()
    if not is_density:
        from tractode.ops import spherical_harmonics as sh

        least = (raised @ sh.basis(sphere.directions(300), ORDER).mT).amin(-1)
        raised[:, 0] -= least * math.sqrt(4 * math.pi)
    grid = ImageGrid((len(raised), 1, 1), torch.eye(4, dtype=torch.float64), "voxels")
    field = ShField(grid, raised.mT.reshape(-1, len(raised), 1, 1).contiguous(), ORDER)
    found = peak_field(field, 5, LEAST if is_density else 0.0, RELATIVE_DENSITY if is_density else RELATIVE, SEPARATION)
    return found.directions[..., 0, 0].permute(2, 0, 1), found.amplitudes[..., 0, 0].mT


def rounded(value: Tensor) -> float:
    return round(float(value), 4)
