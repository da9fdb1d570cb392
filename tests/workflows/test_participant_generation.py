"""What is laid out for generated streamlines: the registration they need, where it is not there already, and nothing written in that space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tractode.bids.found import AnatFile, DwiRun, Participant
from tractode.bids.manifest import Ledger
from tractode.bids.templates import BUILT_IN, Template
from tractode.settings import Settings
from tractode.workflows import participant as laid

RUN = DwiRun(Path("/d/sub-01_dwi.nii.gz"), Path("/d/b"), Path("/d/v"), {}, {"sub": "01"}, None, "sub-01")
ANAT = AnatFile(Path("/d/sub-01_T1w.nii.gz"), {}, {"sub": "01"}, "T1w", None)


@pytest.fixture
def lay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``lay_out(spaces, anatomy?, tracking)``: the workflow and the steps it promises."""
    monkeypatch.setattr(laid, "find_template", lambda spec: Template(spec.partition(":")[0], 2, tmp_path / "t1w", None))

    def make(spaces: tuple[str, ...], has_anat: bool, tracking: tuple[str, ...], **options: Any) -> Any:
        settings = Settings(
            tmp_path, tmp_path / "out", work_dir=tmp_path, output_spaces=spaces, tracking=tracking, **options
        )
        workflow = laid.init_participant_wf(Participant("01", (ANAT,) if has_anat else (), (RUN,)), settings, "run")
        return workflow, [entry["step"] for entry in Ledger(tmp_path / "out", "01").plan()["steps"]]

    return make


def feeding(workflow: Any, kind: str) -> dict[str, str]:
    """Input → kind of step that feeds it, of the one step of a kind."""
    graph = workflow._graph
    node = next(one for one in graph.nodes() if type(getattr(one, "interface", None)).__name__ == kind)
    return {
        target: type(source.interface).__name__
        for source, _, data in graph.in_edges(node, data=True)
        for _, target in data["connect"]
    }


def test_the_models_space_is_registered_to_and_nothing_is_written_in_it(lay_out) -> None:
    workflow, steps = lay_out(("MNI152NLin2009cAsym",), True, ("gentract", "sdstream"))
    assert f"sub-01_normalise-T1w-{BUILT_IN}" in steps
    # What the model refuses does not keep maps from the template: generated lines go there by themselves.
    assert [step for step in steps if "normalise-dwi" in step] == [
        "sub-01_normalise-dwi-MNI152NLin2009cAsym",
        "sub-01_normalise-dwi-MNI152NLin2009cAsym-gentract",
    ]
    assert {"sub-01_generate-gentract", "sub-01_track-sdstream", "sub-01_compare-gentract"} <= set(steps)
    fed = feeding(workflow, "Generate")
    assert fed["template_link"] == "NormaliseAnat"
    assert fed["anat_link"] == "CoregisterToAnat"
    assert fed["orientations"] == "FitModel"
    assert feeding(workflow, "CompareGenerated")["generated"] == "Generate"
    # The template asked for still defines the brain mask.
    first = next(n for n in workflow._graph.nodes() if "cAsym" in n.name and "normalise_T1w" in n.name)
    assert first.interface.inputs.write_mask


def test_it_is_not_registered_to_twice(lay_out) -> None:
    _, steps = lay_out((f"{BUILT_IN}:res-1",), True, ("gentract",))
    assert sum("normalise-T1w" in step for step in steps) == 1
    assert {f"sub-01_normalise-dwi-{BUILT_IN}", f"sub-01_normalise-dwi-{BUILT_IN}-gentract"} <= set(steps)


@pytest.mark.parametrize("spaces", [(), ("MNI152NLin2009cAsym",)])
def test_without_anatomy_the_scan_goes_straight_there(lay_out, spaces: tuple[str, ...]) -> None:
    workflow, steps = lay_out(spaces, False, ("gentract",))
    assert f"sub-01_coregister-{BUILT_IN}" in steps
    assert feeding(workflow, "Generate")["template_link"] == "CoregisterToTemplate"
    assert sum("normalise-dwi" in step for step in steps) == 2 * len(spaces)


def test_native_space_with_anatomy(lay_out) -> None:
    _, steps = lay_out((), True, ("gentract",), streamline_weights="fod")
    assert {f"sub-01_normalise-T1w-{BUILT_IN}", "sub-01_coregister-T1w", "sub-01_weigh-gentract"} <= set(steps)
    assert not any("normalise-dwi" in step for step in steps)


def test_without_generated_streamlines_all_is_as_before(lay_out) -> None:
    _, steps = lay_out(("MNI152NLin2009cAsym",), True, ("sdstream",))
    assert not any(BUILT_IN in step or "compare" in step for step in steps)


def test_bundles_need_the_same_registration_and_every_method_has_its_own(lay_out) -> None:
    workflow, steps = lay_out(("MNI152NLin2009cAsym",), True, ("sdstream", "eudx"), encode_bundles=True)
    assert {"sub-01_encode-sdstream", "sub-01_encode-eudx", f"sub-01_normalise-T1w-{BUILT_IN}"} <= set(steps)
    fed = feeding(workflow, "EncodeBundles")
    assert fed["tractogram"] == "Track"
    assert (fed["template_link"], fed["anat_link"], fed["prepared"]) == (
        "NormaliseAnat",
        "CoregisterToAnat",
        "PrepareDwi",
    )
    assert sum("normalise-dwi" in step for step in steps) == 1


def test_bundles_without_anatomy_and_without_tracking(lay_out) -> None:
    workflow, steps = lay_out((), False, ("gentract",), encode_bundles=True)
    fed = feeding(workflow, "EncodeBundles")
    assert (fed["template_link"], fed["tractogram"]) == ("CoregisterToTemplate", "Generate")
    _, steps = lay_out((), False, (), encode_bundles=True)
    assert not any("encode" in step for step in steps)
