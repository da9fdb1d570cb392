"""New lines of every bundle of the atlas, for `codec_naming.py`: near the bundle's held-out lines, named right, no copies.

Distances are root mean squares over 31 points, mm, whichever way a line runs, to the nearest line of the other set. The yardsticks are the
atlas's own training lines against the held-out ones, and the held-out lines against each other; a copy would lie within the codec's
own error of a training line.
"""

from __future__ import annotations

from typing import Any

import torch
from codec_naming_tasks import load_library, model_lines
from torch import Tensor

from tractode.generative.codec import BundleCodec
from tractode.simulate.line_samples import distance_to, one_way

COPY_MM = 1.0


@torch.no_grad()
def synthesis(codec: BundleCodec, n: int = 50, fewest: int = 3) -> dict[str, Any]:
    """Means over the bundles that have at least ``fewest`` held-out lines, and the share of right names of each."""
    if codec.prior is None or codec.namer is None:
        raise ValueError("These weights draw or name nothing.")
    library, generator = load_library(), torch.Generator().manual_seed(0)
    rows, right = [], {}
    for index, name in enumerate(codec.prior.names):
        held = library.lines[(library.bundle == index) & library.is_held_out]
        if len(held) < fewest:
            continue
        train = model_lines(index)
        # As a user gets them: what is decoded from codes.
        lines = codec.lines(codec.dequantise(codec.quantise(codec.prior.sample(name, n, generator)))).float()
        again = codec.dequantise(codec.quantise(codec.latents(one_way(lines))))
        right[name] = float((codec.namer.named(again.float())[0] == index).float().mean())
        to_train = distance_to(lines, train)
        rows.append(
            [
                float(distance_to(lines, held).mean()),
                float(distance_to(train, held).mean()),
                float(_among(held).mean()),
                float(distance_to(held, lines).mean()),
                float(distance_to(held, train[:: max(1, len(train) // n)]).mean()),
                float(to_train.mean()),
                float((to_train < COPY_MM).float().mean()),
                float((_among(train) < COPY_MM).float().mean()),
            ]
        )
    values = torch.tensor(rows).mean(0).tolist()
    names = (
        "to_held_out_mm", "training_to_held_out_mm", "held_out_among_themselves_mm", "held_out_to_drawn_mm",
        "held_out_to_as_many_training_mm", "to_training_mm", "share_within_1_mm_of_training", "training_within_1_mm_of_each_other",
    )  # fmt: skip
    worst = sorted(right.items(), key=lambda pair: pair[1])[:8]
    return {
        "n": len(rows),
        "lines_per_bundle": n,
        **{key: round(value, 3) for key, value in zip(names, values, strict=True)},
        "named_right": round(sum(right.values()) / len(right), 4),
        "named_right_worst": {name: round(value, 2) for name, value in worst},
    }


def _among(lines: Tensor) -> Tensor:
    """Of each line to the nearest other."""
    flat = lines.flatten(1)
    distance = torch.minimum(torch.cdist(flat, flat), torch.cdist(lines.flip(1).flatten(1), flat))
    distance.fill_diagonal_(torch.inf)
    return distance.amin(1) / lines.shape[1] ** 0.5
