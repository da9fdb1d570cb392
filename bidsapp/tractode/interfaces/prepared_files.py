"""What a prepared dwi run leaves behind: the series and its tables, the mask, numbers of motion and quality, and their pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tractode.bids import quality_tables, sidecar
from tractode.bids.found import DwiRun
from tractode.bids.manifest import StepWriter
from tractode.bids.names import derivative
from tractode.fields import DWI, Image
from tractode.interfaces.preprocess import Part, Steps
from tractode.interfaces.quality_rows import confound_columns, confound_rows, image_row
from tractode.interfaces.step import Job, write_with_sidecar
from tractode.io.gradients import write_bvals, write_bvecs, write_mrtrix_gradients
from tractode.reports import figures_preprocessing
from tractode.reports.figures_preprocessing import Glance
from tractode.reports.reportlet import Reportlet

_NAME = {"datatype": "dwi", "desc": "preproc", "suffix": "dwi"}
#: step → (key of a reference, what was done with it)
_CITED = {
    "denoising": ("veraart2016", "Noise was removed by principal components of neighbourhoods (MP-PCA)"),
    "unringing": ("kellner2016", "Gibbs ringing was removed by local shifts of less than a voxel"),
    "motion": (
        "cieslak2024",
        "{what} corrected by registering every volume to its prediction from all the others, and undone{together} in one interpolation",
    ),
    "outliers": ("andersson2016", "Slices that had lost signal were replaced by their prediction"),
    "bias": ("tustison2010", "The shading of receive coils was divided out"),
    "combining": ("cieslak2021", "The dwi runs of the session were combined into one series"),
}


def sources_of(run: DwiRun) -> list[Path]:
    return [path for scan in run.scans for path in (scan.path, scan.bval, scan.bvec)]


def write_uncorrected(writer: StepWriter, job: Job, run: DwiRun, reference: Image) -> None:
    """The mean b=0 image as acquired."""
    text = "Mean of the b=0 volumes as acquired, distorted"
    content = sidecar.dwiref_sidecar([run.path, run.bval], job.bids_dir, text)
    role = "uncorrected" if "uncorrected" not in writer.roles else f"uncorrected-{run.name}"
    write_with_sidecar(
        writer, role, reference, content, run.entities, datatype="dwi", desc="uncorrected", suffix="dwiref"
    )


def write_scan(
    writer: StepWriter, job: Job, run: DwiRun, scan: DWI, reference: Image, facts: Mapping[str, Any]
) -> None:
    """The series as it is given on, with its tables, reference and mask."""
    sources = sources_of(run)
    done = [name for name, record in facts.get("Preprocessing", {}).items() if record["Done"]]
    done += ["Susceptibility"] if facts.get("SusceptibilityDistortionCorrected") else []
    said = f"corrected: {', '.join(done)}" if done else "as acquired: no denoising, motion or distortion correction"
    said = f"preprocessed by {run.done_by}" if run.done_by else said
    text = f"Diffusion-weighted images, checked; {said}"
    content = sidecar.preproc_sidecar(text, sources, job.bids_dir, metadata=run.metadata, **facts)
    write_with_sidecar(writer, "dwi", Image(scan.grid, scan.signal), content, run.entities, **_NAME)
    tables = {
        "bval": (".bval", lambda path: write_bvals(scan.gtab, path)),
        "bvec": (".bvec", lambda path: write_bvecs(scan.gtab, scan.grid.affine, path)),
        "mrtrix-gradients": (".b", lambda path: write_mrtrix_gradients(scan.gtab, path)),
    }
    for role, (extension, write) in tables.items():
        writer.write(role, derivative(run.entities, extension=extension, **_NAME), write)
    content = sidecar.dwiref_sidecar(sources, job.bids_dir)
    write_with_sidecar(writer, "dwiref", reference, content, run.entities, datatype="dwi", suffix="dwiref")
    content = sidecar.mask_sidecar(sources, job.bids_dir, "Brain mask of the mean b=0 image")
    write_with_sidecar(
        writer, "mask", Image(scan.grid, scan.mask[None]), content, run.entities, datatype="dwi", desc="brain", suffix="mask"
    )  # fmt: skip


# --- tables ---------------------------------------------------------------------------------------------------------------


def write_quality(
    writer: StepWriter, job: Job, run: DwiRun, parts: Sequence[Part], raw: Sequence[dict[str, Any]], scan: DWI
) -> None:
    """``image_qc``, and where motion was found ``confounds`` and ``slice_qc``."""
    row = image_row(derivative(run.entities, extension=".nii.gz", **_NAME).name, parts, raw, scan)
    _write_table(writer, job, run, "image_qc", [row], {"datatype": "dwi", "desc": "image", "suffix": "qc"})
    writer.facts["image_quality"] = {key: value for key, value in row.items() if not _is_missing(value)}
    rows = [row for part in parts for row in confound_rows(part)]
    if rows:
        _write_table(
            writer, job, run, "confounds", rows, {"datatype": "dwi", "desc": "confounds", "suffix": "timeseries"}
        )
        name = derivative(run.entities, datatype="dwi", desc="slice", suffix="qc", extension=".json")
        writer.write_json("slice-qc", name, _slices(job, run, parts))


def write_noise(writer: StepWriter, job: Job, run: DwiRun, noise: Image) -> None:
    """The level that errors of models follow from: what denoising leaves of the noise lies where models look for signal."""
    content = sidecar.qc_sidecar(
        "Standard deviation of the noise in one voxel of one volume as it was measured, interpolated and scaled as the series was; "
        "of several runs the root mean square over their volumes",
        sources_of(run), job.bids_dir, Units="arbitrary", Method="MP-PCA",
    )  # fmt: skip
    name_of = {"datatype": "dwi", "desc": "noise", "suffix": "dwimap"}
    write_with_sidecar(writer, "noise", noise, content, run.entities, **name_of)


def _slices(job: Job, run: DwiRun, parts: Sequence[Part]) -> dict[str, Any]:
    """Every slice's deviation from its prediction, volume by volume, which had lost signal, and which of these stayed as they were."""
    runs = {
        part.run.name: {
            "SliceAxis": "ijk"[part.estimate.slice_axis],
            "Outliers": part.estimate.outliers.nonzero().tolist(),
            "NotReplaced": [] if part.unreplaced is None else part.unreplaced.nonzero().tolist(),
            "Deviation": [[round(value, 3) for value in row] for row in part.estimate.scores.tolist()],
        }
        for part in parts
        if part.estimate is not None
    }
    text = "Deviation of every slice (volume by volume) from its prediction in robust standard deviations; Outliers: pairs of volume and slice, counted from 0, that had lost signal; NotReplaced: those of them that no other volume could replace"
    return sidecar.qc_sidecar(text, sources_of(run), job.bids_dir, Runs=runs)


def _write_table(
    writer: StepWriter, job: Job, run: DwiRun, kind: str, rows: Sequence[Mapping[str, Any]], name: Mapping[str, str]
) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = quality_tables.table(rows)
    path = derivative(run.entities, extension=".tsv", **name)
    writer.write(kind.replace("_", "-"), path, partial(Path.write_text, data=text, encoding="utf-8"))
    content = quality_tables.dictionary(kind, columns)
    writer.write_json(f"{kind.replace('_', '-')}-sidecar", path.with_suffix(".json"), content)


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


# --- words and pictures -----------------------------------------------------------------------------------------------------


def tell(writer: StepWriter, parts: Sequence[Part], steps: Steps) -> None:
    """The steps for the report, and what to cite for those that were done."""
    writer.facts["preprocessing"] = steps.records
    done = [name for name, record in steps.records.items() if record["done"]]
    cited = [name for name in done if name in _CITED and steps.records[name].get("slices") != 0]
    has_eddy = any(part.estimate is not None and part.encoding is not None for part in parts)
    words = {
        "what": "Head motion and eddy currents were" if has_eddy else "Head motion was",
        "together": " together with susceptibility distortion"
        if any(p.distortion.get("applied") for p in parts)
        else "",
    }
    writer.facts["sentences"] = [[_CITED[name][1].format(**words), _CITED[name][0]] for name in cited]
    estimates = [part.estimate for part in parts if part.estimate is not None]
    if estimates:
        writer.facts["outlier_slices"] = sum(int(estimate.outliers.sum()) for estimate in estimates)


def said_of(parts: Sequence[Part], steps: Steps) -> dict[str, Any]:
    """The steps as the sidecar has them; of several runs the first one's, and ``Runs`` says what the others' were."""
    content = {name.capitalize(): _said(record) for name, record in steps.records.items()}
    if len(parts) > 1:
        runs = {part.run.name: {k.capitalize(): _said(v) for k, v in part.steps.records.items()} for part in parts[1:]}
        content["Combining"]["Runs"] = runs
    return content


def _said(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"Done": record["done"], "Reason": record["why"]} | {
        "".join(word.capitalize() for word in key.split("_")): value
        for key, value in record.items()
        if key not in ("done", "why") and value is not None
    }


def figures(
    run: DwiRun,
    parts: Sequence[Part],
    steps: Steps,
    before: Sequence[Glance],
    after: Glance,
    shading: Image | None,
    scan: DWI,
) -> list[Reportlet]:
    """The table of steps, and a picture of each that was done."""
    name, mask = run.name, Image(scan.grid, scan.mask[None])
    found = [figures_preprocessing.steps_table(steps.records, run=name)]
    if parts[0].noise is not None:
        found.append(figures_preprocessing.noise(parts[0].noise, mask, run=name))
    if any(record["done"] for record in steps.records.values()):
        found.append(
            figures_preprocessing.before_after(before[0].weighted, after.weighted, mask, after.shell, run=name)
        )
        found.append(figures_preprocessing.carpet(before, after, run=name))
    for part in parts:
        if part.estimate is None:
            continue
        columns = confound_columns(part)
        is_b0 = part.scan.gtab.is_b0
        found.append(figures_preprocessing.motion_traces(columns, is_b0, run=name, part=_part_of(part, run)))
        found.append(
            figures_preprocessing.slice_map(
                part.estimate.scores, part.estimate.outliers, is_b0, run=name, part=_part_of(part, run)
            )
        )
    if shading is not None:
        found.append(figures_preprocessing.shading(shading, mask, run=name))
    return found


def _part_of(part: Part, run: DwiRun) -> str:
    return "" if part.run.name == run.name else part.run.name
