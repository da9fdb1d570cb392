"""The field from scans of opposite phase encoding, against a field that is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tractode.errors import InputDataError
from tractode.fields import Affine, Image, ImageGrid
from tractode.ops import epi
from tractode.registration.reverse_encoding import (
    EncodedScan,
    Level,
    ReverseEncodingSettings,
    estimate_field,
    undistort,
)

READOUT = 0.05
FEW = ReverseEncodingSettings((Level(8.0, 16.0, 20), Level(5.0, 10.0, 20), Level(2.0, 7.0, 15)))


def head(points: Tensor, middle: Tensor) -> Tensor:
    """A ball of grey matter with ridges and two bright ventricles."""
    p = points - middle
    brain = torch.sigmoid((26 - p.norm(dim=-1)) / 1.0)
    ridges = 0.2 * torch.sin(p[..., 0] / 3.5) * torch.cos(p[..., 1] / 4.0 + p[..., 2] / 5.0)
    ventricles = [torch.sigmoid((6 - (p - torch.tensor([x, 0.0, 2.0]).to(p)).norm(dim=-1)) / 0.8) for x in (-7.0, 7.0)]
    return brain * (0.8 + ridges) + 0.8 * torch.stack(ventricles).sum(0)


def scene(affine: Tensor, motion: Tensor | None = None) -> tuple[EncodedScan, EncodedScan, Tensor, Tensor]:
    """Two scans of one field, the second after a motion; the field (Hz) and where the head is."""
    grid = ImageGrid((34, 32, 26), affine, "first")
    points = grid.centres(torch.float64)
    middle = grid.to_world(torch.tensor([16.5, 15.5, 12.5], dtype=torch.float64))
    at = middle + torch.tensor([3.0, 16.0, -6.0], dtype=torch.float64)

    def field(where: Tensor) -> Tensor:
        return 70 * torch.exp(-0.5 * ((where - at) / 10).square().sum(-1)) - 6

    generator = torch.Generator().manual_seed(0)
    scans = []
    for sign, space, matrix in ((1, "first", None), (-1, "second", motion)):
        # What the scan sees at its points lies, in the field's space, where the motion undone takes them.
        real = points if matrix is None else Affine(matrix, "first", "second").inverse().map(points)
        signal = head(real, middle)[None]
        moved = epi.distorted(signal, epi.shift_vox(field(real), sign, READOUT), 1)
        noisy = moved + 0.02 * torch.randn(moved.shape, generator=generator, dtype=torch.float64)
        scans.append(EncodedScan(Image(dataclasses.replace(grid, space=space), noisy.float()), 1, sign, READOUT))
    return scans[0], scans[1], field(points), head(points, middle)


def test_a_known_field_is_found_and_the_image_put_right(oblique_affine: Tensor) -> None:
    first, second, truth, signal = scene(oblique_affine)
    found = estimate_field((first, second), FEW)
    inside = signal > 0.5
    assert float((found.field.values[0] - truth)[inside].square().mean().sqrt()) < 3.0  # of 70 Hz
    assert found.difference_after < 0.5 * found.difference_before
    before, after = (
        float((values[0] - signal)[inside].square().mean().sqrt())
        for values in (first.image.values, undistort(first, found.field).values)
    )
    assert after < 0.5 * before


def test_a_motion_between_the_scans_is_found_too(oblique_affine: Tensor) -> None:
    motion = torch.eye(4, dtype=torch.float64)
    motion[:3, :3] = torch.linalg.matrix_exp(
        torch.tensor([[0, -0.03, 0.02], [0.03, 0, 0.01], [-0.02, -0.01, 0]], dtype=torch.float64)
    )
    motion[:3, 3] = torch.tensor([1.5, -1.0, 0.8])
    first, second, truth, signal = scene(oblique_affine, motion)
    found = estimate_field((first, second), FEW)
    inside = signal > 0.5
    points = first.image.grid.centres(torch.float64)[inside]
    apart = found.motions[1].map(points) - Affine(motion, "first", "second").map(points)
    # A shift along the encoding and a constant field are one and the same to the scans.
    along = first.direction / first.direction.norm()
    assert float((apart - (apart @ along)[:, None] * along).norm(dim=-1).mean()) < 0.6  # 2 mm without it
    off = (found.field.values[0] - truth)[inside]
    assert float((off - off.mean()).square().mean().sqrt()) < 3.0
    one, other = (undistort(s, found.field, m).values[0] for s, m in zip((first, second), found.motions, strict=True))
    assert float((one - other)[inside].square().mean().sqrt()) < 0.05


def test_turning_the_names_round_changes_nothing(oblique_affine: Tensor) -> None:
    """A field of the other sign with the other encoding is the same scan."""
    first, second, _, _ = scene(oblique_affine)
    quick = ReverseEncodingSettings((Level(8.0, 16.0, 10),))
    one = estimate_field((first, second), quick).field.values
    other = estimate_field(
        (dataclasses.replace(first, sign=-1), dataclasses.replace(second, sign=1)), quick
    ).field.values
    torch.testing.assert_close(one, -other, atol=0.5, rtol=0)


def test_scans_of_one_encoding_are_refused(oblique_affine: Tensor) -> None:
    first, second, _, _ = scene(oblique_affine)
    with pytest.raises(InputDataError) as caught:
        estimate_field((first, dataclasses.replace(second, sign=1)), FEW)
    assert caught.value.id == "E-EPI-ONEWAY"
    with pytest.raises(InputDataError, match="axis of 0, 1 or 2"):
        dataclasses.replace(first, axis=3)
