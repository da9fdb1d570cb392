"""What is measured of a codec: error in mm, BUAN by DIPY, turning angle, perplexity, bits.

Lines are compared point by point at 64 equally spaced points, in the direction in which they agree better. BUAN is DIPY's
`bundle_shape_similarity` with a clustering threshold of 0 (every line a cluster of its own) in units of 100 mm, as the paper's are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from dipy.segment.bundles import bundle_shape_similarity
from dipy.tracking.streamline import Streamlines as DipyLines
from dipy.tracking.streamline import set_number_of_points
from jaxtyping import Float, Int
from torch import Tensor

from tractode.generative.bundle_groups import scaled

THRESHOLDS = ("0.05", "0.03", "0.02", "0.01")
Record = dict[str, Any]


def distances(found: Float[Tensor, "s 64 3"], truth: Float[Tensor, "s 64 3"]) -> Float[Tensor, "s 64"]:
    """Of every point, mm."""
    direct, turned = ((lines - truth).norm(dim=-1) for lines in (found, found.flip(1)))
    return torch.where((turned.mean(1) < direct.mean(1))[:, None], turned, direct)


def errors(found: Float[Tensor, "s 64 3"], truth: Float[Tensor, "s 64 3"]) -> Record:
    """Mean and 95th percentile over all points, and the 95th percentile over lines of a line's largest error; mm."""
    apart = distances(found, truth)
    return {
        "error_mm": _told(apart.mean()),
        "error_p95_mm": _told(apart.flatten().kthvalue(round(0.95 * apart.numel())).values),
        "largest_of_line_p95_mm": _told(apart.amax(1).quantile(0.95)),
    }


def turning_angle(lines: Float[Tensor, "s p 3"]) -> float:
    """Mean angle between a segment and the next, degrees."""
    steps = torch.nn.functional.normalize(lines.double().diff(dim=1), dim=-1)
    cosine = (steps[:, 1:] * steps[:, :-1]).sum(-1).clamp(-1, 1)
    return _told(cosine.arccos().rad2deg().mean())


class Buan:
    """BUAN of decoded groups against the true ones: what `bundle_shape_similarity` gives where no two lines are alike.

    With a clustering threshold of 0 every line is a cluster of its own, represented by 20 points, so that only DIPY's resampling
    and the adjacency are left; `checked` compares with DIPY's own function.
    """

    def __init__(self, truth: Float[Tensor, "g 64 64 3"]) -> None:
        self.truth = truth
        self._truth = [representatives(group) for group in truth]

    def __call__(self, found: Float[Tensor, "g 64 64 3"]) -> dict[str, Float[Tensor, " g"]]:
        """Of every group, at each threshold."""
        nearest = [_nearest(a, representatives(group)) for a, group in zip(self._truth, found, strict=True)]
        return {
            threshold: torch.tensor([0.5 * sum(float((d < float(threshold)).mean()) for d in both) for both in nearest])
            for threshold in THRESHOLDS
        }

    def checked(self, found: Float[Tensor, "g 64 64 3"], values: dict[str, Float[Tensor, " g"]], n: int = 8) -> float:
        """The largest difference from DIPY's `bundle_shape_similarity` in a few groups."""
        worst = 0.0
        for index in torch.linspace(0, len(found) - 1, n).long().unique().tolist():
            ours, theirs = (_dipy(lines[index]) for lines in (self.truth, found))
            for threshold in THRESHOLDS:
                told = bundle_shape_similarity(
                    ours, theirs, np.random.default_rng(0), clust_thr=[0], threshold=float(threshold)
                )
                worst = max(worst, abs(told - float(values[threshold][index])))
        return worst


def representatives(group: Float[Tensor, "64 64 3"]) -> np.ndarray:
    """Lines of a group by the 20 points at which DIPY compares them, in units of 100 mm. It spaces them twice, as here."""
    once = set_number_of_points(_dipy(group), nb_points=20)
    return np.stack(list(set_number_of_points(once, nb_points=20)))


def _dipy(group: Float[Tensor, "64 64 3"]) -> DipyLines:
    return DipyLines(list(scaled(group).numpy().astype(np.float32)))


def _nearest(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distance (MDF) of every line to the nearest of the other group, both ways."""
    direct, turned = (np.linalg.norm(a[:, None] - other[None], axis=-1).mean(-1) for other in (b, b[:, ::-1]))
    apart = np.minimum(direct, turned)
    return apart.min(1), apart.min(0)


def by_bundle(values: Float[Tensor, " g"], bundle: Int[Tensor, " g"], names: tuple[str, ...]) -> Record:
    """Mean and deviation over the groups of each bundle."""
    found = {}
    for index in bundle.unique().tolist():
        own = values[bundle == index]
        found[names[index]] = {"mean": _told(own.mean()), "sd": _told(own.std(correction=0)), "n": len(own)}
    return found


def perplexity(columns: Int[Tensor, "r q"]) -> tuple[float, float]:
    """Of codes with one alphabet a column: the mean over columns of exp(entropy), and the summed entropies in bits."""
    entropies = []
    for column in columns.T:
        share = torch.unique(column, return_counts=True)[1].double() / len(column)
        entropies.append(-(share * share.log()).sum())
    every = torch.stack(entropies)
    return _told(every.exp().mean()), _told(every.sum() / np.log(2))


def _told(value: Tensor | float) -> float:
    return float(f"{float(value):.5g}")
