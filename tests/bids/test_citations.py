"""Methods text: says what ran, cites what it names, and nothing that did not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tractode.bids import citations
from tractode.bids.manifest import StepRecord
from tractode.bids.spec_files import load
from tractode.generative import CODECS, GENERATORS
from tractode.models import MODELS
from tractode.tracking import TRACKERS
from tractode.workflows.report import methods

FACTS = {
    "models": [{"label": "tensor", "FitMethod": "wls"}, {"label": "tensor", "FitMethod": "wls"}, {"label": "csd"}],
    "trackers": [
        {"method": "sdstream", "n_streamlines": 100_000, "StepSize": 0.25, "MaximumAngle": 60.0, "CutoffAmplitude": 0.1}
    ],
    "templates": ["MNI152NLin2009aSym"],
    "keys": ["Basser1994", "tournier2007", "tournier2012"],
}


@pytest.mark.parametrize("registry", [MODELS, TRACKERS, GENERATORS, CODECS])
def test_every_method_cites_a_work_that_is_known(registry) -> None:
    for name in registry:
        work = citations.reference(registry[name].citation)
        assert work["doi"].startswith("10.") if "doi" in work else work["url"].startswith("https://")


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_has_its_sentence_and_its_place_in_sidecars(name: str) -> None:
    kind = MODELS[name]
    known = load("sidecars")["models"][kind.label]
    assert known["Description"]
    assert known["URL"].startswith("https://")
    facts = {"models": [{"label": kind.label, **kind().facts()}], "keys": [kind.citation]}
    text, listed = citations.boilerplate(facts).split("## References")
    assert "{" not in text
    for key in citations.citation_keys(facts):
        assert citations.reference(key)["title"].rstrip(".") in listed


def test_a_sentence_takes_the_words_for_what_was_done() -> None:
    given = {"label": "csd", "ResponseFunction": {"Method": "given"}}
    assert "response given from outside" in citations.boilerplate({"models": [given]})
    assert "response estimated from the data" in citations.boilerplate({"models": [{"label": "csd"}]})


def test_a_work_without_doi_is_listed_by_its_address() -> None:
    listed = citations.boilerplate({"keys": ["lizarraga2023"]})
    assert "<https://github.com/drewrl3v/diff-vq-vae>" in listed


def test_text_names_what_ran_once() -> None:
    text = citations.boilerplate(FACTS)
    assert text.count("weighted least squares") == 1
    assert "100,000 streamlines" in text
    assert "steps of 0.25 mm, at most 60° between steps, amplitude above 0.1" in text
    assert "*MNI152NLin2009aSym* (Fonov et al., 2011; Abraham et al., 2014)" in text
    assert "no correction of distortion" in text


def test_what_was_corrected_is_not_denied() -> None:
    motion, sdc = ("Head motion was corrected", "cieslak2024"), ("Distortion was corrected", "andersson2003")
    assert "No correction of susceptibility distortion was made" in citations.boilerplate({"sentences": [motion]})
    assert "No correction of motion or eddy currents was made" in citations.boilerplate({"sentences": [sdc]})
    assert "o correction of" not in citations.boilerplate({"sentences": [motion, sdc]})


def test_generated_streamlines_are_described_as_such() -> None:
    facts = {"trackers": [{"method": "gentract", "n_streamlines": 500}], "keys": ["sargood2025"]}
    text = citations.boilerplate(facts)
    assert "500 streamlines were asked for of a generative model" in text
    assert "trained on simulated participants and draws" in text
    assert {"sargood2025", "lipman2022", "albergo2023"} <= set(citations.citation_keys(facts))


def test_what_did_not_run_is_not_cited() -> None:
    text = citations.boilerplate({})
    for name in ("Basser", "Tournier", "Heinrich", "Ciric", "Fonov"):
        assert name not in text


def test_every_citation_in_the_text_is_in_the_list() -> None:
    keys = citations.citation_keys(FACTS)
    text, listed = citations.boilerplate(FACTS).split("## References")
    for key in keys:
        work = citations.reference(key)
        author, year = work["author"].partition(",")[0], work["year"]
        assert f"{author} et al., {year}" in text
        assert work["doi"] in listed
    assert text.count(" et al., ") >= len(keys)


def test_files(tmp_path: Path) -> None:
    text = citations.boilerplate({**FACTS, "trackers": [{"method": "<script>alert(1)</script>"}]})
    md, bib, page = citations.write_citations(tmp_path / "logs", citations.citation_keys(FACTS), text)
    assert md.read_text() == text
    assert bib.read_text().count("@article{") + bib.read_text().count("@inproceedings{") == len(
        citations.citation_keys(FACTS)
    )
    assert "doi = {10.1002/ima.22005}" in bib.read_text()
    html = page.read_text()
    assert "<script>" not in html
    assert '<a href="https://doi.org/10.1002/ima.22005">' in html
    assert "<em>MNI152NLin2009aSym</em>" in html
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "CITATION.bib",
        "CITATION.html",
        "CITATION.md",
    ]


def test_a_further_step_says_what_it_did_and_cites_its_work_once() -> None:
    said = ("Orientation distributions were refined", "reisert2011")
    text = citations.boilerplate({"sentences": [said, list(said)]})
    assert text.count("were refined (Reisert et al., 2011).") == 1
    assert "10.1109/TMI.2011.2112769" in text.split("## References")[1]


def test_without_an_anatomical_image_no_flow_is_claimed() -> None:
    text = citations.boilerplate(FACTS | {"anatomical": False})
    assert "Mean b=0 images were registered" in text
    assert "velocity field" not in text
    assert "arsigny2006" not in citations.citation_keys(FACTS | {"anatomical": False})
    assert "arsigny2006" in citations.citation_keys(FACTS)


@pytest.mark.parametrize(
    ("writer", "cited"),
    [("QSIPrep 1.0", "cieslak2021"), ("the HCP pipelines", "glasser2013"), ("the UK Biobank pipeline", "alfaro2018")],
)
def test_a_scan_preprocessed_elsewhere_is_not_called_as_acquired(writer: str, cited: str) -> None:
    def record(name: str, done_by: str) -> StepRecord:
        return StepRecord(
            f"{name}_prepare-dwi", "run", "key", {}, {}, {}, {"gradients": {}, "preprocessed_by": done_by}, 0.0
        )

    scan = record("a", writer)
    facts = methods([scan])
    text = citations.boilerplate(facts)
    assert f"came preprocessed by {writer}" in text
    assert "as acquired" not in text
    assert "No correction" not in text
    assert cited in citations.citation_keys(facts)
    other = record("b", "")
    assert "Some diffusion images came" in citations.boilerplate(methods([scan, other]))
    assert "as acquired" in citations.boilerplate(methods([other]))
