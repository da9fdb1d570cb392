"""Seeds are followed in chunks of a fixed size by threads; the lines are joined in the order of their seeds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tractode.ops.compile import inner
from tractode.tracking.march import Engine, Paths

CHUNK = 256  # seeds: large enough to hide the call, small enough to balance the threads
SEEDS_AT_ONCE = 8192  # few enough that little is thrown away once there are enough lines
# Points, directions, steps of the first and second halves, seeds (counted within the chunk) of the lines kept.
Lines = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Follow = Callable[[np.ndarray, np.ndarray, int], Lines]


@dataclass(frozen=True, eq=False)
class Loop(Engine):
    """A compiled loop, which follows each seed whole; all else is as the method's torch loop has it.

    ``follow_chunk(seeds, directions, first)`` is called for each chunk, ``first`` being the index of its first seed. What
    it does with a seed must depend on that seed, its direction and its index only: then the lines depend neither on the
    chunks nor on how many threads (those of torch) share them.
    """

    follow_chunk: Follow
    march: Engine

    @property
    def seeds_at_once(self) -> int:
        return SEEDS_AT_ONCE

    def follow(self, seeds: Float[Tensor, "s 3"], directions: Float[Tensor, "s 3"], first: int) -> Paths:
        at, towards = seeds.detach().contiguous().numpy(), directions.contiguous().numpy()
        starts = range(0, len(at), CHUNK)

        def chunk(start: int) -> Lines:
            return self.follow_chunk(at[start : start + CHUNK], towards[start : start + CHUNK], first + start)

        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
            parts = list(pool.map(chunk, starts))
        return _join(parts, starts, at.dtype)

    def points(self, paths: Paths, seeds: Float[Tensor, "s 3"]) -> Float[Tensor, "p 3"]:
        return self.march.points(paths, seeds)

    def per_point(self, paths: Paths) -> dict[str, Tensor]:
        return self.march.per_point(paths)


def _join(parts: list[Lines], starts: range, kind: np.dtype) -> Paths:
    """All chunks' lines as one; each chunk's memory is given back once copied."""
    n_points = sum(len(part[0]) for part in parts)
    points, directions = np.empty((n_points, 3), kind), np.empty((n_points, 3), kind)
    none = np.zeros(0, np.int64)
    numbers: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [(none, none, none)]
    end = 0
    parts.reverse()
    for start in starts:
        at, towards, first, second, seed = parts.pop()
        points[end : end + len(at)], directions[end : end + len(at)] = at, towards
        numbers.append((first, second, seed + start))
        end += len(at)
    first_steps, second_steps, seeds = (torch.from_numpy(np.concatenate(row)) for row in zip(*numbers, strict=True))
    offsets = torch.cat((first_steps.new_zeros(1), (1 + first_steps + second_steps).cumsum(0)))
    return Paths(torch.from_numpy(points), torch.from_numpy(directions), offsets, first_steps, second_steps, seeds)


@inner
def grown(array, used, needed):
    """The array itself, or a longer copy of its first ``used`` rows, so that ``needed`` rows fit."""
    if needed <= len(array):
        return array
    longer = np.empty((max(needed, 2 * len(array)), array.shape[1]), array.dtype)
    for row in range(used):  # a loop compiles in a tenth of the time of a slice
        for column in range(array.shape[1]):
            longer[row, column] = array[row, column]
    return longer


@inner
def no_lines(seeds):
    """Room for the lines of a chunk: points, directions, three numbers a line, and how many lines and points there are."""
    points, towards = np.empty((4096, 3), seeds.dtype), np.empty((4096, 3), seeds.dtype)
    return points, towards, np.empty((3, len(seeds)), np.int64), 0, 0


@inner
def with_line(lines, rules, halves, n_first, n_second, seed):
    """The lines and one more, cut at the greatest number of points and left out below the least.

    ``halves[half, t]`` holds position and direction (6 numbers) after t steps; ``halves[0, 0]`` is the seed.
    """
    points, towards, steps, found, used = lines
    n_second = min(n_second, max(rules.maximum - 1 - n_first, 1))
    n = 1 + n_first + n_second
    if n < max(rules.minimum, 2):
        return lines
    points, towards = grown(points, used, used + n), grown(towards, used, used + n)
    steps[0, found], steps[1, found], steps[2, found] = n_first, n_second, seed
    return points, towards, steps, found + 1, append_line(points, towards, used, halves, n_first, n_second)


@inner
def as_arrays(lines):
    """`Lines`."""
    points, towards, steps, found, used = lines
    return points[:used], towards[:used], steps[0, :found], steps[1, :found], steps[2, :found]


@inner
def set_row(row, px, py, pz, x, y, z):
    """Write position and direction."""
    row[0], row[1], row[2], row[3], row[4], row[5] = px, py, pz, x, y, z


@inner
def append_line(points, directions, used, halves, n_first, n_second):
    """Write a line behind the ``used`` points: the first half backwards, then seed and second half. There must be room."""
    for t in range(n_first, -1, -1):
        for axis in range(3):
            points[used, axis] = halves[0, t, axis]
            directions[used, axis] = halves[0, t, 3 + axis] if t else halves.dtype.type(0)
        used += 1
    for t in range(1, n_second + 1):
        for axis in range(3):
            points[used, axis] = halves[1, t, axis]
            directions[used, axis] = halves[1, t, 3 + axis]
        used += 1
    return used
