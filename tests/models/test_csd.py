"""CSD against MRtrix3 and DIPY; the response against its known truth; super-resolution from few directions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tractode.errors import InputDataError
from tractode.fields import GradientTable
from tractode.models.csd import CSD
from tractode.models.response import Response, estimate_response, gaussian_response, two_peaks
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh

B, AXIAL, RADIAL, S0 = 2500.0, 1.7e-3, 0.2e-3, 400.0


def _table(n: int) -> GradientTable:
    directions = torch.cat([torch.zeros(1, 3), sphere.directions(n)]).double()
    is_b0 = directions.norm(dim=-1) == 0
    return GradientTable(torch.where(is_b0, 0.0, B).double(), directions, is_b0)


def _fibres(gtab: GradientTable, n: int, snr: float, share: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Signals of two fibres each, Gaussian noise, and the two directions."""
    generator = torch.Generator().manual_seed(11)
    axes = torch.randn(n, 2, 3, generator=generator, dtype=torch.float64)
    axes = axes / axes.norm(dim=-1, keepdim=True)
    squared = (axes @ gtab.bvecs.mT).square()
    each = S0 * (-gtab.bvals * (RADIAL + (AXIAL - RADIAL) * squared)).exp()
    signal = share * each[:, 0] + (1 - share) * each[:, 1]
    noise = torch.randn(signal.shape, generator=generator, dtype=torch.float64) * S0 / snr
    return (signal + noise).abs(), axes


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("dwi2fod") is None, reason="MRtrix3 is not installed")
@pytest.mark.parametrize(("n_directions", "order"), [(15, 8), (20, 8), (60, 8), (60, 4)])
def test_coefficients_equal_those_of_mrtrix(
    tmp_path: Path, oblique_affine: torch.Tensor, n_directions: int, order: int
) -> None:
    gtab = _table(n_directions)
    data = _fibres(gtab, 60, snr=25)[0].to(torch.float32)
    response = gaussian_response(B, AXIAL, RADIAL, S0)
    nib.save(nib.Nifti1Image(data.reshape(3, 4, 5, -1).numpy(), oblique_affine.numpy()), tmp_path / "dwi.nii")
    np.savetxt(tmp_path / "grad.b", torch.cat([gtab.bvecs, gtab.bvals[:, None]], -1).numpy(), fmt="%.15g")
    np.savetxt(tmp_path / "response.txt", response.coefficients.numpy()[None], fmt="%.15g")
    # The same constraint directions; MRtrix3 takes azimuth and polar angle.
    x, y, z = sphere.directions(300).unbind(-1)
    np.savetxt(tmp_path / "hr.txt", torch.stack([torch.atan2(y, x), torch.acos(z)], -1).numpy(), fmt="%.15g")
    command = ["dwi2fod", "-quiet", "csd", "-lmax", str(order), "-grad", tmp_path / "grad.b", "-directions"]
    subprocess.run(
        [*command, tmp_path / "hr.txt", tmp_path / "dwi.nii", tmp_path / "response.txt", tmp_path / "fod.nii"],
        check=True,
    )
    theirs = np.asarray(nib.load(tmp_path / "fod.nii").dataobj).reshape(60, -1)
    ours = CSD(response, order=order).fit(data, gtab).numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore:The legacy descoteaux07:PendingDeprecationWarning")
def test_fods_agree_with_dipy_at_equal_order() -> None:
    from dipy.core.gradients import gradient_table
    from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel

    gtab = _table(60)
    signal, _ = _fibres(gtab, 40, snr=40, share=0.75)
    table = gradient_table(gtab.bvals.numpy(), bvecs=gtab.bvecs.numpy())
    model = ConstrainedSphericalDeconvModel(table, (np.array([AXIAL, RADIAL, RADIAL]), S0), sh_order_max=8)
    probes = sphere.directions(400)
    from dipy.core.sphere import Sphere

    theirs = torch.tensor(model.fit(signal.numpy()).odf(Sphere(xyz=probes.numpy())))
    ours = CSD(gaussian_response(B, AXIAL, RADIAL, S0)).fit(signal, gtab) @ sh.basis(probes, 8).mT
    # DIPY also pulls up what lies below a tenth of the mean, so the amplitudes differ and the peaks must not.
    angle = torch.rad2deg(sphere.angle(probes[theirs.argmax(-1)], probes[ours.argmax(-1)]))
    # The 400 probes are some 8° apart: at most one step.
    assert float(angle.median()) < 1
    assert float(angle.quantile(0.9)) < 8.5
    correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(ours, theirs, strict=True)])
    assert float(correlation.median()) > 0.97


def test_a_single_fibre_has_density_one_and_its_own_direction() -> None:
    gtab = _table(60)
    signal, axes = _fibres(gtab, 50, snr=1e6, share=1.0)
    model = CSD(gaussian_response(B, AXIAL, RADIAL, S0))
    params = model.fit(signal, gtab)
    torch.testing.assert_close(model.to_maps(params)["afd"], torch.ones(50, 1, dtype=torch.float64), rtol=0.02, atol=0)
    peaks = two_peaks(params, 8)[1][:, 0]
    assert float(torch.rad2deg(sphere.angle(peaks, axes[:, 0])).max()) < 0.5


def test_super_resolution_from_fifteen_directions_finds_the_fibre() -> None:
    gtab = _table(15)
    signal, axes = _fibres(gtab, 100, snr=30, share=1.0)
    params = CSD(gaussian_response(B, AXIAL, RADIAL, S0)).fit(signal, gtab)
    assert params.shape == (100, 45)
    angle = torch.rad2deg(sphere.angle(two_peaks(params, 8)[1][:, 0], axes[:, 0]))
    assert float(angle.median()) < 4


def test_the_response_is_that_which_made_the_signals() -> None:
    gtab = _table(30)
    single, _ = _fibres(gtab, 400, snr=40, share=1.0)
    crossing, _ = _fibres(gtab, 400, snr=40, share=0.5)
    shell = CSD.shell(gtab)
    assert shell is not None
    found = estimate_response(torch.cat([single, crossing]), gtab, shell)
    truth = gaussian_response(B, AXIAL, RADIAL, S0)
    assert found.method == "tournier"
    angles = torch.linspace(0, 1.5708, 10, dtype=torch.float64).cos()
    profiles = [sh.zonal(r.order, angles) @ r.coefficients for r in (found, truth)]
    assert float((profiles[0] - profiles[1]).abs().max()) < 0.05 * float(profiles[1].max())


def test_no_white_matter_is_an_error_that_says_so() -> None:
    gtab = _table(30)
    isotropic = 300 * (-gtab.bvals * 0.8e-3).exp().expand(200, -1)
    with pytest.raises(InputDataError, match="E-CSD-RESPONSE"):
        CSD.for_data(isotropic, gtab)


def test_the_shell_is_the_largest_b_with_enough_directions() -> None:
    def table(*shells: tuple[float, int]) -> GradientTable:
        bvals = torch.cat([torch.zeros(1), *(torch.full((n,), b) for b, n in shells)]).double()
        bvecs = torch.cat([torch.zeros(1, 3).double(), *(sphere.directions(n) for _, n in shells)])
        return GradientTable(bvals, bvecs, bvals == 0)

    def chosen(*shells: tuple[float, int]) -> float | None:
        gtab = table(*shells)
        shell = CSD.shell(gtab)
        return None if shell is None else float(gtab.bvals[shell].mean())

    assert chosen((1000.0, 16), (2500.0, 32)) == 2500
    assert chosen((1000.0, 30), (3000.0, 6)) == 1000
    assert chosen((1000.0, 15), (2000.0, 14)) == 1000
    assert chosen((1000.0, 14)) is None
    assert chosen((500.0, 30)) is None


def test_another_shell_cannot_be_predicted() -> None:
    bvals = torch.tensor([0.0] + [1000.0] * 15 + [3000.0] * 15).double()
    bvecs = torch.cat([torch.zeros(1, 3).double(), sphere.directions(15), sphere.directions(15)])
    with pytest.raises(InputDataError, match="E-CSD-SHELL"):
        CSD().predict(CSD().example(0, 2), GradientTable(bvals, bvecs, bvals == 0))


def test_a_response_of_one_coefficient_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        Response(torch.ones(1, dtype=torch.float64), 1000.0, 1.0)
