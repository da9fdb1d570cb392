"""Normalisation by all tissues: a known shading is found, whatever the tissues' scales; and MRtrix3's result."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tractode.errors import InputDataError
from tractode.fields import ImageGrid
from tractode.models.mtnormalise import REFERENCE, Normalised, normalise


def shaded(affine: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Tissues of a head with a smooth shading, some voxels that are absurdly bright, the shading and the mask."""
    grid = ImageGrid((18, 20, 16), affine, "phantom")
    centres = grid.centres(torch.float64)
    x = centres - centres.reshape(-1, 3).mean(0)
    x = x / x.abs().reshape(-1, 3).amax(0)
    mask = x.norm(dim=-1) < 0.95
    generator = torch.Generator().manual_seed(4)
    smooth = torch.stack([(3 * x[..., k] + k).sin() + x[..., (k + 1) % 3] for k in range(3)], -1)
    shares = torch.softmax(3 * smooth, -1)
    shading = (0.3 * x[..., 0] - 0.25 * x[..., 1] ** 2 + 0.2 * x[..., 0] * x[..., 2] + 0.4).exp()
    noise = 1 + 0.03 * torch.randn(*grid.shape, 3, generator=generator, dtype=torch.float64)
    # Responses that do not match in scale: grey matter and CSF come out too large.
    values = shares * torch.tensor([1.0, 1.3, 1.15], dtype=torch.float64) * noise * shading[..., None] * REFERENCE * 1.7
    values[torch.rand(grid.shape, generator=generator) < 0.01] *= 4
    values = torch.where(mask[..., None], values, 0.0)
    white = torch.cat([values[None, ..., 0], 0.3 * values[None, ..., 0]])
    return {"wm": white, "gm": values[None, ..., 1], "csf": values[None, ..., 2]}, shading, mask


def ratio(found: Normalised, shading: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    quotient = (found.field / shading)[mask]
    return quotient / quotient.median()


def test_a_smooth_shading_is_found_and_the_sum_becomes_the_reference(oblique_affine: torch.Tensor) -> None:
    tissues, shading, mask = shaded(oblique_affine)
    before = {name: values.clone() for name, values in tissues.items()}
    found = normalise(tissues, mask)
    assert float((ratio(found, shading, mask) - 1).abs().max()) < 0.03
    assert found.balance["wm"] / found.balance["gm"] == pytest.approx(1.3, rel=0.05)
    assert found.balance["wm"] / found.balance["csf"] == pytest.approx(1.15, rel=0.05)
    total = sum(found.balance[name] * values[0] for name, values in found.tissues.items())
    assert float(total[mask].median()) == pytest.approx(REFERENCE, rel=0.01)
    assert math.prod(found.balance.values()) == pytest.approx(1)
    assert all(torch.equal(tissues[name], before[name]) for name in tissues)
    # Every component of a tissue is divided alike, and what is bright for another reason is left out.
    torch.testing.assert_close(found.tissues["wm"][1], 0.3 * found.tissues["wm"][0])
    assert 0.005 < float(found.outliers[mask].double().mean()) < 0.1


def test_scale_and_storage_of_the_grid_do_not_matter(oblique_affine: torch.Tensor) -> None:
    tissues, _, mask = shaded(oblique_affine)
    found = normalise(tissues, mask)
    other = normalise({name: 250 * values for name, values in tissues.items()}, mask)
    torch.testing.assert_close(other.tissues["gm"], found.tissues["gm"], rtol=1e-6, atol=1e-9)
    turned = {name: values.permute(0, 3, 1, 2).flip(2) for name, values in tissues.items()}
    moved = normalise(turned, mask.permute(2, 0, 1).flip(1)).tissues["gm"].flip(2).permute(0, 2, 3, 1)
    torch.testing.assert_close(moved, found.tissues["gm"], rtol=1e-5, atol=1e-8)


def test_a_mask_without_tissue_is_refused(oblique_affine: torch.Tensor) -> None:
    tissues, _, mask = shaded(oblique_affine)
    with pytest.raises(InputDataError, match="E-MTNORMALISE-MASK"):
        normalise({name: 0 * values for name, values in tissues.items()}, mask)


@pytest.mark.reference
@pytest.mark.skipif(shutil.which("mtnormalise") is None, reason="MRtrix3 is not installed")
def test_the_result_is_near_that_of_mrtrix(tmp_path: Path, oblique_affine: torch.Tensor) -> None:
    tissues, _, mask = shaded(oblique_affine)
    affine, pairs = oblique_affine.numpy(), []
    for name, values in tissues.items():
        nib.save(nib.Nifti1Image(values[0].float().numpy(), affine), tmp_path / f"{name}.nii")
        pairs += [tmp_path / f"{name}.nii", tmp_path / f"{name}_normalised.nii"]
    nib.save(nib.Nifti1Image(mask.numpy().astype(np.uint8), affine), tmp_path / "mask.nii")
    subprocess.run(["mtnormalise", "-quiet", *pairs, "-mask", tmp_path / "mask.nii"], check=True)
    found = normalise(tissues, mask)
    for name in tissues:
        theirs = torch.tensor(np.asarray(nib.load(tmp_path / f"{name}_normalised.nii").dataobj)).double()
        ours = found.tissues[name][0]
        quotient = (ours / theirs)[mask & (theirs > 0.02)]
        assert float((quotient - 1).abs().max()) < 0.02
