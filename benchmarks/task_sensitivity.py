"""Sensitivity maps: do they say what happens to a connection when the signal changes? One JSON object.

1. Finite differences: the signals of single voxels are disturbed at random, the voxel is fitted again, everything is
   tracked again; the change of the connection beside the map's prediction.
2. Lesions: anisotropy is lost in balls along and beside the bundles; rank correlation of predicted and actual change, of
   the soft connection and of the plain count of lines that join the regions with a hard cutoff.

Simulated phantoms of several noise seeds, double precision. ``--output`` saves the result.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import meta
from scipy.stats import spearmanr
from torch import Tensor

from tractode.fields import Image, ShField
from tractode.models.csd import CSD
from tractode.models.response import estimate_response
from tractode.ops import smooth
from tractode.simulate.gradients import multi_shell
from tractode.simulate.phantom import PhantomSettings, phantom
from tractode.tracking.sdstream import SDStream
from tractode.tracking.sensitivity import Probe, levelled, sensitivity, soft_connection
from tractode.tracking.survival import SoftTermination, memberships

SNR, VOXEL, SIZE = 20.0, 3.0, 20
CONNECTIONS = ("CrossA", "KissA", "NeckB")
LESION_RADIUS = 4.5
SHARES = (0.05, 0.2, 0.5)


class Scene:
    """A phantom's scan, its fit, and the questions of one connection to it."""

    def __init__(self, seed: int) -> None:
        self.truth = phantom(multi_shell(((2500.0, 45),), 4), PhantomSettings(size=SIZE, voxel_mm=VOXEL, snr=SNR), seed)
        scan = self.truth.dwi
        self.grid, self.gtab, self.signal = scan.grid, scan.gtab, scan.signal.double()
        white = self.truth.white_matter.mask
        self.mask = smooth.dilate(white, (1, 1, 1)) & scan.mask
        shell = CSD.shell(self.gtab)
        assert shell is not None
        self.model = CSD(estimate_response(self.signal[:, white].mT, self.gtab, shell))
        coeffs = torch.zeros(45, *self.grid.shape, dtype=torch.float64)
        coeffs[:, self.mask] = self.model.fit(self.signal[:, self.mask].mT, self.gtab).mT
        self.field = ShField(self.grid, coeffs, 8)

    def probe(self, name: str) -> Probe:
        ends = self.truth.bundles[name]
        regions = memberships(torch.stack([ends.start, ends.end]), self.grid, 2.0)
        white = self.truth.white_matter.mask.nonzero().double()
        corners = torch.tensor([[-0.25, -0.25, 0.25], [0.25, 0.25, 0.25], [-0.25, 0.25, -0.25], [0.25, -0.25, -0.25]])
        seeds = self.grid.to_world((white[:, None] + corners).reshape(-1, 3))
        tracker = SDStream(step_mm=1.0, angle=math.radians(30), min_length=20.0, max_length=120.0)
        return Probe.of(tracker, seeds, Image(self.grid, self.mask[None]), regions, SoftTermination(0.1, 0.02))

    def refitted(self, signal: Tensor) -> ShField:
        """Fitted again where the signal differs."""
        changed = ((signal != self.signal).any(0) & self.mask).flatten()
        coeffs = self.field.coeffs.clone().flatten(1)
        coeffs[:, changed] = self.model.fit(signal.flatten(1)[:, changed].mT, self.gtab).mT
        return ShField(self.grid, coeffs.reshape(self.field.coeffs.shape), 8)


def hard_count(field: ShField, probe: Probe) -> float:
    """Lines of the tracker's own cutoff with their ends where memberships are at least one half, one in each."""
    total = 0
    for lines in probe.tracker.track(field, probe.seeds, probe.mask, directions=probe.directions):
        first, last = (
            probe.regions.sample(lines.points[i]) >= 0.5 for i in (lines.offsets[:-1], lines.offsets[1:] - 1)
        )
        total += int(((first[:, 0] & last[:, 1]) | (first[:, 1] & last[:, 0])).sum())
    return float(total)


def differences(
    scene: Scene, probe: Probe, found: Any, generator: torch.Generator, n: int
) -> list[tuple[float, float]]:
    """Predicted and actual change for voxels drawn among the 300 that matter most."""
    strength = found.strength().flatten()
    top = strength.argsort(descending=True)[: min(300, int((strength > 0).sum()))]
    pairs = []
    for voxel in top[torch.randperm(len(top), generator=generator)[:n]].tolist():
        noise = torch.randn(len(scene.gtab), generator=generator, dtype=torch.float64)
        move = torch.zeros_like(scene.signal).flatten(1)
        move[:, voxel] = 1e-4 * scene.signal.flatten(1)[:, voxel] * noise
        move = move.reshape(scene.signal.shape)
        two = [float(soft_connection(scene.refitted(scene.signal + sign * move), probe)) for sign in (1, -1)]
        pairs.append((found.predicted_change(scene.signal + move), (two[0] - two[1]) / 2))
    return pairs


def lesions(
    scene: Scene, probe: Probe, found: Any, name: str, generator: torch.Generator, n: int, share: float
) -> list:
    """Predicted, actual (soft) and actual (hard) changes for balls around random places in and near the bundle."""
    near = smooth.dilate(scene.truth.bundles[name].mask, (2, 2, 2)).nonzero()
    places = scene.grid.to_world(near[torch.randperm(len(near), generator=generator)[:n]].double())
    centres = scene.grid.centres(torch.float64)
    before = hard_count(scene.field, probe)
    rows = []
    for place in places:
        inside = (centres - place).norm(dim=-1) < LESION_RADIUS
        altered = scene.signal.clone()
        altered[:, inside] = levelled(scene.signal[:, inside].mT, scene.gtab, share).mT
        field = scene.refitted(altered)
        soft = float(soft_connection(field, probe)) - found.connection
        rows.append((found.predicted_change(altered), soft, hard_count(field, probe) - before))
    return rows


def measure(seeds: int, voxels: int, balls: int, connections: list[str], shares: list[float]) -> dict[str, Any]:
    pairs: list[tuple[float, float]] = []
    ranks: dict[str, list[tuple[float, float]]] = {str(share): [] for share in shares}
    for seed in range(seeds):
        scene = Scene(seed)
        for name in connections:
            generator = torch.Generator().manual_seed(seed)
            probe = scene.probe(name)
            found = sensitivity(scene.model, scene.signal, scene.gtab, scene.field, probe)
            with torch.no_grad():
                pairs += differences(scene, probe, found, generator, voxels)
                for share in shares:
                    rows = np.array(lesions(scene, probe, found, name, generator, balls, share))
                    soft, hard = (float(spearmanr(rows[:, 0], rows[:, k]).statistic) for k in (1, 2))
                    ranks[str(share)].append((soft, hard))
    predicted, actual = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    relative = (predicted - actual).abs() / actual.abs().clamp_min(1e-12)
    return {
        "n": seeds * len(connections),
        "data": f"phantoms of {VOXEL:g} mm, SNR {SNR:g}, connections {', '.join(connections)}, {seeds} noise seeds",
        "finite_differences": {
            "n": len(pairs),
            "relative_error_of_all": float((predicted - actual).norm() / actual.norm()),
            "relative_error_median": float(relative.median()),
            "correlation": float(torch.corrcoef(torch.stack((predicted, actual)))[0, 1]),
        },
        "lesions": {
            share: {
                "n": len(found),
                "lesions_each": balls,
                "rank_correlation_soft": sum(f[0] for f in found) / len(found),
                "rank_correlation_hard_count": sum(f[1] for f in found) / len(found),
                "rank_correlation_soft_least": min(f[0] for f in found),
            }
            for share, found in ranks.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--voxels", type=int, default=6)
    parser.add_argument("--lesions", type=int, default=12)
    parser.add_argument("--connections", nargs="+", choices=CONNECTIONS, default=list(CONNECTIONS))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), help="of anisotropy lost in a lesion")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "sensitivity": measure(options.seeds, options.voxels, options.lesions, options.connections, options.shares)
    }
    command = (
        f"benchmarks/task_sensitivity.py --seeds {options.seeds} --voxels {options.voxels} --lesions {options.lesions} "
        f"--connections {' '.join(options.connections)} --shares {' '.join(f'{s:g}' for s in options.shares)}"
    )
    text = json.dumps(result | {"meta": meta(command)}, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
