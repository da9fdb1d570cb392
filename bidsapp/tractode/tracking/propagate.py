"""Tracking until enough streamlines are found: seeds are drawn in a mask until ``n_streamlines`` have been accepted."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tractode.contracts import Orientations, Tracker
from tractode.fields import Image, Streamlines
from tractode.tracking.seeds import seeds_in_mask

LARGEST_DRAW = 32768
SEEDS_PER_STREAMLINE = 100


def track_until(
    tracker: Tracker,
    field: Orientations,
    mask: Image,
    seed_mask: Image,
    n_streamlines: int,
    generator: torch.Generator,
    max_seeds: int | None = None,
) -> Iterator[Streamlines]:
    """Batches that add up to ``n_streamlines``, or to fewer where ``max_seeds`` (default 100 a streamline) are spent.

    The lines come in the order of their seeds and do not depend on the tracker's batch size;
    ``per_streamline["seed"]`` counts the seeds drawn. A batch is never empty.
    """
    budget = SEEDS_PER_STREAMLINE * n_streamlines if max_seeds is None else max_seeds
    # Seeds are drawn in pieces whose size depends on the request only.
    piece = min(LARGEST_DRAW, max(1024, 4 * n_streamlines))
    drawn = found = 0
    while found < n_streamlines and drawn < budget:
        n = min(piece, budget - drawn)
        seeds = seeds_in_mask(seed_mask, n, generator)
        for batch in tracker.track(field, seeds, mask, generator):
            kept = batch.select(torch.arange(min(len(batch), n_streamlines - found), device=batch.points.device))
            found += len(kept)
            if len(kept):
                yield _counted_from(kept, drawn)
            if found >= n_streamlines:
                return
        drawn += n


def _counted_from(lines: Streamlines, first: int) -> Streamlines:
    """Seed indices counted over all draws."""
    data = {k: v + first if k == "seed" else v for k, v in lines.per_streamline.items()}
    return Streamlines(lines.points, lines.offsets, lines.space, lines.per_point, data)
