"""Where the streamlines of each method of `gentract.py` come from: atlas, generators, what they are shown, what carries them.

Generators' lines are kept in the work folder in the training space (they do not depend on what carries them), named for the
weights' hash, the field shown, how many and how they were drawn.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tractode.evaluate.connections import BundleRegions
from tractode.fields import Image, ShField, Streamlines, Transform
from tractode.generative import knots as knotted
from tractode.generative.gentract import GenTract, Sampling, Seen
from tractode.generative.space import SPACE
from tractode.io.weights import SUMS, read_weights
from tractode.simulate.bundle_library import BundleLibrary

EVENNESS = 0.5  # as generators draw: bundles by the square root of their number of lines
SEED = 7


@dataclass(frozen=True, eq=False)
class Case:
    """A held-out test subject at one quality of its scan.

    ``fod`` and ``white`` (fraction) are on the scan's grid, ``field`` on the training grid. ``registered`` is the app's own
    registration of the T1w, scan → training space; ``affine`` its affine part; ``centred`` a shift that lays the middle of
    the brain on the template's and nothing else: the atlas "as it is". ``regions`` and ``lines`` are the truth in the scan's space.
    """

    number: int
    quality: str
    fod: ShField
    white: Image
    field: ShField
    registered: Transform
    affine: Transform
    centred: Transform
    regions: dict[str, BundleRegions]
    lines: dict[str, Streamlines]

    @property
    def space(self) -> str:
        return self.fod.grid.space


@dataclass(frozen=True, eq=False)
class Made:
    """Lines and the bundle that each was made for (``None`` for local trackers); generators' also their confidence."""

    lines: Streamlines
    made_for: list[str] | None = None
    confidence: Tensor | None = None

    def carried(self, transform: Transform) -> Made:
        """Moved from the training space to where ``transform`` comes from."""
        bare = Streamlines(self.lines.points, self.lines.offsets, self.lines.space)
        return dataclasses.replace(self, lines=bare.moved(transform.inverse()))


def atlas_lines(
    library: BundleLibrary, n: int, bundles: set[str], seed: int = SEED, spread: bool = False, own: Tensor | None = None
) -> Made:
    """``n`` lines of the library that are not held out, drawn as generators draw them, of the given bundles.

    No line is taken twice before all of its bundle are taken. ``spread`` shifts and bends each as the generator's start is;
    ``own`` are the library's lines as they run in a person, to take in their place.
    """
    generator = torch.Generator().manual_seed(seed)
    free = ~library.is_held_out & torch.tensor([name in bundles for name in library.names])[library.bundle]
    counts = torch.bincount(library.bundle[free], minlength=len(library.names)).double()
    share = torch.where(counts > 0, counts ** (1 - EVENNESS), torch.zeros_like(counts))
    wanted = (share / share.sum() * n).round().long()
    rows = []
    for index in wanted.nonzero().ravel().tolist():
        these = (free & (library.bundle == index)).nonzero().ravel()
        n_rounds = -(-int(wanted[index]) // len(these))
        many = [these[torch.randperm(len(these), generator=generator)] for _ in range(n_rounds)]
        rows.append(torch.cat(many)[: int(wanted[index])])
    chosen = torch.cat(rows)
    knots = knotted.knots_of((library.lines if own is None else own)[chosen])
    if spread:
        draws = torch.randn(len(chosen), 4, 3, generator=generator)
        knots = knots + knotted.smooth_noise(draws, (1.5, 1.0, 0.7, 0.5))
    return Made(_as_lines(knotted.points_of(knots)), [library.names[i] for i in library.bundle[chosen].tolist()])


def _as_lines(points: Tensor) -> Streamlines:
    n, m = points.shape[:2]
    return Streamlines(points.reshape(-1, 3).float(), torch.arange(0, n * m + 1, m), SPACE)


class Drawer:
    """A generator's lines, drawn once for each field and way of drawing and kept on disk."""

    def __init__(self, folder: Path, weights: Path | GenTract, **sampling: Any) -> None:
        if isinstance(weights, GenTract):
            self.model, self.hash = weights, "tiny"
        else:
            self.model = GenTract.from_weights(*read_weights(weights))
            self.hash = hashlib.sha256((weights / SUMS).read_bytes()).hexdigest()[:10]
        self.model = self.model.with_sampling(**sampling)
        self.folder = folder / self.hash

    def made(
        self, shown: ShField | None, name: str, n: int, seed: int = SEED, bundles: tuple[str, ...] | None = None, **sampling: Any
    ) -> Made:  # fmt: skip
        """``n`` lines for a field (``None``: for nobody) called ``name``, in the training space; ``sampling`` changes how."""
        model = self.model.with_sampling(**sampling)
        told = "-".join(f"{key}{value}" for key, value in sorted(sampling.items()))
        some = "" if bundles is None else hashlib.sha256(" ".join(bundles).encode()).hexdigest()[:8]
        path = self.folder / f"{name}-n{n}-seed{seed}-{told}-{some}.npz"
        if not path.is_file():
            self._keep(path, model, shown, n, seed, bundles)
        with np.load(path) as kept:
            points, confidence, bundle = (torch.from_numpy(kept[key]) for key in ("points", "confidence", "bundle"))
        return Made(_as_lines(points), [model.names[i] for i in bundle.tolist()], confidence)

    def _keep(self, path: Path, model: GenTract, shown: ShField | None, n: int, seed: int, bundles: Any) -> None:
        seen: Seen = model.nobody() if shown is None else model.context(shown)
        parts = list(model.sample(seen, n, torch.Generator().manual_seed(seed), bundles))
        points = [part.points.reshape(len(part), -1, 3).numpy() for part in parts]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part.npz")
        np.savez(
            partial,
            points=np.concatenate(points or [np.zeros((0, knotted.N_POINTS, 3), np.float32)]),
            confidence=np.concatenate([part.per_streamline["confidence"][:, 0].numpy() for part in parts] or [[]]),
            bundle=np.concatenate([part.per_streamline["bundle"][:, 0].numpy() for part in parts] or [[]]).astype(
                np.int64
            ),
        )
        partial.rename(path)

    def mean_field(self) -> ShField:
        """What the training subjects look like on average (to the order that the weights hold)."""
        mean = self.model.network.mean
        coeffs = torch.zeros(28, *mean.shape[1:])
        coeffs[: len(mean)] = mean
        return ShField(self.model.grid, coeffs, 6)

    def facts(self) -> dict[str, Any]:
        """What the weights are, for the results."""
        network = self.model.network
        return {
            "hash": self.hash,
            "parameters": sum(p.numel() for p in network.parameters()),
            "path": self.model.path_name,
            "sampling": dataclasses.asdict(self.model.sampling),
        }


DEFAULTS = Sampling()
