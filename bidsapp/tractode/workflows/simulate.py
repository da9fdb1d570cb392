"""Writes a raw BIDS dataset of simulated participants, with everything they were made from in ``derivatives/truth``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tractode import __version__
from tractode.errors import OutputError
from tractode.io.atomic import write_text
from tractode.io.builtin_template import load_builtin
from tractode.simulate.tissues import anatomy
from tractode.workflows.simulate_atlas import Atlas, told
from tractode.workflows.simulate_raw import as_json, write_raw
from tractode.workflows.simulate_settings import SimulationSettings
from tractode.workflows.simulate_truth import IGNORED, write_truth
from tractode.workflows.simulate_visit import plan, template_bundles, visit

TRUTH = Path("derivatives") / "truth"


def write_dataset(
    out: Path, settings: SimulationSettings, progress: Callable[[str], None] = lambda text: None
) -> list[str]:
    """The whole dataset; returns the participants' labels. ``out`` must not exist or be empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(
            "The output folder is not empty",
            id="E-OUT-NOTEMPTY",
            path=out,
            needed="a new or empty folder",
            fix="choose another folder, or remove this one first",
        )
    shared = plan(anatomy(*(load_builtin(name) for name in ("T1w", "GM", "WM", "mask"))), settings)
    labels = [f"{number + 1:02d}" for number in range(settings.participants)]
    for number, label in enumerate(labels):
        progress(f"sub-{label}")
        lines = template_bundles(shared, number)
        for session in range(settings.sessions or 1):
            made = visit(shared, number, session, lines)
            write_raw(out, made, settings)
            write_truth(out / TRUTH, made)
    write_descriptions(out, labels, settings, shared.atlas)
    return labels


def write_descriptions(out: Path, labels: list[str], settings: SimulationSettings, atlas: Atlas | None = None) -> None:
    """Descriptions of dataset and truth, the table of participants, and the README."""
    made_by = [{"Name": "tractode-simulate", "Version": __version__}]
    if atlas is not None:
        made_by[0]["Description"] = told(atlas)
    as_json(
        out / "dataset_description.json",
        {
            "Name": "tractode simulated dataset",
            "BIDSVersion": "1.10.0",
            "DatasetType": "raw",
            "Authors": ["tractode-simulate"],
            "GeneratedBy": made_by,
        },
    )
    as_json(
        out / TRUTH / "dataset_description.json",
        {
            "Name": "Truth of the tractode simulated dataset",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": made_by,
        },
    )
    write_text(out / TRUTH / ".bidsignore", "".join(f"{pattern}\n" for pattern in IGNORED))
    rows = "".join(f"sub-{label}\n" for label in labels)
    write_text(out / "participants.tsv", "participant_id\n" + rows)
    noise = "none" if settings.subject.snr is None else f"Rician, SNR {settings.subject.snr:g} in white matter at b=0"
    text = f"Simulated diffusion MRI of {len(labels)} participants made by tractode-simulate {__version__} with seed {settings.seed}.\n\nThe anatomy is nilearn's MNI152NLin2009aSym template, made asymmetric and warped by a known diffeomorphism for each\nparticipant. Noise: {noise}. What the images were made from is in derivatives/truth.\n\nThe template is the ICBM 152 nonlinear symmetric average (2009a), McConnell Brain Imaging Centre, McGill University.\n"
    write_text(out / "README", text if atlas is None else f"{text}\n{told(atlas)}\n")
