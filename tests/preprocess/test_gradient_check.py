"""The verdict is right for every wrong permutation, on any storage, and says so when it cannot know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tractode.errors import UsageError
from tractode.fields import DWI, GradientTable, ImageGrid
from tractode.ops import sphere
from tractode.preprocess.gradient_check import check_gradients
from tractode.preprocess.gradient_fixes import apply_fix, candidate_fixes

SHAPE = (26, 24, 22)
WRONG = [name for name in candidate_fixes() if name != "identity"]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def _phantom(affine: torch.Tensor, fibre: str, snr: float = 20.0, n: int = 20, b: float = 1000.0) -> DWI:
    """Fibres in three rings (``curved``), all along one storage axis (``straight``), or none (``isotropic``)."""
    grid = ImageGrid(SHAPE, affine, "phantom")
    x = grid.centres(torch.float64) - grid.to_world((torch.tensor(SHAPE, dtype=torch.float64) - 1) / 2)
    # Three thin rings about three oblique axes. Thin, because what tells a right table from a wrong one is that a bundle
    # goes on along its fibres and ends across them; three, because one ring turned by 90° about its axis is as coherent.
    turn = torch.linalg.qr(torch.tensor([[0.8, 0.3, -0.5], [0.2, 0.9, 0.4], [0.6, -0.4, 0.7]], dtype=torch.float64)).Q
    nearest = (x @ turn).abs().argmin(-1)
    tangent = torch.linalg.cross(turn.mT[nearest], x)
    in_ring = ((x @ turn).abs().amin(-1) < 4) & ((x.norm(dim=-1) - 19).abs() < 4)
    direction = {"curved": tangent, "straight": affine[:3, 0].expand_as(x), "isotropic": 0 * x}[fibre]
    direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    directions = torch.cat([torch.zeros(2, 3), sphere.directions(n)]).double()
    is_b0 = directions.norm(dim=-1) == 0
    gtab = GradientTable(torch.where(is_b0, 0.0, b).double(), directions, is_b0)
    if fibre == "curved":
        direction = direction * in_ring[..., None]
    attenuation = 3e-4 + 1.4e-3 * (direction @ gtab.bvecs.mT).square()
    attenuation = torch.where(direction.norm(dim=-1, keepdim=True) > 0.5, attenuation, 8e-4)
    signal = (-gtab.bvals * attenuation).exp()
    noise = torch.randn(*signal.shape, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64) / snr
    signal = 500 * ((signal + noise[..., 0]).square() + noise[..., 1].square()).sqrt()
    radius = x.norm(dim=-1)
    mask = radius < 26
    return DWI(grid, signal.permute(3, 0, 1, 2).float(), gtab, mask)


@pytest.fixture
def curved(oblique_affine: torch.Tensor) -> DWI:
    return _phantom(oblique_affine, "curved")


def test_twenty_four_axially_different_tables() -> None:
    fixes = list(candidate_fixes().values())
    assert len(fixes) == 24
    for i, a in enumerate(fixes):
        torch.testing.assert_close(a @ a.mT, torch.eye(3, dtype=torch.float64))
        assert all(not torch.equal(a, b) and not torch.equal(a, -b) for b in fixes[:i])


def test_the_right_table_passes(curved: DWI) -> None:
    verdict = check_gradients(curved, _generator())
    assert verdict.verdict == "PASS"
    assert verdict.margin > 0
    assert verdict.margin_bounds[0] > 0
    assert verdict.suggested_fix is None
    assert verdict.record()["verdict"] == "PASS"


@pytest.mark.parametrize("error", WRONG)
def test_each_wrong_table_fails_and_the_fix_restores_it(curved: DWI, error: str) -> None:
    spoiled = apply_fix(curved.gtab, curved.grid.affine, error)
    verdict = check_gradients(replace(curved, gtab=spoiled), _generator())
    assert verdict.verdict == "FAIL"
    assert verdict.suggested_fix is not None
    mended = apply_fix(spoiled, curved.grid.affine, verdict.suggested_fix)
    assert float(sphere.angle(mended.bvecs[2:], curved.gtab.bvecs[2:]).max()) < 1e-6


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_any_storage_gives_the_same_verdict(oblique_affine: torch.Tensor, axes: tuple[int, ...], sign: int) -> None:
    affine = oblique_affine[:, [*axes, 3]].clone()
    affine[:3, 0] *= sign
    dwi = _phantom(affine, "curved")
    assert check_gradients(dwi, _generator()).verdict == "PASS"
    spoiled = replace(dwi, gtab=apply_fix(dwi.gtab, affine, "flipx"))
    assert check_gradients(spoiled, _generator()).suggested_fix == "flipx"


@pytest.mark.parametrize("fibre", ["straight", "isotropic"])
def test_what_cannot_be_told_is_inconclusive(oblique_affine: torch.Tensor, fibre: str) -> None:
    # Fibres along one storage axis look the same after any change of the two others.
    verdict = check_gradients(_phantom(oblique_affine, fibre), _generator())
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.suggested_fix is None
    assert verdict.reason


def test_noise_with_uneven_directions_fails_no_table(oblique_affine: torch.Tensor) -> None:
    """Directions that leave a part of the sphere out give noise a direction of its own, and that suits some tables by chance."""
    scan = _phantom(oblique_affine, "isotropic", n=12)
    uneven = scan.gtab.bvecs * torch.tensor([1.0, 0.5, 0.3], dtype=torch.float64)
    uneven = uneven / uneven.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    noise = torch.randn(scan.signal.shape, generator=torch.Generator().manual_seed(1)).abs() * 20
    scan = replace(
        scan,
        signal=noise * torch.where(scan.gtab.is_b0, 2.0, 1.0)[:, None, None, None].float(),
        gtab=replace(scan.gtab, bvecs=uneven),
    )
    verdict = check_gradients(scan, _generator())
    assert verdict.verdict == "INCONCLUSIVE", verdict.reason
    assert verdict.suggested_fix is None


def test_b_values_out_of_order_fail(curved: DWI) -> None:
    rolled = curved.gtab[torch.arange(len(curved.gtab)).roll(3)]
    verdict = check_gradients(replace(curved, gtab=rolled), _generator())
    assert verdict.verdict == "FAIL"
    assert "b" in verdict.reason
    assert next(stage for stage in verdict.stages if stage.name == "attenuation").passed is False


def test_the_same_generator_gives_the_same_record(curved: DWI) -> None:
    assert check_gradients(curved, _generator()).record() == check_gradients(curved, _generator()).record()


def test_a_fix_applied_to_the_file_is_a_change_of_its_rows(oblique_affine: torch.Tensor, curved: DWI) -> None:
    # Scanner = R F v (HOUSE §3), so the rows of the file are (R F)⁻¹ g.
    axes = oblique_affine[:3, :3] / oblique_affine[:3, :3].norm(dim=0)
    if float(torch.det(axes)) > 0:
        axes = axes * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    before = curved.gtab.bvecs @ torch.linalg.inv(axes).mT
    after = apply_fix(curved.gtab, oblique_affine, "swapxy_flipz").bvecs @ torch.linalg.inv(axes).mT
    torch.testing.assert_close(after, before[:, [1, 0, 2]] * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))


def test_an_unknown_fix_is_a_usage_error(curved: DWI) -> None:
    with pytest.raises(UsageError, match="flipx"):
        apply_fix(curved.gtab, curved.grid.affine, "flipw")


RUNS = {
    "sub-canonA/dwi/sub-canonA_acq-ortho_dir-AP": ("FAIL", "flipz"),
    "sub-canonA/dwi/sub-canonA_acq-SAGortho_dir-PA": ("FAIL", "flipx"),
    "sub-canonA/dwi/sub-canonA_acq-ortho_dir-PA": ("PASS", None),
    "sub-xa30/dwi/sub-xa30_dir-AP": ("PASS", None),
    "sub-ds114/dwi/sub-ds114": ("PASS", None),
    "sub-prismasag/dwi/sub-prismasag_acq-mosaic_dir-AP": ("PASS", None),
    "sub-toshiba60/dwi/sub-toshiba60": ("PASS", None),
}


@pytest.mark.parametrize("run", RUNS)
def test_real_runs(test_data, run: str) -> None:
    from tractode.io.dwi import IngestPolicy, read_dwi

    stem = test_data / "bids_real" / run
    files = [stem.with_name(stem.name + f"_dwi{ext}") for ext in (".nii.gz", ".bval", ".bvec")]
    dwi, _ = read_dwi(*files, "run", IngestPolicy())
    verdict = check_gradients(dwi, _generator())
    assert (verdict.verdict, verdict.suggested_fix) == RUNS[run], verdict.reason
