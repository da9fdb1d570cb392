"""Datasets whose bundles are those of a folder: the truth is where the atlas and the participant's warp say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from tractode.cli.simulate import main as simulate_command
from tractode.errors import InputDataError, MissingInputError, UsageError
from tractode.fields import Chain, Image, ImageGrid, Streamlines
from tractode.io.builtin_template import SPACE
from tractode.io.tractogram import read_tractogram, write_tractogram
from tractode.simulate import seeds
from tractode.simulate.subject import SubjectSettings
from tractode.simulate.tissues import Anatomy
from tractode.simulate.warp import participant_warp
from tractode.workflows import simulate as dataset
from tractode.workflows.simulate_atlas import Atlas, between_people, read_atlas, tract_label
from tractode.workflows.simulate_settings import AtlasSettings, SimulationSettings
from tractode.workflows.simulate_visit import plan, template_bundles

COARSE = ["--resolution", "6", "--t1w-resolution", "6", "--shells", "1000:6", "--b0s", "2", "--seed", "4"]
N_LINES = 9


def arc(height: float) -> Tensor:
    """Lines 1 mm apart over an arch of 25 mm radius, ``height`` mm above the anterior commissure; every second one runs back."""
    angle = torch.linspace(0.2, 2.9, 40)
    line = torch.stack([25 * angle.cos(), 0 * angle, 25 * angle.sin() + height], -1)
    lines = torch.stack([line + torch.tensor([0.0, n - 4.0, 0.0]) for n in range(N_LINES)])
    lines[1::2] = lines[1::2].flip(1)
    return lines


def off_arc(points: Tensor, height: float) -> Tensor:
    """Distance of points to the nearest of the lines of `arc`, ends left aside."""
    x, y, z = points.double().unbind(-1)
    beside = y - y.round().clamp(-4, 4)
    return ((x.square() + (z - height).square()).sqrt() - 25).hypot(beside)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of two bundles: a TRX, and a TRK whose voxels are oblique and left-handed."""
    out = tmp_path_factory.mktemp("data") / "my_atlas"
    out.mkdir()
    matrix = torch.tensor([[-1.9, 0.3, 0.2, 80], [0.4, 2.1, 0.3, -100], [0.1, -0.4, 2.2, -60], [0, 0, 0, 1.0]])
    grid = ImageGrid((80, 90, 70), matrix.double(), SPACE)
    write_tractogram(out / "Upper_Arch.trx", Streamlines.from_list(list(arc(10.0)), SPACE), grid)
    lines = nibabel.streamlines.Tractogram([line.numpy() for line in arc(-12.0)], affine_to_rasmm=np.eye(4))
    header = {"voxel_to_rasmm": matrix.numpy(), "voxel_sizes": grid.voxel_sizes, "dimensions": grid.shape}
    nibabel.streamlines.save(
        nibabel.streamlines.TrkFile(lines, header | {"voxel_order": "LAS"}), out / "Lower_ArchL_2.trk"
    )
    return out


@pytest.fixture(scope="module")
def head() -> Anatomy:
    """A head of 45 mm: white around fluid, then grey; in the built-in template's space."""
    affine = torch.eye(4, dtype=torch.float64) * 4
    affine[:3, 3], affine[3, 3] = -60, 1
    grid = ImageGrid((31, 31, 31), affine, SPACE)
    r = grid.centres().norm(dim=-1)
    parts = torch.stack(((r >= 40) & (r < 45), (r >= 8) & (r < 40), r < 8)).float()
    return Anatomy(Image(grid, (0.7 * parts[0] + parts[1] + 0.2 * parts[2])[None]), Image(grid, parts))


@pytest.fixture
def simulate(head: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with the small head in place of the template."""
    monkeypatch.setattr(dataset, "anatomy", lambda *maps: head)
    monkeypatch.setattr(dataset, "load_builtin", lambda name: None)


def to_template(head: Anatomy) -> Chain:
    return participant_warp(head.t1w.grid, "sub-01_T1w", seeds.stream(4, 0, "warp"))


@pytest.mark.usefixtures("simulate")
def test_the_truth_is_the_atlas_carried_by_the_participants_warp(folder: Path, head: Anatomy, tmp_path: Path) -> None:
    out = tmp_path / "bids"
    assert simulate_command([str(out), *COARSE, "--atlas", str(folder), "--bundle-variation", "0"]) == 0
    truth = out / "derivatives" / "truth"
    found = {path.name: path for path in truth.rglob("*_tractogram.trx")}
    assert set(found) == {f"sub-01_tract-{name}_tractogram.trx" for name in ("LowerArchL2", "UpperArch")}
    assert len(list(truth.rglob("*_tract-UpperArch_desc-*_mask.nii.gz"))) == 3
    warp = to_template(head)
    for name, height in (("UpperArch", 10.0), ("LowerArchL2", -12.0)):
        lines, _ = read_tractogram(found[f"sub-01_tract-{name}_tractogram.trx"], "sub-01_T1w")
        back = lines.moved(warp)
        assert len(back) == N_LINES
        assert float(off_arc(back.points, height).max()) < 0.05
        ends = torch.stack([torch.stack([line[0], line[-1]]) for line in back])
        # All run alike, and end where the atlas's lines do.
        assert float((ends[:, 0, 0] * ends[0, 0, 0].sign()).min()) > 20
        assert float(ends[:, 1, 0].mul(ends[0, 0, 0].sign()).max()) < -20
        # The participant is not the template.
        assert float(off_arc(lines.points, height).median()) > 1
    for path in (out, truth):
        made = json.loads((path / "dataset_description.json").read_text())["GeneratedBy"][0]
        assert "my_atlas" in made["Description"]
    assert "my_atlas" in (out / "README").read_text()
    assert "HCP1065" not in (out / "README").read_text()


def drawn(folder: Path, head: Anatomy, number: int = 0, bundles: tuple[str, ...] = (), **more: object) -> dict:
    subject = SubjectSettings(bundles=bundles)
    settings = SimulationSettings(seed=3, subject=subject, atlas=AtlasSettings(folder, **more))  # type: ignore[arg-type]
    return template_bundles(plan(head, settings), number)


def test_people_differ_and_each_is_the_same_again(folder: Path, head: Anatomy) -> None:
    several = [drawn(folder, head, number) for number in range(12)]
    kept = [len(lines) for person in several for lines in person.values()]
    assert min(kept) >= 4  # of 9, the fewest
    assert len(set(kept)) > 1
    assert len({tuple(person) for person in several}) > 1  # some have both, some one
    away = torch.stack([off_arc(p["UpperArch"].points, 10.0).mean() for p in several if "UpperArch" in p])
    assert 1 < float(away.mean()) < 10
    for one, same in zip(several[2].values(), drawn(folder, head, 2).values(), strict=True):
        assert torch.equal(one.points, same.points)
    # Choosing a bundle changes none.
    chosen = drawn(folder, head, 2, ("Upper_Arch",))
    assert list(chosen) == [name for name in several[2] if name == "UpperArch"]
    assert all(torch.equal(lines.points, several[2][name].points) for name, lines in chosen.items())


def test_held_out_lines_are_every_third(folder: Path, head: Anatomy) -> None:
    held_out = drawn(folder, head, lines="held-out", variation=0.0)["UpperArch"]
    training = drawn(folder, head, lines="training", variation=0.0)["UpperArch"]
    y = [sorted({round(float(line[:, 1].mean())) + 4 for line in lines}) for lines in (held_out, training)]
    assert y == [[2, 5, 8], [0, 1, 3, 4, 6, 7]]


def test_variation_is_scaled(folder: Path) -> None:
    half, none = (between_people(AtlasSettings(folder, variation=scale)) for scale in (0.5, 0.0))
    assert (half.shift_mm, half.bend_mm, half.width) == pytest.approx((1.25, 1.25, 0.1))
    assert (none.shift_mm, none.bend_mm, none.width, none.presence, none.shares) == (0, 0, 0, 1, (1, 1))
    # Registration leaves nothing to a participant that has a warp of its own.
    assert half.residual_mm == (0, 0)


def test_bundles_are_chosen_by_either_name(folder: Path) -> None:
    def tracts(*names: str) -> tuple[str, ...]:
        atlas: Atlas = read_atlas(AtlasSettings(folder), names)
        return atlas.chosen

    assert tracts() == ("LowerArchL2", "UpperArch")
    assert tracts("Lower_ArchL_2") == tracts("LowerArchL2") == ("LowerArchL2",)
    with pytest.raises(UsageError, match="'LowerArch'") as error:
        tracts("LowerArch")
    assert "UpperArch" in str(error.value.needed)


def test_folders_that_are_no_atlas_are_refused(tmp_path: Path) -> None:
    grid = ImageGrid((4, 4, 4), torch.eye(4, dtype=torch.float64), SPACE)
    with pytest.raises(MissingInputError):
        read_atlas(AtlasSettings(tmp_path))
    some, none = Streamlines.from_list(list(arc(0.0)), SPACE), Streamlines.from_list([], SPACE)
    write_tractogram(tmp_path / "CranialNerve_CNIIL.trx", some, grid)
    write_tractogram(tmp_path / "Empty.trx", none, grid)
    with pytest.raises(InputDataError, match="no line"):
        read_atlas(AtlasSettings(tmp_path))
    for name in ("A_B", "AB"):
        write_tractogram(tmp_path / f"{name}.trx", some, grid)
    with pytest.raises(InputDataError, match="name of its own"):
        read_atlas(AtlasSettings(tmp_path))
    assert tract_label("Association_CingulumL_Parolfactory") == "AssociationCingulumLParolfactory"


@pytest.mark.usefixtures("simulate")
def test_the_command_refuses_before_it_writes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    atlas = [str(out), *COARSE, "--atlas", str(folder)]
    assert simulate_command([str(out), "--atlas-lines", "training"]) == 64
    assert simulate_command([str(out), "--bundle-variation", "0"]) == 64
    assert simulate_command([*atlas, "--fibres", "20"]) == 64
    assert simulate_command([*atlas, "--bundles", "CST"]) == 64
    assert simulate_command([str(out), *COARSE, "--atlas", str(tmp_path)]) == 66
    assert not out.exists()
    assert "Traceback" not in capsys.readouterr().err
