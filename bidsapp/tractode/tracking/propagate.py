"""Tracking until enough streamlines are found, or until the seeds are spent: seeding, tracker and rules put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from tractode.contracts import Orientations, Rule, Tracker
from tractode.fields import Image, Streamlines
from tractode.tracking.rules import apply_all
from tractode.tracking.seeding import MaskSeeding, Seeding

SEEDS_PER_STREAMLINE = 100


def track_until(
    tracker: Tracker,
    field: Orientations,
    mask: Image,
    seeding: Seeding | Image,
    n_streamlines: int | None,
    generator: torch.Generator,
    max_seeds: int | None = None,
    *,
    n_seeds: int | None = None,
    rules: Sequence[Rule] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Streamlines]:
    """Batches of the lines that pass every rule, in the order of their seeds. A batch is never empty.

    They add up to ``n_streamlines`` where that is given, or to fewer where ``max_seeds`` (default 100 a streamline) or
    the mechanism's own seeds are spent; without it, to all lines of ``n_seeds`` seeds (default: all that a finite
    mechanism has). ``per_streamline["seed"]`` counts the seeds drawn. The lines depend on the request and the generator
    only, not on the tracker's batch size; one batch at a time is in memory.

    Parameters
    ----------
    mask
        Where lines may go; a rule may let the tracker go further, to see where a line left it.
    seeding
        A mechanism, or a mask to draw from uniformly.
    n_seeds
        Seeds to draw at most, whatever is found of them.
    on_progress
        Called after every batch with the lines found and the seeds drawn so far.
    """
    source = (MaskSeeding(seeding) if isinstance(seeding, Image) else seeding).begun()
    budget = _budget(source, n_streamlines, max_seeds, n_seeds)
    for rule in rules:
        mask = rule.tracking_mask(mask)
    follow = tracker.prepared(field, mask)
    drawn = found = 0
    while drawn < budget and (n_streamlines is None or found < n_streamlines):
        n = min(source.draw_size(n_streamlines, drawn), budget - drawn)
        seeds = source.draw(n, generator, drawn)
        options: dict[str, Any] = {} if seeds.directions is None else {"directions": seeds.directions}
        for batch in follow(seeds.points, generator, **options):
            kept = apply_all(rules, batch)
            if n_streamlines is not None and len(kept) > n_streamlines - found:
                kept = kept.select(torch.arange(n_streamlines - found, device=kept.points.device))
            found += len(kept)
            if len(kept):
                source.observe(kept)
                yield _counted_from(kept, drawn)
            if on_progress is not None:
                on_progress(found, drawn + _seeds_seen(batch, n))
            if n_streamlines is not None and found >= n_streamlines:
                return
        drawn += n


def _budget(source: Seeding, n_streamlines: int | None, max_seeds: int | None, n_seeds: int | None) -> int:
    """The number of seeds to draw at most."""
    given = [count for count in (max_seeds, n_seeds, source.total) if count is not None]
    if n_streamlines is not None and max_seeds is None and n_seeds is None and source.total is None:
        given.append(SEEDS_PER_STREAMLINE * n_streamlines)
    if not given:
        raise ValueError(
            f"{type(source).__name__} never ends: say how many streamlines (n_streamlines) or seeds (n_seeds) there shall be."
        )
    return min(given)


def _seeds_seen(batch: Streamlines, n: int) -> int:
    """Seeds of the draw that are known to be done: up to the last line's."""
    seeds = batch.per_streamline.get("seed")
    return n if seeds is None or not len(seeds) else min(n, int(seeds[-1]) + 1)


def _counted_from(lines: Streamlines, first: int) -> Streamlines:
    """Seed indices counted over all draws."""
    data = {k: v + first if k == "seed" else v for k, v in lines.per_streamline.items()}
    return Streamlines(lines.points, lines.offsets, lines.space, lines.per_point, data)
