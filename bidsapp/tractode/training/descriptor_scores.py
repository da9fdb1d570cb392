"""What a trained descriptor is worth: places found on label maps that it never saw, beside MIND and raw intensities."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from tractode.evaluate.found_shifts import found_shifts, score
from tractode.registration.metrics.descriptor import DescriptorMetric
from tractode.registration.metrics.mind import MIND, MIND6
from tractode.registration.metrics.mse import MeanSquares
from tractode.registration.metrics.mutual_information import unit_range
from tractode.simulate.painting import Palette, compact, known_palette, paint, random_palette

Scores = dict[str, dict[str, dict[str, float]]]
_PAIRS = (("T1w", "T1w"), ("T1w", "T2w"), ("T1w", "FLAIR"), ("random", "random"))


def compare(learned: DescriptorMetric, labels: Int[Tensor, "i j k"], seed: int = 0, factor: int = 2) -> Scores:
    """``{pair of contrasts: {descriptor: score}}`` inside the brain of one label map (1 mm, averaged by ``factor``)."""
    metrics = {"contrastive": learned, "mind": MIND(), "mind6": MIND6(), "intensities": MeanSquares()}
    small, codes = compact(labels)
    brain = ((codes > 0) & (codes < 500) & (codes != 24))[small][::factor, ::factor, ::factor]
    generator = torch.Generator().manual_seed(seed)

    def palette(name: str) -> Palette:
        return random_palette(len(codes), generator) if name == "random" else known_palette(codes, name)

    scores: Scores = {}
    for pair in _PAIRS:
        images = [paint(small, palette(name), generator, factor) for name in pair]
        shape = [min(n, m) for n, m in zip(images[0].shape[1:], brain.shape, strict=True)]
        inside = brain[: shape[0], : shape[1], : shape[2]]
        first, second = (
            unit_range(image, inside[None]) for image in (im[:, : shape[0], : shape[1], : shape[2]] for im in images)
        )
        with torch.no_grad():
            scores["→".join(pair)] = {
                name: score(found_shifts(metric, first, second, inside, float(factor), seed=seed))
                for name, metric in metrics.items()
            }
    return scores


def mean(several: list[Scores]) -> Scores:
    """The mean over people; ``n`` is the sum."""
    return {
        pair: {
            name: {
                key: sum(one[pair][name][key] for one in several) / (1 if key == "n" else len(several))
                for key in several[0][pair][name]
            }
            for name in several[0][pair]
        }
        for pair in several[0]
    }


def as_markdown(scores: Scores) -> str:
    """A table: the share of places found within a millimetre."""
    names = list(next(iter(scores.values())))
    lines = [f"| contrasts | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for pair, of in scores.items():
        shares = [f"{of[name]['within_1mm']:.3f}" for name in names]
        lines.append(f"| {pair} | {' | '.join(shares)} |")
    return "\n".join(lines)
