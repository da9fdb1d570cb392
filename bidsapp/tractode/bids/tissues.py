"""Where the tissues of a participant are found: five-tissue images, label images and tissue maps among anatomical derivatives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tractode.bids import names
from tractode.errors import MissingInputError

Kind = Literal["labels", "five_tissue", "fractions"]
_ORDER = ("five_tissue", "labels", "fractions")
EXTENSIONS = (".nii.gz", ".nii")
_SEGMENTATIONS = ("aseg", "aparcaseg")
# Entities that name a space: what is not in the space of the participant's own T1w cannot be used as it is.
_OWN_SPACES = (None, "T1w", "orig", "anat")


@dataclass(frozen=True)
class TissueSource:
    """A file in the space of the participant's anatomical image: a five-tissue image, FreeSurfer labels, or the map of grey matter.

    ``more`` are the maps of white matter and CSF that lie beside the map of grey matter.
    """

    path: Path
    kind: Kind
    more: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path, *self.more)


def find_tissue_source(
    bids_dir: Path,
    label: str,
    session: str | None = None,
    derivatives: Iterable[Path | str] = (),
    *,
    own: Path | None = None,
    fractions: bool = False,
) -> TissueSource | None:
    """The best file of a participant in the folders given, else in the dataset and those under its ``derivatives``.

    Looked for are ``*_desc-5tt_probseg``, ``*_label-5tt_probseg``, ``*_5tt`` and FreeSurfer's labels as fMRIPrep names
    them (``*_desc-aseg_dseg``, ``*_desc-aparcaseg_dseg``, ``*_seg-aseg_dseg``), in ``[sub-X/][ses-Y/]anat`` of each
    folder. A five-tissue image comes before labels, the session's own before one of no session, then the order of names.

    Parameters
    ----------
    derivatives
        Folders of derivative datasets (``--derivatives``): each is searched itself, not its subfolders.
    own
        Where this run writes: what it wrote there before is no source.
    fractions
        Whether maps of the tissues (``*_label-GM_probseg`` with those of WM and CSF beside it) will do too.
    """
    standard = bids_dir / "derivatives"
    inside = sorted(path for path in standard.iterdir() if path.is_dir()) if standard.is_dir() else []
    for root in [*map(Path, derivatives), standard, bids_dir, *inside]:
        if own is not None and root.resolve() == own.resolve():
            continue
        found = [source for path in _anat_files(root, label, session) if (source := _source(path, label, session))]
        found = [source for source in found if fractions or source.kind != "fractions"]
        if found:
            return min(found, key=lambda source: _preference(source, session))
    return None


def need_tissue_source(
    bids_dir: Path,
    label: str,
    session: str | None = None,
    derivatives: Iterable[Path | str] = (),
    *,
    own: Path | None = None,
) -> TissueSource:
    """`find_tissue_source`, or the error that says what was looked for.

    Raises
    ------
    MissingInputError
        There is none.
    """
    derivatives = list(derivatives)
    source = find_tissue_source(bids_dir, label, session, derivatives, own=own)
    if source is not None:
        return source
    looked = ", ".join(str(path) for path in [*derivatives, bids_dir / "derivatives"])
    raise MissingInputError(
        f"There is no label image and no five-tissue image of sub-{label} (looked in {looked})",
        id="E-TISSUE-MISSING",
        needed=f"sub-{label}[_ses-…]_desc-aseg_dseg.nii.gz or …_desc-5tt_probseg.nii.gz in its anat folder, in the space of the T1w",
        fix="name the folder of the anatomical derivatives with --derivatives, or use --act template (coarse)",
    )


def _anat_files(root: Path, label: str, session: str | None) -> list[Path]:
    participant = root / f"sub-{label}"
    folders = [participant / "anat"] + ([participant / f"ses-{session}" / "anat"] if session else [])
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]


def _source(path: Path, label: str, session: str | None) -> TissueSource | None:
    parsed = names.parse(path)
    if parsed is None or not path.is_file():
        return None
    entities, suffix, extension = parsed
    is_own = entities.get("sub") == label and entities.get("ses") in (None, session)
    if extension not in EXTENSIONS or not is_own or entities.get("space") not in _OWN_SPACES:
        return None
    words = {str(entities.get(key, "")).lower() for key in ("desc", "label", "seg")}
    if (suffix == "probseg" and "5tt" in words) or suffix.lower() == "5tt":
        return TissueSource(path, "five_tissue")
    if suffix == "dseg" and words.intersection(_SEGMENTATIONS):
        return TissueSource(path, "labels")
    if suffix == "probseg" and entities.get("label") == "GM":
        others = tuple(path.with_name(path.name.replace("_label-GM_", f"_label-{tissue}_")) for tissue in ("WM", "CSF"))
        if all(other.is_file() for other in others):
            return TissueSource(path, "fractions", others)
    return None


def _preference(source: TissueSource, session: str | None) -> tuple[int, bool, str]:
    parsed = names.parse(source.path)
    own_session = parsed is not None and parsed[0].get("ses") == session
    return _ORDER.index(source.kind), not own_session, source.path.name
