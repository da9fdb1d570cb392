"""A derivatives folder as tractode writes it, made here with a known truth: what comes out of it to learn from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tractode.cli.train import main
from tractode.errors import InputDataError, MissingInputError
from tractode.fields import Image, ImageGrid, Streamlines
from tractode.fields.transform import Affine
from tractode.generative.space import SPACE, training_grid
from tractode.generative.streamline_network import NetworkSettings
from tractode.io.nifti import write_image
from tractode.io.tractogram_stream import stream_to
from tractode.io.transforms import write_itk
from tractode.ops import spherical_harmonics as sh
from tractode.simulate import tract_subject
from tractode.simulate.bundle_library import BundleLibrary
from tractode.training import gentract_recipes, tract_subjects
from tractode.training.cohort import Cohort, CohortSettings, is_held_out, nearest
from tractode.training.cohort_files import find_scans
from tractode.training.gentract import GenTractSettings
from tractode.training.gentract_recipes import RECIPES, LocalRecipe

TURN = torch.linalg.matrix_exp(torch.tensor([[0, -0.5, 0.1], [0.5, 0, -0.2], [-0.1, 0.2, 0]], dtype=torch.float64))
ALONG = torch.nn.functional.normalize(torch.tensor([0.3, 0.8, -0.5]), dim=0)  # of the fibres, in the template


def affine_to(source: str, target: str, matrix: Tensor, shift: tuple[float, float, float]) -> Affine:
    whole = torch.eye(4, dtype=torch.float64)
    whole[:3, :3], whole[:3, 3] = matrix, torch.tensor(shift, dtype=torch.float64)
    return Affine(whole, source, target)


TO_T1W = affine_to(SPACE, "T1w", TURN, (4.0, -6.0, 3.0))  # points of the template → points of the T1w
TO_DWI = affine_to("T1w", "dwi", TURN.mT @ TURN.mT, (-2.0, 5.0, 1.0))


def here(points: Tensor) -> Tensor:
    """Points of the template in the scan."""
    return TO_DWI.map(TO_T1W.map(points.double())).float()


def visible() -> Tensor:
    centres = training_grid().centres() - torch.tensor([0.0, -18.0, 12.0])
    return (centres / torch.tensor([50.0, 60.0, 45.0])).square().sum(-1) < 1


def write_fod(folder: Path, name: str, affine: Tensor, basis: str = "mrtrix3") -> None:
    """One fibre everywhere, of order 8, on an oblique grid of 9 mm that holds the head."""
    size = torch.tensor([9.0, 9.0, 9.0], dtype=torch.float64) / affine[:3, :3].norm(dim=0)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = affine[:3, :3] * size
    shape = (26, 28, 25)
    middle = here(torch.tensor([0.0, -18.0, 12.0])).double()
    matrix[:3, 3] = middle - matrix[:3, :3] @ (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    direction = TO_DWI.matrix[:3, :3] @ TO_T1W.matrix[:3, :3] @ ALONG.double()
    coeffs = 3.0 * sh.basis(direction.float(), 8) * (0.8 ** sh.degrees(8))
    grid = ImageGrid(shape, matrix, f"{name}_dwi")
    path = folder / f"{name}_model-csd_param-fod_dwimap.nii.gz"
    write_image(path, Image(grid, coeffs[:, None, None, None].expand(-1, *shape).contiguous()))
    encoding = {"Type": "sh", "Reference": "xyz", "SphericalHarmonicBasis": basis}
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps({"OrientationEncoding": encoding}))


def write_transforms(folder: Path, name: str, there: Affine, spaces: tuple[str, str], passed: bool = True) -> None:
    """``there`` takes points of the second space to points of the first."""
    grid = training_grid()
    for transform, (a, b) in ((there, spaces), (there.inverse(), spaces[::-1])):
        path = folder / f"{name}_from-{a}_to-{b}_mode-image_xfm.h5"
        write_itk(path, transform, grid)
        path.with_suffix(".json").write_text(json.dumps({"Quality": {"passed": passed}}))


def write_lines(path: Path, lines: Tensor, groups: dict[str, Tensor] | None = None, **data: Tensor) -> None:
    n, m = lines.shape[:2]
    ragged = Streamlines(here(lines).reshape(-1, 3), torch.arange(0, n * m + 1, m), "dwi", {}, data)
    with stream_to(path, ImageGrid((2, 2, 2), torch.eye(4, dtype=torch.float64), "dwi")) as out:
        out.append(ragged)
        out.add_groups(groups or {})


@pytest.fixture(scope="module")
def derivatives(tmp_path_factory: pytest.TempPathFactory, library: BundleLibrary) -> Path:
    """Two usable participants, one by way of the T1w, one with a session and a direct affine; four that lack something."""
    from scipy.spatial.transform import Rotation

    oblique = torch.eye(4, dtype=torch.float64)
    oblique[:3, :3] = torch.tensor(Rotation.from_euler("zyx", [9, -12, 7], degrees=True).as_matrix()) * torch.tensor(
        [-2.0, -2.3, 2.6], dtype=torch.float64
    )
    root = tmp_path_factory.mktemp("derivatives")
    for label in ("01", "02/ses-a", "03", "04", "05", "06"):
        for kind in ("dwi", "anat"):
            (root / f"sub-{label}" / kind).mkdir(parents=True)
    one, two = root / "sub-01", root / "sub-02" / "ses-a"
    write_fod(one / "dwi", "sub-01", oblique)
    write_transforms(one / "dwi", "sub-01", TO_DWI, ("dwi", "T1w"))
    write_transforms(one / "anat", "sub-01", TO_T1W, ("T1w", SPACE))
    lines = torch.cat([
        library.lines[:2] + torch.tensor([0.0, 0.0, 2.0]),
        (library.lines[:2] + torch.tensor([0.0, 0.0, -3.0])).flip(1),
        library.lines[6:8] + 0.5,
        library.lines[:1] + 60.0,
    ])  # fmt: skip
    write_lines(one / "dwi" / "sub-01_track-ifod2_tractogram.trx", lines[:5], {"low_r": torch.tensor([4])})
    weights = torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 0])
    kept = torch.cat([lines, library.lines[:1]])
    path = one / "dwi" / "sub-01_track-ifod2_desc-weighted_tractogram.trx"
    write_lines(path, kept, {"low_r": torch.tensor([4, 5])}, weights=weights)
    write_lines(one / "dwi" / "sub-01_track-gentract_tractogram.trx", lines)
    name = "sub-02_ses-a"
    write_fod(two / "dwi", name, oblique)
    direct = Affine(TO_DWI.matrix @ TO_T1W.matrix, SPACE, "dwi")
    write_transforms(two / "dwi", name, direct, ("dwi", SPACE))
    write_lines(two / "dwi" / f"{name}_tract-ArcL_tractogram.tck", library.lines[3:5] + torch.tensor([0.0, 0.0, 4.0]))
    write_lines(two / "dwi" / f"{name}_tract-Course_tractogram.tck", library.lines[12:14])
    write_fod(root / "sub-03" / "dwi", "sub-03", oblique)
    write_lines(root / "sub-03" / "dwi" / "sub-03_track-ifod2_tractogram.trx", lines)
    write_transforms(root / "sub-03" / "dwi", "sub-03", direct, ("dwi", SPACE), passed=False)
    write_fod(root / "sub-04" / "dwi", "sub-04", oblique, basis="descoteaux")
    write_fod(root / "sub-05" / "dwi", "sub-05", oblique)
    return root


def test_scans_whose_names_begin_alike_keep_their_own_files(tmp_path: Path, library: BundleLibrary) -> None:
    folder = tmp_path / "sub-1" / "dwi"
    folder.mkdir(parents=True)
    direct = Affine(TO_DWI.matrix @ TO_T1W.matrix, SPACE, "dwi")
    for name in ("sub-1", "sub-1_run-2"):
        write_fod(folder, name, torch.eye(4, dtype=torch.float64))
        write_transforms(folder, name, direct, ("dwi", SPACE))
        write_lines(folder / f"{name}_track-ifod2_tractogram.tck", library.lines[:1])
    for scan in find_scans([tmp_path])[0]:
        assert all(
            path.name.startswith((f"{scan.name}_track", f"{scan.name}_from", f"{scan.name}_model"))
            for path in scan.files()
        )


SETTINGS = CohortSettings(views=2, fewest=2)


@pytest.fixture(scope="module")
def cohort(derivatives: Path, library: BundleLibrary, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    scans, _ = find_scans([derivatives])
    return Cohort(scans, library, visible(), tmp_path_factory.mktemp("cohort"), SETTINGS)


def test_what_lacks_a_piece_is_left_out_and_named(derivatives: Path, tmp_path: Path) -> None:
    scans, left_out = find_scans([derivatives])
    assert [scan.name for scan in scans] == ["sub-01", "sub-02_ses-a"]
    assert [len(scan.there_to_here) for scan in scans] == [2, 1]
    assert [path.name for path in scans[0].tractograms] == ["sub-01_track-ifod2_desc-weighted_tractogram.trx"]
    reasons = {one.name: one.reason for one in left_out}
    assert "transforms that passed" in reasons["sub-03"]
    assert "basis 'descoteaux'" in reasons["sub-04"]
    assert "no tractogram" in reasons["sub-05"]
    assert "has no …_model-csd" in reasons["sub-06"]
    with pytest.raises(MissingInputError, match="E-COHORT-NONE"):
        find_scans([tmp_path])
    with pytest.raises(InputDataError, match="E-COHORT-UNUSABLE"):
        find_scans([derivatives], "*_nothing*")


def test_field_is_carried_and_turned_as_the_head_is(cohort: Cohort) -> None:
    """The fibre that runs along one direction of the template runs so again, and the unit of the scan is gone."""
    coeffs = cohort[0].coeffs
    assert not bool(coeffs[:, ~visible()].any())
    inside = coeffs[:, visible()]
    assert float(inside[0].quantile(0.9)) == pytest.approx(1.0, abs=2e-3)
    directions = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    amplitude = sh.basis(directions, 6) @ inside[:, ::997]
    best = directions[amplitude.argmax(0)]
    assert float((best @ ALONG).abs().min()) > 0.99


def test_lines_are_paired_with_the_rows_they_come_from(cohort: Cohort, library: BundleLibrary) -> None:
    counts, left = cohort.prepare()
    assert not left
    assert counts == {"sub-01": (6, 7), "sub-02_ses-a": (4, 4)}  # one was far off; the one of weight 0 was not read
    subject = cohort[0]
    assert subject.present.tolist() == [True, True, False]
    assert subject.kept.nonzero().ravel().tolist() == [0, 1, 6, 7]
    shift = subject.lines - library.lines
    torch.testing.assert_close(shift[0], torch.tensor([0.0, 0.0, 2.0]).expand(31, 3), atol=0.02, rtol=0)
    torch.testing.assert_close(shift[6], torch.full((31, 3), 0.5), atol=0.02, rtol=0)
    # The second view has the farther line, turned to run as the row does; a row with one line has the same again.
    again = cohort[1].lines - library.lines
    torch.testing.assert_close(again[0], torch.tensor([0.0, 0.0, -3.0]).expand(31, 3), atol=0.02, rtol=0)
    torch.testing.assert_close(again[6], torch.full((31, 3), 0.5), atol=0.02, rtol=0)
    # Rows without a line of their own hold a real one of their bundle.
    torch.testing.assert_close(subject.lines[3], subject.lines[1])


def test_named_bundles_go_to_their_own_rows_only(cohort: Cohort) -> None:
    subject = cohort[2]
    assert subject.present.tolist() == [True, False, True]
    assert subject.kept.nonzero().ravel().tolist() == [3, 4, 12, 13]


def test_held_out_rows_take_no_line(library: BundleLibrary) -> None:
    row, _, distance = nearest(library.lines[:6], torch.full((6,), -1), library)
    assert row[[0, 1, 3, 4]].tolist() == [0, 1, 3, 4]
    assert not set(row.tolist()) & {2, 5}
    assert float(distance[2]) == pytest.approx(2.0, abs=1e-4)
    row, _, _ = nearest(library.lines[:1], torch.tensor([2]), library)
    assert row.tolist() == [12]


def test_split_is_by_participant_and_stands(derivatives: Path, library: BundleLibrary, tmp_path: Path) -> None:
    scans, _ = find_scans([derivatives])
    cohort = Cohort(scans, library, visible(), tmp_path, CohortSettings(held_out=0.5))
    learned, held = cohort.split()
    assert {*learned.participants, *held.participants} == {"sub-01", "sub-02"}
    assert not set(learned.participants) & set(held.participants)
    shares = sum(is_held_out(f"sub-{n:04d}", 0.2) for n in range(2000)) / 2000
    assert shares == pytest.approx(0.2, abs=0.03)


def test_a_scan_that_cannot_be_read_leaves_the_cohort(
    derivatives: Path, library: BundleLibrary, tmp_path: Path
) -> None:
    scans, _ = find_scans([derivatives])
    strict = Cohort(scans, library, visible(), tmp_path, CohortSettings(least_covered=0.99, reach_mm=3.5, fewest=2))
    counts, left = strict.prepare()
    assert set(counts) == {"sub-01", "sub-02_ses-a"}
    assert counts["sub-02_ses-a"][0] == 2  # two are about 4 mm away from their bundle's lines
    assert not left
    with pytest.raises(InputDataError, match=r"E-COHORT-UNUSABLE.*None of 7 streamlines is within 1e-05 mm"):
        Cohort(scans, library, visible(), tmp_path, CohortSettings(reach_mm=1e-5)).prepare()
    wide = torch.ones_like(visible())
    with pytest.raises(InputDataError, match=r"E-COHORT-UNUSABLE.*E-COHORT-COVERED"):
        Cohort(scans, library, wide, tmp_path / "wide", CohortSettings(least_covered=1.0)).prepare()


def test_command_learns_from_real_participants_alone(
    derivatives: Path,
    library: BundleLibrary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    local = RECIPES["local"]
    assert isinstance(local, LocalRecipe)
    batch = GenTractSettings(n_lines=16, n_judged=8, judged_steps=1)
    network = NetworkSettings(width=16, depth=1, heads=2, encoder=(4, 4, 4))
    monkeypatch.setitem(gentract_recipes.RECIPES, "local", replace(local, batch=batch, network=network))  # type: ignore[arg-type]
    monkeypatch.setattr(tract_subjects, "read_library", lambda folder, brain=None: library)
    monkeypatch.setattr(tract_subjects, "template_anatomy", lambda: None)
    monkeypatch.setattr(tract_subject, "visible", lambda anatomy: visible())
    out = tmp_path / "out"
    words = ["gentract", "--atlas", str(tmp_path), "--out", str(out), "--subjects", "0", "--steps", "2"]
    assert main([*words, "--derivatives", str(derivatives)]) == 0
    card = (out / "card.md").read_text(encoding="utf-8")
    assert "Real participants: 1 (scans: 1), and 0 more held out; 6 of 7 streamlines lay within 15 mm" in card
    told = capsys.readouterr().out
    assert "sub-02_ses-a is not used: [E-COHORT-LINES]" in told
    assert "sub-04 is not used: has an FOD in the basis" in told
    assert main([*words, "--derivatives", str(derivatives), "--tractograms", "*none*"]) == 65
