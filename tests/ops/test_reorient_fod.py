"""Reorientation of distributions: rotations are exact, a shear turns a fibre to F v, totals are kept as each modulation says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tractode.ops import reorient_fod, sphere
from tractode.ops import spherical_harmonics as sh

ORDER = 8
SHEAR = torch.tensor([[1.0, 0.3, -0.1], [0.05, 0.9, 0.2], [0.0, -0.15, 1.2]], dtype=torch.float64)


def peak_of(coeffs: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """The maximum by climbing from ``near`` (float64)."""
    direction = near.clone().requires_grad_(True)
    for _ in range(60):
        amplitude = sh.basis(direction / direction.norm(), ORDER) @ coeffs
        (slope,) = torch.autograd.grad(amplitude, direction)
        direction = (direction + 0.02 * slope / amplitude.detach()).detach()
        direction = (direction / direction.norm()).requires_grad_(True)
    return direction.detach()


@pytest.mark.parametrize("order", [2, 4, 8, 12])
def test_the_point_spread_is_nowhere_negative_sharp_and_integrates_to_one(order: int) -> None:
    axis = torch.tensor([0.36, 0.48, -0.8], dtype=torch.float64)
    coeffs = reorient_fod.point_spread(axis, order)
    everywhere = sphere.directions(3000, hemisphere=False)
    values = sh.basis(everywhere, order) @ coeffs
    assert float(values.min()) > -1e-12
    assert float(values.mean() * 4 * torch.pi) == pytest.approx(1, abs=1e-3)
    assert float(sh.basis(axis, order) @ coeffs) >= float(values.max())


def test_no_kernel_of_order_two_that_is_not_negative_is_sharper() -> None:
    """An absolute anchor: 1 + 5 a P₂(t) ≥ 0 on [−1, 1] exactly for a ≤ 2/5."""
    assert reorient_fod._apodisation(2) == pytest.approx((1.0, 0.4))


def test_a_rotation_turns_coefficients_as_rotated_harmonics() -> None:
    rotations = torch.from_numpy(Rotation.random(4, random_state=3).as_matrix())
    coeffs = torch.randn(4, 45, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    turned = reorient_fod.reorient(coeffs, rotations, ORDER)
    where = sphere.directions(80, hemisphere=False)
    for n in range(4):
        expected = sh.basis(where @ rotations[n], ORDER) @ coeffs[n]  # f(R⁻¹ d)
        torch.testing.assert_close(sh.basis(where, ORDER) @ turned[n], expected, atol=1e-10, rtol=0)
        one = reorient_fod.reorient(coeffs[n : n + 1], rotations[n : n + 1], ORDER)
        torch.testing.assert_close(one[0], turned[n], atol=1e-12, rtol=0)


def test_a_shear_turns_a_fibre_where_it_turns_a_line() -> None:
    fibres = sphere.directions(7)
    turned = reorient_fod.reorient(reorient_fod.point_spread(fibres, ORDER), SHEAR[None], ORDER)
    for n, fibre in enumerate(fibres):
        carried = SHEAR @ fibre / (SHEAR @ fibre).norm()
        apart = sphere.angle(peak_of(turned[n], carried), carried)
        # A lobe of order 8 is 30° wide and the shear bends it: its top is not quite where its middle goes (MRtrix3's neither).
        assert float(torch.rad2deg(apart)) < 1.3


def test_modulation_keeps_what_it_says() -> None:
    """Of one fibre: its integral stays, is divided by the widening of its cross-section, or by that of the volume."""
    fibre = torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64)
    coeffs = reorient_fod.point_spread(fibre, ORDER)[None]
    total = {
        m: float(reorient_fod.reorient(coeffs, SHEAR[None], ORDER, m)[0, 0] / coeffs[0, 0])
        for m in ("none", "fod", "jacobian")
    }
    volume, length = float(torch.det(SHEAR)), float((SHEAR @ fibre).norm())
    assert total["none"] == pytest.approx(1, abs=1e-6)
    assert total["fod"] == pytest.approx(length / volume, rel=2e-2)
    assert total["jacobian"] == pytest.approx(1 / volume, rel=1e-6)


def test_gradients_reach_coefficients_and_map() -> None:
    coeffs = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    forward = torch.stack([SHEAR, SHEAR.T]).requires_grad_(True)
    for modulation in ("none", "fod", "jacobian"):
        assert torch.autograd.gradcheck(
            lambda c, f, m=modulation: reorient_fod.reorient(c, f, 2, m, 20), (coeffs, forward)
        )


def test_results_do_not_depend_on_the_batch() -> None:
    generator = torch.Generator().manual_seed(4)
    coeffs = torch.randn(200, 45, generator=generator)
    forward = torch.eye(3) + 0.1 * torch.randn(200, 3, 3, generator=generator)
    together = reorient_fod.reorient(coeffs, forward, ORDER)
    assert torch.equal(together[:128], reorient_fod.reorient(coeffs[:128], forward[:128], ORDER))


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("mrtransform") is None, reason="mrtransform is not installed")
@pytest.mark.parametrize(
    ("modulation", "theirs"), [("none", []), ("fod", ["-modulate", "fod"]), ("jacobian", ["-modulate", "jac"])]
)
def test_mrtransform_turns_alike(modulation: str, theirs: list[str], tmp_path: Path) -> None:
    """A uniform field under a shear: coefficients within 1 %, which is what another apodisation and set of directions make."""
    nib = pytest.importorskip("nibabel")
    coeffs = 0.7 * reorient_fod.point_spread(torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64), ORDER)
    coeffs = coeffs + 0.3 * reorient_fod.point_spread(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), ORDER)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -4
    field = coeffs.expand(5, 5, 5, 45).numpy().astype(np.float32)
    nib.save(nib.Nifti1Image(field, affine), tmp_path / "in.nii")
    linear = np.eye(4)
    linear[:3, :3] = np.linalg.inv(SHEAR.numpy())
    np.savetxt(tmp_path / "linear.txt", linear)
    command = [
        "mrtransform",
        "-quiet",
        "-linear",
        "linear.txt",
        "-template",
        "in.nii",
        "-reorient_fod",
        "yes",
        "-interp",
        "linear",
    ]
    subprocess.run([*command, *theirs, "in.nii", "out.nii"], check=True, cwd=tmp_path)
    found = torch.from_numpy(nib.load(tmp_path / "out.nii").get_fdata()[2, 2, 2])
    ours = reorient_fod.reorient(coeffs[None], SHEAR[None], ORDER, modulation)[0]  # type: ignore[arg-type]
    assert float((ours - found).norm() / found.norm()) < 0.01
    top = SHEAR @ torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    top = top / top.norm()
    assert float(torch.rad2deg(sphere.angle(peak_of(ours, top), peak_of(found, top)))) < 0.1
