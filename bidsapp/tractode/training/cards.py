"""The model cards that ``tractode-train`` writes beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def contrastive_card(n_parameters: int, record: Mapping[str, Any], left_out: Sequence[str], table: str) -> str:
    """The card of the contrastive descriptor."""
    loop = record["loop"]
    return f"""# Contrastive descriptors

A network of {n_parameters:,} parameters that gives each voxel of a head image a descriptor of {record["network"]["channels"]} numbers, alike in any two contrasts
(`registration/metrics/contrastive.py`; theory: `docs/theory/contrastive.md`).

**Use.** As the metric of a registration between images of different contrast, at voxels of 2–3 mm. Not for anything about a person's health.

**Training.** {loop["steps"]} steps of InfoNCE on pairs of random paintings of the label maps {", ".join(record["label_maps"])} (SynthSeg's, Apache-2.0), seed {loop["seed"]}:
`tractode-train contrastive LABELMAPS --out FOLDER --steps {loop["steps"]} --seed {loop["seed"]}`. No scan was used.

**Measured** on {", ".join(left_out) or "nobody"}, not trained on: share of 2,000 random places per person in the brain whose least difference along a random line (±6 mm, every
1 mm, cubes of 3 voxels of 2 mm) lies within 1 mm of the truth. Chance is 0.23.

{table}

**Limits.** Painted tissues are uniform but for noise: vessels, lesions and texture were never seen. Few heads, all adult. Real contrasts are less various
than the random ones it was trained for.
"""
