"""Where voxels lie: sform, qform, voxel sizes, storage order; and the frame of the gradient table."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from .run import SIZES, Check, Run, axes_of, bad, odd, same, same_table, scanner_of, to_file

_NO_ROWS = {"srow_x": 0, "srow_y": 0, "srow_z": 0}


@odd("I16", "W-IMG-SFORM", "the qform is used")
def sform_zero_and_qform_valid(run: Run) -> Check:
    run.reset(**_NO_ROWS)
    return same


@bad("I16", "E-IMG-SFORM", "singular")
def sform_zero_and_no_qform(run: Run) -> None:
    run.reset(**_NO_ROWS, qform_code=0)


@bad("I17", "E-IMG-SFORM-NAN", "NaN")
def sform_nan(run: Run) -> None:
    run.reset(srow_y=[np.nan, 2, 0, 0])


@bad("I18", "E-IMG-ORIENTATION", "--assume-orientation")
def no_orientation(run: Run) -> None:
    run.reset(qform_code=0, sform_code=0)


@odd("I18", "W-IMG-ASSUMED", "LAS", assume_orientation=True)
def no_orientation_but_assumed(run: Run) -> Check:
    run.reset(qform_code=0, sform_code=0)

    def check(result: Any, good: Any) -> None:
        np.testing.assert_allclose(result.grid.affine[:3, :3].numpy(), np.diag([-1, 1, 1] * SIZES), atol=1e-6)
        # The table is read in the frame that was assumed, left-handed: components are the stored cosines, x turned.
        np.testing.assert_allclose(result.gtab.bvecs.numpy(), run.bvecs * [-1, 1, 1], atol=1e-6)

    return check


@odd("I18")
def qform_alone(run: Run) -> Check:
    run.reset(sform_code=0, **_NO_ROWS)
    return same


@odd("I18")
def sform_alone(run: Run) -> Check:
    run.reset(qform_code=0)
    return same


@bad("I19", "E-IMG-HANDEDNESS", "handedness")
def qform_and_sform_mirror_each_other(run: Run) -> None:
    run.reset(
        srow_x=run.affine[0] * [-1, 1, 1, 1], srow_y=run.affine[1] * [-1, 1, 1, 1], srow_z=run.affine[2] * [-1, 1, 1, 1]
    )


def _turned(run: Run, degrees: float, shift: float) -> None:
    turn = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    centre = run.affine @ [5.5, 5, 4.5, 1]
    moved = np.eye(4)
    moved[:3, :3] = turn @ run.affine[:3, :3]
    moved[:3, 3] = centre[:3] - moved[:3, :3] @ [5.5, 5, 4.5] + [0, shift, 0]
    run.reset(srow_x=moved[0], srow_y=moved[1], srow_z=moved[2])


@odd("I20", "W-IMG-QSFORM", r"differ by 0\.50°")
def qform_and_sform_differ_a_little(run: Run) -> Check:
    _turned(run, 0.5, 0.3)

    def check(result: Any, good: Any) -> None:
        expected = Rotation.from_euler("z", 0.5, degrees=True).as_matrix() @ good.grid.affine[:3, :3].numpy()
        np.testing.assert_allclose(result.grid.affine[:3, :3].numpy(), expected, atol=1e-5)

    return check


@bad("I20", "E-IMG-QSFORM", r"differ by 3\.00°.*sform \[\[.*qform \[\[")
def qform_and_sform_differ_by_rotation(run: Run) -> None:
    _turned(run, 3, 0)


@bad("I20", "E-IMG-QSFORM", r"by 2\.00 mm")
def qform_and_sform_differ_by_translation(run: Run) -> None:
    _turned(run, 0, 2)


def _sheared(run: Run, degrees: float) -> None:
    shear = np.eye(4)
    shear[0, 1] = np.tan(np.radians(degrees))
    affine = shear @ run.affine
    run.reset(srow_x=affine[0], srow_y=affine[1], srow_z=affine[2], qform_code=0)


@odd("I21", "W-IMG-SHEAR", "sheared by 0")
def little_shear(run: Run) -> Check:
    _sheared(run, 0.5)

    def check(result: Any, good: Any) -> None:
        axes = axes_of(result.grid.affine.numpy())
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
        assert np.abs(result.grid.affine.numpy() - good.grid.affine.numpy())[:3, :3].max() < 0.03

    return check


@bad("I21", "E-IMG-SHEAR", "sheared by")
def much_shear(run: Run) -> None:
    _sheared(run, 5)


def _stored_as(run: Run, permutation: tuple[int, int, int], flips: tuple[int, int, int]) -> Check:
    """The same head and gradients with the voxels stored along other axes."""
    sizes = np.array(run.data.shape[:3])
    move = np.zeros((4, 4))
    for new, (old, flip) in enumerate(zip(permutation, flips, strict=True)):
        move[old, new] = flip
        move[old, 3] = 0 if flip > 0 else sizes[old] - 1
    move[3, 3] = 1
    data = run.data.transpose(*permutation, 3)[:: flips[0], :: flips[1], :: flips[2]]
    run.data, run.affine = np.ascontiguousarray(data), run.affine @ move
    run.bvecs = to_file(scanner_of(run), run.affine)
    run.save()
    return same_table


@odd("I22")
def oblique(run: Run) -> Check:
    def check(result: Any, good: Any) -> None:
        np.testing.assert_allclose(result.gtab.bvecs.numpy(), scanner_of(run), atol=1e-6)

    return check


@odd("I23")
def right_handed(run: Run) -> Check:
    return _stored_as(run, (0, 1, 2), (-1, 1, 1))


@bad("I24", "E-IMG-PIXDIM", "pixdim is 2 × 0 × 2.5")
def voxel_size_zero(run: Run) -> None:
    run.reset(pixdim=[-1, 2, 0, 2.5, 1, 1, 1, 1])


@bad("I24", "E-IMG-PIXDIM", "pixdim is -2")
def voxel_size_negative(run: Run) -> None:
    run.reset(pixdim=[-1, -2, 2.2, 2.5, 1, 1, 1, 1])


@bad("I24", "E-IMG-VOXEL", "metres")
def unit_of_metres(run: Run) -> None:
    run.reset(xyzt_units=1)


@bad("I24", "E-IMG-VOXEL", "micrometres")
def unit_of_micrometres(run: Run) -> None:
    run.reset(xyzt_units=3)


@odd("I24", "W-IMG-UNIT", "converted to mm")
def micrometres_meant(run: Run) -> Check:
    run.affine[:3] *= 1000
    run.reset(xyzt_units=3)
    return same


@bad("I24", "E-IMG-VOXEL", "20 mm")
def voxels_too_large(run: Run) -> None:
    run.affine[:3] *= 15
    run.save_image()


@odd("I25", "W-IMG-ANISOTROPIC", "1 × 1 × 10 mm")
def thick_slices(run: Run) -> None:
    run.affine[:3, :3] = axes_of(run.affine) @ np.diag([1, 1, 10])
    run.save_image()


@bad("I26", "E-IMG-SLICE", "--no-tracking", will_track=True)
def single_slice(run: Run) -> None:
    run.save_image(run.image_bytes(run.data[:, :, 4:5]))


@odd("I26")
def single_slice_without_tracking(run: Run) -> None:
    run.save_image(run.image_bytes(run.data[:, :, 4:5]))


@bad("I26", "E-IMG-SLICE", "1 × 1 × 1 voxels", will_track=True)
def single_voxel(run: Run) -> None:
    run.save_image(run.image_bytes(run.data[6:7, 6:7, 6:7]))


@odd("I26")
def single_voxel_without_tracking(run: Run) -> None:
    run.save_image(run.image_bytes(run.data[6:7, 6:7, 6:7]))


@odd("G21")
def flipped_axis_is_never_mended_by_the_reader(run: Run) -> Check:
    run.save_table(bvecs=run.bvecs * [-1, 1, 1])

    def check(result: Any, good: Any) -> None:
        axes = axes_of(run.affine)
        np.testing.assert_allclose(result.gtab.bvecs.numpy(), (run.bvecs * [-1, 1, 1]) @ axes.T, atol=1e-6)

    return check


@odd("G23")
def right_handed_table(run: Run) -> Check:
    _stored_as(run, (0, 1, 2), (1, -1, 1))

    def check(result: Any, good: Any) -> None:
        assert np.linalg.det(result.grid.affine[:3, :3].numpy()) > 0
        same_table(result, good)

    return check


@odd("G24")
def sagittal_storage(run: Run) -> Check:
    return _stored_as(run, (1, 2, 0), (-1, 1, -1))


@odd("G24")
def coronal_storage(run: Run) -> Check:
    return _stored_as(run, (0, 2, 1), (1, -1, 1))


@odd("G26")
def opposite_directions_keep_their_signs(run: Run) -> Check:
    run.bvecs[3] = -run.bvecs[2]
    run.save_table()

    def check(result: Any, good: Any) -> None:
        np.testing.assert_allclose(result.gtab.bvecs[3].numpy(), -good.gtab.bvecs[2].numpy(), atol=1e-6)

    return check
