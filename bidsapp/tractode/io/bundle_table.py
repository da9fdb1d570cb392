"""The table of bundles (``_bundles.tsv``): one row a bundle, its summary and then its latent."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from tractode.evaluate.bundle_summary import BundleSummary

#: Column → meaning and unit of the table of bundles; the latents follow them.
COLUMNS: dict[str, dict[str, str]] = {
    "bundle": {"Description": "Name of the bundle"},
    "n_streamlines": {"Description": "Streamlines that were given this name"},
    "length": {"Description": "Their mean length in the space of the scan", "Units": "mm"},
    "width": {
        "Description": "Root mean square distance of the lines from their mean course, in the space of the codec",
        "Units": "mm",
    },
    "confidence": {"Description": "Mean probability of the name, calibrated", "Units": "1"},
}
LATENT = "latent_"


def table_of(summaries: Sequence[BundleSummary], latents: Float[Tensor, "s d"]) -> str:
    """The table of bundles as TSV."""
    stream = io.StringIO()
    rows = csv.writer(stream, delimiter="\t", lineterminator="\n")
    rows.writerow([*COLUMNS, *(f"{LATENT}{k:03d}" for k in range(latents.shape[1]))])
    for one, latent in zip(summaries, latents.tolist(), strict=True):
        measured = (f"{one.length:.2f}", f"{one.width:.3f}", f"{one.confidence:.4f}")
        rows.writerow([one.name, one.n_lines, *measured, *(f"{value:.5f}" for value in latent)])
    return stream.getvalue()


def columns_of(n_latents: int) -> dict[str, dict[str, str]]:
    """The data dictionary of `table_of`."""
    latents = {
        f"{LATENT}{k:03d}": {"Description": f"Component {k} of the codec's latent of the bundle's mean course", "Units": "1"}
        for k in range(n_latents)
    }  # fmt: skip
    return COLUMNS | latents
