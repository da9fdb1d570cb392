"""Which anatomical steps are laid out, for sessions with and without images of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from nipype.pipeline import engine as pe

from tractode.bids.found import AnatFile, Participant
from tractode.bids.templates import BUILT_IN, find_template
from tractode.interfaces.step import Step
from tractode.settings import Settings
from tractode.workflows.anatomy import AnatomyBuilder


def anat(session: str) -> AnatFile:
    name = f"sub-01_ses-{session}_T1w.nii.gz"
    return AnatFile(Path("/data") / name, {}, {"sub": "01", "ses": session}, "T1w", session)


@pytest.fixture
def laid_out(tmp_path: Path):
    """``laid_out(reference, sessions with images)``: the builder, and the steps it adds, in order."""

    def make(reference: str, sessions: tuple[str, ...], **wanted: str) -> tuple[AnatomyBuilder, list[str]]:
        settings = Settings(tmp_path, tmp_path / "out", subject_anatomical_reference=reference, **wanted)
        workflow, added = pe.Workflow("test"), []

        def add(interface: Step, step: str, run: str, memory_gb: float) -> pe.Node:
            added.append(step)
            node = pe.Node(interface, name=f"n{len(added)}")
            workflow.add_nodes([node])
            return node

        participant = Participant("01", tuple(anat(session) for session in sessions))
        return AnatomyBuilder(participant, settings, [find_template(BUILT_IN)], workflow, add), added

    return make


def test_sessions_share_the_one_image_there_is(laid_out) -> None:
    builder, added = laid_out("sessionwise", ("1",))
    assert builder.of_session("1") is builder.of_session("2")
    assert [step.partition("_")[2] for step in added] == [
        "ses-1_prepare-T1w", "ses-1_normalise-T1w-MNI152NLin2009aSym", "ses-1_segment-T1w",
    ]  # fmt: skip


def test_tissues_that_are_there_are_taken_unless_our_own_are_wanted(laid_out) -> None:
    kinds = {}
    for name, wanted in (("auto", {}), ("own", {"segmentation": "own"}), ("none", {"segmentation": "none"})):
        builder, _ = laid_out("sessionwise", ("1",), **wanted)
        folder = builder.settings.bids_dir / "derivatives" / "fmriprep" / "sub-01" / "ses-1" / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sub-01_ses-1_desc-aseg_dseg.nii.gz").touch()
        node = builder.of_session("1").segmented
        kinds[name] = None if node is None else getattr(node.interface.inputs.source, "kind", "own")
    assert kinds == {"auto": "labels", "own": "own", "none": None}


def test_each_session_by_itself(laid_out) -> None:
    builder, added = laid_out("sessionwise", ("1", "2"))
    assert [builder.of_session(s).space for s in ("1", "2")] == ["sub-01_ses-1_T1w", "sub-01_ses-2_T1w"]
    assert not any("subject" in step for step in added)


def test_first_session_for_all(laid_out) -> None:
    builder, _ = laid_out("first-lex", ("2", "1"))
    assert [builder.of_session(s).space for s in ("1", "2", "3")] == ["sub-01_ses-1_T1w"] * 3


def test_all_sessions_through_one_template(laid_out) -> None:
    builder, added = laid_out("unbiased", ("1", "2", "3"))
    found = [builder.of_session(s) for s in ("1", "2", "3", "4")]
    assert [one.space for one in found] == [f"sub-01_ses-{n}_T1w" for n in "123"] + ["sub-01_ses-1_T1w"]
    assert added.count("sub-01_build-subject-template") == 1
    assert (
        sum("normalise" in step for step in added) == 4
    )  # of the person's template by content, of each session through it
    through = found[1].first.interface
    assert type(through).__name__ == "NormaliseThroughSubject"
    edges = {(a.fullname, b.fullname) for a, b in builder.workflow._graph.edges()}
    template = next(n for n in builder.workflow._graph.nodes() if type(n.interface).__name__ == "BuildSubjectTemplate")
    assert (template.fullname, found[1].first.fullname) in edges
    assert [a.session for a in template.interface.inputs.anats] == ["1", "2", "3"]
    assert template.interface.inputs.spaces == [one.space for one in found[:3]]


def test_unbiased_with_one_session_is_that_session(laid_out) -> None:
    builder, added = laid_out("unbiased", ("1",))
    assert type(builder.of_session("1").first.interface).__name__ == "NormaliseAnat"
    assert not any("subject" in step for step in added)


def test_without_templates_or_images_there_is_no_anatomy(laid_out) -> None:
    builder, added = laid_out("unbiased", ())
    assert builder.of_session("1") is None
    assert added == []
