"""The model cards that ``tractode-train`` writes beside the weights."""

from __future__ import annotations

import re
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


ATLAS_LICENCE = """The weights in this folder (model*.safetensors, settings.toml) are licensed under the

    Creative Commons Attribution-ShareAlike 4.0 International License (CC BY-SA 4.0)
    https://creativecommons.org/licenses/by-sa/4.0/legalcode

They were learned from, and hold streamlines of, the HCP1065 population-based tractography atlas:

    F.-C. Yeh, "Population-based tract-to-region connectome of the human brain and its hierarchical topology",
    Nature Communications 13, 4933 (2022), https://doi.org/10.1038/s41467-022-32595-4, CC BY-SA 4.0

What was changed: streamlines were resampled and stored as float16; a network was trained on participants simulated from them.

The atlas was made from data of the Human Connectome Project, WU-Minn Consortium (principal investigators David Van Essen and
Kamil Ugurbil; 1U54MH091657), funded by the 16 NIH institutes and centers that support the NIH Blueprint for Neuroscience
Research, and by the McDonnell Center for Systems Neuroscience at Washington University.

The code of tractode is licensed under the Apache License 2.0; these terms do not extend to it, nor its terms to these weights.
"""
"""Beside weights that were made with the atlas named in it."""


_FAMILIES = re.compile("(Association|Projection(BasalGanglia|Brainstem)|Commissure|Cerebellum)_")


def is_hcp1065(names: Sequence[str]) -> bool:
    """Whether bundles are named as the atlas named in `ATLAS_LICENCE` names its own."""
    return sum(bool(_FAMILIES.match(name)) for name in names) > 0.5 * len(names)


def gentract_card(training: Mapping[str, Any], metrics: Mapping[str, Any] | None = None) -> str:
    """The card of a generator of streamlines.

    Parameters
    ----------
    training
        The table ``training`` of the settings beside the weights.
    metrics
        Results of the benchmark (``benchmarks/results/gentract.json``), as plain data.
    """
    curve = "\n".join(f"| {int(step):,} | {loss:.4f} |" for step, loss in training["curve"])
    measured = (
        tables_of({group: metrics[group] for group in _GROUPS if group in metrics}, _COLUMNS)
        if metrics
        else "Not measured yet (`tractode-train card FOLDER --metrics FILE` fills this in)."
    )
    return f"""# Generative tractography ({training["recipe"]})

A network of {training["n_parameters"]:,} parameters that draws whole streamlines of {training["n_bundles"]} known bundles, given a participant's fibre orientations in the
space MNI152NLin2009aSym (theory: `docs/theory/gentract.md`; published idea: Sargood et al. 2025, doi:10.48550/arXiv.2511.13183).

**Use.** `tractode … --tracking gentract`, or `GenTract.from_weights(*read_weights(folder))`. For research on noisy or coarse scans of whole adult brains;
not for anything about a person's health, and not for surgery.

**Licence and data.** {licence_words(training)}

**Training.** {_subjects_words(training)} {training["steps"]:,} steps in {training["minutes"]:.3g} minutes on {training["device"]},
seed {training["seed"]}, path `{training["path"]}`, torch {training["torch"]}:

```
{training["command"]}
```

| up to step | mean loss |
|---|---|
{curve}

{_held_out_words(training)}

## Measured

{measured}

## Where it fails

- It knows its bundles only: a connection that is not in its atlas is never drawn, and one that a person lacks may be drawn all the same, with little
  confidence.
- Participants were simulated from template tissue: lesions, tumours, oedema, large ventricles, children and animals were not seen.
- Displacements far beyond 10 mm after registration are not followed; a registration that fails makes every line wrong. The app refuses scans whose
  registration did not pass, that cover less than 85 % of the white matter, or whose directions are unlike any brain's.
- Density of lines follows the atlas, not the number of axons: do not count them.
- Confidence is a ranking, not a probability: of simulated lines with a stated 0.05, 0.14 and 0.24, 0.32, 0.48 and 0.58 joined the right regions, and 0.03, 0.08 and 0.18 had a
  true line of their bundle within 4 mm.
- It follows its subject only part of the way: a bundle shifted by 8 mm moved by 2 mm in what is drawn.
"""


def licence_words(training: Mapping[str, Any]) -> str:
    """What may be done with weights that were trained on an atlas, and whom to name."""
    if not training["is_hcp1065"]:
        return (
            f"Bundles of the folder `{training['atlas']}`, and the simulator's own courses. What may be done with the weights depends on that folder's "
            "terms, and on those of the participants they were trained on."
        )
    real = " and on the terms of the participants below" if training.get("n_participants") else ""
    return (
        f"CC BY-SA 4.0 (`LICENSE` in this folder){real}: the weights hold streamlines of, and learned from, the HCP1065 atlas (Yeh 2022, "
        "doi:10.1038/s41467-022-32595-4, CC BY-SA 4.0). Data were provided in part by the Human Connectome Project, WU-Minn Consortium (1U54MH091657). "
        "The code is Apache-2.0."
    )


def _subjects_words(training: Mapping[str, Any]) -> str:
    words = []
    if training["n_synthetic"]:
        words.append(
            f"{training['n_synthetic']} participants simulated from the atlas and the simulator's courses (shifted, bent, thinned, left out; scanned with "
            "noise, deconvolved, registration errors of 0.5–3 mm); every third line of each bundle of the atlas was left out."
        )
    if training["n_participants"]:
        words.append(
            f"Real participants: {training['n_participants']} (scans: {training['n_scans']}), and {training['n_held_out']} more held out; "
            f"{training['n_paired']:,} of {training['n_read']:,} streamlines lay within {training['reach_mm']:g} mm of the atlas's and were learned from."
        )
    return " ".join(words)


def _held_out_words(training: Mapping[str, Any]) -> str:
    losses = training["losses"]
    if "held_out" not in losses:
        return "No real participant was held out; simulated ones that were not learned from are under *Measured*."
    return f"Mean loss after training: {losses['learned']:.4f} on subjects that were learned from, {losses['held_out']:.4f} on real participants that were not."


# What a card shows of the benchmark; the rest is in its result file.
_GROUPS = ("baselines", "conditioning", "tables", "speed")
_COLUMNS = (
    "valid_rate", "bundles_found", "overlap", "overreach", "mdf_mm", "streamlines_per_s", "peak_rss_mb", "seconds", "n",
)  # fmt: skip


def tables_of(results: Mapping[str, Any], columns: Sequence[str] = (), level: int = 3) -> str:
    """Every group of rows of numbers in nested results as a table; ``x_sd`` stands behind ``x`` as ±.

    Only ``columns`` are shown, where some are given.
    """
    blocks = []
    for name, group in results.items():
        if name == "meta" or not isinstance(group, Mapping):
            continue
        rows = {key: row for key, row in group.items() if isinstance(row, Mapping) and _numbers(row)}
        if rows:
            blocks.append(f"{'#' * level} {name}\n\n{_table(rows, columns)}")
        deeper = {key: row for key, row in group.items() if isinstance(row, Mapping) and key not in rows}
        if deeper and (inner := tables_of(deeper, columns, level + 1)):
            blocks.append(inner if rows else f"{'#' * level} {name}\n\n{inner}")
        if not rows and not deeper and _numbers(group):
            blocks.append(f"{'#' * level} {name}\n\n{_table({name: group}, columns)}")
    return "\n\n".join(blocks)


def _numbers(row: Mapping[str, Any]) -> dict[str, int | float]:
    return {key: value for key, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def _table(rows: Mapping[str, Mapping[str, Any]], wanted: Sequence[str]) -> str:
    found = dict.fromkeys(key for row in rows.values() for key in _numbers(row) if not key.endswith("_sd"))
    columns = [key for key in found if not wanted or key in wanted]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(_cell(row, column) for column in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], column: str) -> str:
    value, spread = row.get(column), row.get(f"{column}_sd")
    if not isinstance(value, int | float):
        return "–"
    told = f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
    return f"{told} ± {spread:.2g}" if isinstance(spread, int | float) else told
