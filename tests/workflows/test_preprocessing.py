"""What the plan says of preprocessing, and how settings become steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tractode.bids.found import DwiRun
from tractode.fields import GradientTable
from tractode.ops import sphere
from tractode.reports.reportlet import Reportlet
from tractode.settings import Settings
from tractode.workflows.memory import step_memory_gb
from tractode.workflows.preprocessing import outlook, preprocess_of
from tractode.workflows.report import _of_runs

RUN = DwiRun(Path("a.nii.gz"), Path("a.bval"), Path("a.bvec"), {}, {"sub": "01"}, None, "sub-01")
SETTINGS = Settings(Path("bids"), Path("out"))


def table(n: int) -> GradientTable:
    bvecs = torch.cat([torch.zeros(1, 3, dtype=torch.float64), sphere.directions(max(n, 1)).double()[:n]])
    bvals = torch.where(bvecs.norm(dim=-1) > 0, 1000.0, 0.0).double()
    return GradientTable(bvals, bvecs, bvals == 0)


def test_defaults_do_everything_that_the_data_support() -> None:
    plan = preprocess_of(SETTINGS)
    assert (plan.denoise, plan.unring, plan.motion, plan.outliers, plan.bias) == (
        "auto",
        "auto",
        "auto",
        "auto",
        "auto",
    )
    assert preprocess_of(replace(SETTINGS, denoise="mppca")).denoise == "on"
    assert preprocess_of(replace(SETTINGS, sloppy=True)).sloppy


@pytest.mark.parametrize(
    ("run", "settings", "n", "says", "not_says"),
    [
        (RUN, SETTINGS, 30, "denoising, unringing, motion and eddy currents, lost slices, coil shading", "no "),
        (RUN, replace(SETTINGS, unring="none", bias="none"), 30, "denoising, motion and eddy", "unringing"),
        (
            RUN,
            SETTINGS,
            3,
            "no motion and eddy currents: motion is found from what a volume has in common with others",
            "none,",
        ),
        (
            replace(RUN, done_by="QSIPrep 1.0"),
            SETTINGS,
            30,
            "none, the scan came preprocessed by QSIPrep 1.0",
            "denoising",
        ),
        (replace(RUN, parts=(RUN, RUN)), SETTINGS, 30, "2 runs combined, denoising", "none"),
    ],
)
def test_the_outlook(run: DwiRun, settings: Settings, n: int, says: str, not_says: str) -> None:
    text = outlook(run, table(n), settings)
    assert says in text
    assert not_says not in text


def test_the_memory_of_what_is_not_done_is_not_counted() -> None:
    shape, sizes = (145, 174, 145, 288), (1.25, 1.25, 1.25)
    raw = step_memory_gb(shape, [], replace(SETTINGS, output_spaces=()), voxel_sizes=sizes)
    assert max(raw.values()) * 2**30 < 8e9, raw
    assert "preprocessing" not in step_memory_gb(shape, [], SETTINGS, is_raw=False)
    alone = replace(SETTINGS, denoise="none")
    still = replace(alone, motion="none")
    of = [(still, 1), (alone, 1), (alone, 2)]
    found = [step_memory_gb(shape, [], s, voxel_sizes=sizes, n_parts=n)["preprocessing"] for s, n in of]
    assert found == sorted(set(found)), "motion holds more than what needs no motion, joined runs more than one"
    assert found[1] < raw["preprocessing"]
    assert step_memory_gb(shape, [], SETTINGS, is_raw=False, n_parts=2)["combining"] > 3 * 4


def test_pictures_of_parts_stand_with_the_combined_run() -> None:
    pictures = [Reportlet(f"{name}_desc-x_dwi", "dwi", "Title", "", "", "html", name) for name in ("a", "ab", "b")]
    facts = [("ab_prepare-dwi", {"parts": ["a"]}), ("elsewhere", {"parts": ["b"]})]
    found = _of_runs(pictures, facts, {"ab_prepare-dwi": "ab"})
    assert [(item.run, item.title) for item in found] == [("ab", "Title, a"), ("ab", "Title"), ("b", "Title")]
    assert [item.name for item in found] == [item.name for item in pictures]
