"""Scans that another program preprocessed: BIDS derivatives, and the folders of two large studies that are not BIDS.

===========  ==================================================================================================
``qsiprep``  ``sub-X/[ses-Y/]dwi/*_desc-preproc_dwi.nii.gz``, as QSIPrep and this app write it
``hcpya``    ``<id>/T1w/Diffusion/data.nii.gz``, ``bvals``, ``bvecs`` (Human Connectome Project, young adults)
``ukb``      ``<id>[_20250_<visit>_0]/dMRI/dMRI/data_ud.nii.gz``, ``bvals``, ``bvecs`` (UK Biobank)
===========  ==================================================================================================

No image is opened. Their runs carry `DwiRun.done_by`: nothing that was done is done again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tractode.bids import names
from tractode.bids.found import AnatFile, Discovery, DwiRun, Failure, Participant
from tractode.bids.raw_dataset import choose_labels
from tractode.bids.scan import IMAGES, IgnoredFile
from tractode.errors import InputDataError, InvalidDatasetError, MissingInputError, NoMatchError
from tractode.io.sidecar_reader import read_sidecar
from tractode.io.sniff import check_content

InputType = Literal["bids", "qsiprep", "hcpya", "ukb"]
_SPACES = (None, "ACPC", "T1w", "T2w", "dwi")  # of the person; a template's is no place to follow bundles in
_WRITERS = {"hcpya": "the HCP pipelines", "ukb": "the UK Biobank pipeline"}
_HCP = Path("T1w", "Diffusion", "data.nii.gz")
_UKB = Path("dMRI", "dMRI", "data_ud.nii.gz")


def input_type_of(root: Path) -> InputType:
    """What a folder holds; ``bids`` where nothing tells otherwise."""
    if not root.is_dir():
        return "bids"
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if any(name.startswith("sub-") for name in folders):
        return "qsiprep" if _calls_itself_derivative(root) and _has_preprocessed(root, folders) else "bids"
    layouts: tuple[tuple[InputType, Path], ...] = (("hcpya", _HCP), ("ukb", _UKB))
    return next((kind for kind, inside in layouts for name in folders if (root / name / inside).exists()), "bids")


def processed_by(metadata: Mapping[str, Any]) -> str:
    """Who preprocessed the image of a sidecar; empty for a raw scan. A raw sidecar never names the files it was made from."""
    sources = metadata.get("Sources") or metadata.get("RawSources")
    return "whoever wrote its sidecar, which names the files it was made from" if sources else ""


def _description(root: Path) -> Mapping[str, Any]:
    """What the dataset says of itself; nothing where it cannot be read, which is for the check of the whole to judge."""
    path = root / "dataset_description.json"
    try:
        return read_sidecar(path) if path.is_file() else {}
    except InputDataError:
        return {}


def _calls_itself_derivative(root: Path) -> bool:
    return _description(root).get("DatasetType") == "derivative"


def _has_preprocessed(root: Path, folders: Sequence[str]) -> bool:
    participants = (root / name for name in folders if name.startswith("sub-"))
    return any(True for participant in participants for _ in _dwi_files(participant))


def _dwi_files(participant: Path) -> Iterator[Path]:
    for folder in (participant, *sorted(participant.glob("ses-*"))):
        for extension in IMAGES:
            yield from sorted((folder / "dwi").glob(f"*_desc-preproc_dwi{extension}"))


@dataclass(frozen=True)
class PreprocessedRequest:
    """Where to look, and what for. Labels are without ``sub-`` and ``ses-``; empty means all."""

    root: Path
    kind: InputType
    participants: Sequence[str] = ()
    sessions: Sequence[str] = ()
    anat_modality: str = "T1w"


def find_preprocessed(request: PreprocessedRequest) -> Discovery:
    """Every preprocessed run of a folder, with its anatomy where that lies beside it; a participant may have none of the sessions.

    Raises
    ------
    InvalidDatasetError
        Nothing in the folder is laid out as the kind of input that was asked for.
    NoMatchError
        Labels are not there, or no session is.
    MissingInputError
        Gradient tables are missing from every run.
    """
    found = _derivatives(request) if request.kind == "qsiprep" else _study(request)
    every = list(found)
    if not every:
        raise InvalidDatasetError(
            f"Nothing in the folder is laid out as --input-type {request.kind} wants it",
            id="E-INPUT-LAYOUT",
            path=request.root,
            needed={"qsiprep": "sub-*/[ses-*/]dwi/*_desc-preproc_dwi.nii.gz", "hcpya": f"*/{_HCP}"}.get(
                request.kind, f"*/{_UKB}"
            ),
            fix="give the folder above the participants, or leave out --input-type",
        )
    labels = choose_labels(request.participants, sorted({one.participant for one in every}))
    chosen = [one for one in every if one.participant in labels]
    wanted = [session.removeprefix("ses-") for session in request.sessions]
    kept = [one for one in chosen if not wanted or one.session in wanted]
    if not kept:
        there = sorted({one.session or "none" for one in chosen})
        raise NoMatchError(
            f"No dwi run belongs to session {', '.join(wanted)}",
            id="E-MATCH-SESSION",
            path=request.root,
            needed=f"sessions that exist: {', '.join(there)}",
            fix="correct --session-label",
        )
    left = tuple(
        IgnoredFile(one.dwi.relative_to(request.root).as_posix(), "its session was not asked for")
        for one in chosen
        if one not in kept
    )
    participants = tuple(_participant(label, [one for one in kept if one.participant == label]) for label in labels)
    return Discovery(participants, left)


@dataclass(frozen=True)
class _Found:
    """One preprocessed run and what lies beside it."""

    dwi: Path
    bval: Path
    bvec: Path
    entities: dict[str, str]
    done_by: str
    mask: Path | None
    anat: tuple[Path, str] | None  # and its modality
    sidecar: Path | None = None

    @property
    def participant(self) -> str:
        return self.entities["sub"]

    @property
    def session(self) -> str | None:
        return self.entities.get("ses")


def _participant(label: str, found: Sequence[_Found]) -> Participant:
    runs, failures, anats = [], [], {}
    for one in found:
        name = names.stem(one.entities)
        try:
            runs.append(_run(one, name))
        except (InputDataError, MissingInputError) as error:
            failures.append(Failure(name, error))
        if one.anat is not None:
            path, modality = one.anat
            entities = {key: value for key, value in one.entities.items() if key in ("sub", "ses")}
            anats[path] = AnatFile(path, {}, entities, modality, one.session)
    return Participant(label, tuple(anats.values()), tuple(runs), (), tuple(failures))


def _run(one: _Found, name: str) -> DwiRun:
    for path in (one.dwi, one.bval, one.bvec):
        if not path.is_symlink() and not path.exists():
            raise MissingInputError(
                f"{path.name} is not there",
                id="E-INPUT-FILE",
                path=path,
                needed="image, b-values and directions of one preprocessed series",
                fix="copy it there, or leave this participant out",
            )
        check_content(path)
    metadata = read_sidecar(one.sidecar) if one.sidecar is not None else {}
    sidecars = () if one.sidecar is None else (one.sidecar,)
    return DwiRun(
        one.dwi, one.bval, one.bvec, metadata, one.entities, one.session, name, sidecars,
        done_by=one.done_by, mask=one.mask,
    )  # fmt: skip


# --- BIDS derivatives ---------------------------------------------------------------------------------------------------


def _derivatives(request: PreprocessedRequest) -> Iterator[_Found]:
    writer = _writer(request.root)
    taken: set[str] = set()
    for participant in sorted(request.root.glob("sub-*")):
        for dwi in _dwi_files(participant) if participant.is_dir() else ():
            parsed = names.parse(dwi)
            if parsed is None or parsed[0].get("space") not in _SPACES:
                continue
            entities = {key: value for key, value in parsed[0].items() if key not in ("space", "desc", "res")}
            if (name := names.stem(entities)) in taken:
                continue
            taken.add(name)
            base = dwi.name.removesuffix(parsed[2])
            sidecar = dwi.with_name(f"{base}.json")
            mask = dwi.with_name(dwi.name.replace("_desc-preproc_dwi", "_desc-brain_mask"))
            yield _Found(
                dwi, dwi.with_name(f"{base}.bval"), dwi.with_name(f"{base}.bvec"), entities, writer,
                mask if mask.is_file() else None, _anat_beside(dwi.parent.parent, participant, request.anat_modality),
                sidecar if sidecar.is_file() else None,
            )  # fmt: skip


def _writer(root: Path) -> str:
    generated = _description(root).get("GeneratedBy")
    first = generated[0] if isinstance(generated, list) and generated and isinstance(generated[0], dict) else {}
    said = " ".join(str(first[key]) for key in ("Name", "Version") if key in first)
    return said or "another program (its dataset_description.json does not say which)"


def _anat_beside(folder: Path, participant: Path, modality: str) -> tuple[Path, str] | None:
    """The preprocessed anatomical image of the session, else of the participant, in the person's own space."""
    if modality == "none":
        return None
    for place in dict.fromkeys((folder / "anat", participant / "anat")):
        for path in sorted(place.glob(f"*_desc-preproc_{modality}.nii*")):
            parsed = names.parse(path)
            if parsed is not None and parsed[0].get("space") in _SPACES:
                return path, modality
    return None


# --- studies with folders of their own ----------------------------------------------------------------------------------


def _study(request: PreprocessedRequest) -> Iterator[_Found]:
    is_hcp = request.kind == "hcpya"
    for folder in sorted(path for path in request.root.iterdir() if path.is_dir()):
        dwi = folder / (_HCP if is_hcp else _UKB)
        entities = _entities(folder.name)
        if entities is None or not dwi.exists():
            continue
        if is_hcp:
            masks = [dwi.with_name("nodif_brain_mask.nii.gz")]
            anats = [folder / "T1w" / f"{request.anat_modality}_acpc_dc_restore{end}.nii.gz" for end in ("", "_1.25")]
        else:
            masks = [dwi.with_name(f"nodif_brain_mask{end}.nii.gz") for end in ("_ud", "")]
            anats = [folder / "T1" / f"{name}.nii.gz" for name in ("T1_unbiased", "T1")]
            anats = anats if request.anat_modality == "T1w" else []
        anat = next((path for path in anats if path.is_file()), None)
        yield _Found(
            dwi, dwi.with_name("bvals"), dwi.with_name("bvecs"), entities, _WRITERS[request.kind],
            next((mask for mask in masks if mask.is_file()), None), (anat, request.anat_modality) if anat else None,
        )  # fmt: skip


def _entities(folder: str) -> dict[str, str] | None:
    """``100307``; ``1000001_20250_2_0``: the person, a data field, the visit and a counter."""
    first, *rest = folder.removeprefix("sub-").split("_")
    if not names.is_label(first):
        return None
    visit = rest[1] if len(rest) == 3 and rest[0].isdigit() else None
    return {"sub": first} | ({"ses": visit} if visit else {})
