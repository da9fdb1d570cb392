"""The Tractometer's scores of a tractogram against known bundles: connections, bundles found, and their extent.

Renauld et al., Sci Rep 2023, doi:10.1038/s41598-023-28560-y: shares of valid (VC), invalid (IC) and no connections (NC),
bundles found (VB) and made up (IB), and for each bundle the voxels that its valid streamlines visit against its mask:
overlap (OL), overreach (OR) and its form normalised by the truth (ORn), F1. For departures see `connections`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from tractode.evaluate.connections import BundleRegions, Connections, Criteria, connections
from tractode.evaluate.overlap import dice
from tractode.evaluate.visitation import visits
from tractode.fields import Streamlines


@dataclass(frozen=True)
class BundleScore:
    """Voxels of a bundle's valid streamlines against its mask, fractions of 1.

    ``overlap`` is the share of the mask visited (OL); ``overreach`` the share of the visited voxels that lie outside (OR,
    0 where none is visited); ``overreach_of_truth`` the same number of voxels over the mask's (ORn, may exceed 1);
    ``f1`` weighs both (Dice's coefficient of the two sets).
    """

    n_streamlines: int
    overlap: float
    overreach: float
    overreach_of_truth: float
    f1: float


@dataclass(frozen=True, eq=False)
class Tractometry:
    """All scores of one tractogram."""

    connections: Connections
    bundles: dict[str, BundleScore]

    def mean(self, name: str) -> float:
        """Mean of one field of `BundleScore` over all known bundles, found or not; NaN without bundles."""
        values = [getattr(score, name) for score in self.bundles.values()]
        return sum(values) / len(values) if values else math.nan

    def record(self) -> dict[str, Any]:
        """Plain data under the Tractometer's names; ``None`` where a share is undefined."""
        found = self.connections
        counts, invalid = found.counts(), found.invalid_bundles()
        headline: dict[str, float | None] = {
            "VC": found.valid_rate,
            "IC": found.invalid_rate,
            "NC": found.no_connection_rate,
            "WPC": found.wrong_path_rate,
            **{key: self.mean(name) for key, name in _MEANS.items()},
        }
        return {
            "n": len(found.bundle_of),
            **{key: None if value is None or math.isnan(value) else value for key, value in headline.items()},
            "VB": sum(count > 0 for count in counts.values()),
            "IB": len(invalid),
            "bundles": len(counts),
            "per_bundle": {
                name: {"n": score.n_streamlines, **{key: getattr(score, field) for key, field in _MEANS.items()}}
                for name, score in self.bundles.items()
            },
            "invalid_bundles": invalid,
        }


_MEANS = {"OL": "overlap", "OR": "overreach", "ORn": "overreach_of_truth", "F1": "f1"}


def tractometry(
    streamlines: Streamlines, bundles: Mapping[str, BundleRegions], criteria: Criteria | None = None
) -> Tractometry:
    """Score a tractogram; raises `SpaceMismatchError` where a region is of another space."""
    found = connections(streamlines, bundles, criteria)
    scores = {}
    for index, (name, regions) in enumerate(bundles.items()):
        own = (found.bundle_of == index).nonzero().ravel()
        part = streamlines.select(own.to(streamlines.offsets.device))
        scores[name] = bundle_score(visits(part, regions.grid) > 0, regions.mask, len(part))
    return Tractometry(found, scores)


def bundle_score(visited: Bool[Tensor, "i j k"], truth: Bool[Tensor, "i j k"], n_streamlines: int) -> BundleScore:
    """Extent of one bundle from the voxels its streamlines visit and those it should fill."""
    both, outside = int((visited & truth).sum()), int((visited & ~truth).sum())
    n_truth, n_visited = int(truth.sum()), int(visited.sum())
    return BundleScore(
        n_streamlines,
        both / n_truth if n_truth else 0.0,
        outside / n_visited if n_visited else 0.0,
        outside / n_truth if n_truth else 0.0,
        dice(visited, truth) if n_truth or n_visited else 0.0,
    )
