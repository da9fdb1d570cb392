"""Derivative names: BIDS entity order, as the schema has it, and exact round trips."""

from __future__ import annotations

from pathlib import Path

import pytest

from tractode.bids import names
from tractode.bids.spec_files import load

RUN = {"sub": "xa30", "ses": "1", "dir": "AP", "run": "02"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"desc": "preproc", "suffix": "dwi", "extension": ".nii.gz"}, "dwi/{}_desc-preproc_dwi.nii.gz"),
        ({"suffix": "dwiref", "extension": ".json"}, "dwi/{}_dwiref.json"),
        (
            {
                "param": "fa",
                "model": "tensor",
                "space": "MNI152NLin2009aSym",
                "suffix": "dwimap",
                "extension": ".nii.gz",
            },
            "dwi/{}_space-MNI152NLin2009aSym_model-tensor_param-fa_dwimap.nii.gz",
        ),
        (
            {
                "track": "sdstream",
                "space": "T1w",
                "tract": "AF",
                "hemi": "L",
                "suffix": "tractogram",
                "extension": ".trx",
            },
            "dwi/{}_hemi-L_space-T1w_tract-AF_track-sdstream_tractogram.trx",
        ),
        (
            {"from_": "dwi", "to": "T1w", "mode": "image", "suffix": "xfm", "extension": ".h5"},
            "dwi/{}_from-dwi_to-T1w_mode-image_xfm.h5",
        ),
        ({"desc": "gradients", "suffix": "qc", "extension": ".json"}, "dwi/{}_desc-gradients_qc.json"),
        (
            {"datatype": "anat", "desc": "brain", "suffix": "mask", "extension": ".nii.gz"},
            "anat/{}_desc-brain_mask.nii.gz",
        ),
    ],
)
def test_names_of_derivatives(arguments: dict[str, str], expected: str) -> None:
    path = names.derivative(RUN, **arguments)
    assert path == Path("sub-xa30/ses-1") / expected.format("sub-xa30_ses-1_dir-AP_run-02")


def test_figures_have_one_folder_a_participant() -> None:
    path = names.derivative(RUN, suffix="dwi", extension=".png", datatype=names.FIGURES, desc="fa")
    assert path.as_posix() == "sub-xa30/figures/sub-xa30_ses-1_dir-AP_run-02_desc-fa_dwi.png"


def test_entities_of_the_source_can_be_taken_away_and_are_not_changed() -> None:
    source = dict(RUN)
    path = names.derivative(source, dir=None, run=None, suffix="T1w", extension=".nii.gz")
    assert path.as_posix() == "sub-xa30/ses-1/anat/sub-xa30_ses-1_T1w.nii.gz"
    assert source == RUN


@pytest.mark.parametrize(
    "entities",
    [{"desc": "a_b"}, {"desc": "a-b"}, {"desc": ""}, {"desc": "../x"}, {"desk": "a"}, {"run": "one"}, {"sub": None}],
)
def test_impossible_names_are_refused(entities: dict[str, str | None]) -> None:
    with pytest.raises(ValueError, match=r"BIDS|participant"):
        names.derivative(RUN, suffix="dwimap", extension=".nii.gz", **entities)


def test_unknown_suffix_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="folder"):
        names.derivative(RUN, suffix="bold", extension=".nii.gz")
    with pytest.raises(ValueError, match="cannot end"):
        names.derivative(RUN, suffix="dwi", extension="nii.gz")


def test_parse_undoes_derivative() -> None:
    path = names.derivative(RUN, suffix="xfm", extension=".h5", from_="dwi", to="T1w", mode="image")
    assert names.parse(path) == ({**RUN, "from": "dwi", "to": "T1w", "mode": "image"}, "xfm", ".h5")
    assert names.sidecar_of(path).name.endswith("_mode-image_xfm.json")


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "sub-01_dwi",
        "sub-01.nii.gz",
        "sub_dwi.nii.gz",
        "sub-01_sub-02_dwi.nii",
        "sub-01_x-1_dwi.nii",
        "sub-0-1_dwi.nii",
    ],
)
def test_what_is_not_a_bids_name(name: str) -> None:
    assert names.parse(name) is None


def test_values_stay_as_written() -> None:
    parsed = names.parse("sub-01_run-01_dwi.nii.gz")
    assert parsed is not None
    assert names.stem(parsed[0]) == "sub-01_run-01"


@pytest.mark.reference
def test_order_is_that_of_the_bids_schema() -> None:
    schema = pytest.importorskip("bidsschematools.schema").load_schema()
    official = [schema.objects.entities[key]["name"] for key in schema.rules.entities]
    ours = [key for key in names.entity_order() if key in official]
    assert ours == [key for key in official if key in ours]
    formats = {entity["key"]: entity["format"] for entity in load("entities")["entities"]}
    for entity in schema.objects.entities.values():
        if entity["name"] in formats:
            assert formats[entity["name"]] == entity["format"]
