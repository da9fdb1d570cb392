"""Values of voxels: not finite, negative, constant, scaled, of other types; and anatomical images."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from .run import Check, Run, bad, odd, same


def _float(run: Run) -> np.ndarray:
    return run.data.astype(np.float32)


def _with_bad_voxel(run: Run, value: float) -> Check:
    data = np.repeat(_float(run), 6, axis=0)
    run.affine[:3, 0] /= 4
    data[20, 5, 5, 4] = value
    run.save_image(run.image_bytes(data))

    def check(result: Any, good: Any) -> None:
        assert not bool(result.mask[20, 5, 5])
        assert int((~result.mask).sum()) == 1
        assert bool(result.signal.isfinite().all())
        assert float(result.signal[:, 20, 5, 5].abs().max()) == 0
        assert float(result.signal[0, 21, 5, 5]) == data[21, 5, 5, 0]

    return check


@odd("I10", "W-DWI-NONFINITE", "1 voxels hold NaN or infinity")
def one_nan_voxel(run: Run) -> Check:
    return _with_bad_voxel(run, np.nan)


@bad("I10", "E-DWI-NONFINITE", "voxels of the head .* hold NaN")
def many_nan_voxels(run: Run) -> None:
    data = _float(run)
    data[4:8, 4:8, 4:8, 3] = np.nan
    run.save_image(run.image_bytes(data))


@bad("I10", "E-DWI-NONFINITE", "voxels of the head .* hold NaN")
def nan_in_every_volume(run: Run) -> None:
    data = _float(run)
    data[5:7, 5:7, 4:6] = np.nan
    run.save_image(run.image_bytes(data))


@odd("I10", "W-DWI-NONFINITE", r"\(0 of them in the head\)")
def nan_background(run: Run) -> Check:
    data = _float(run)
    data[:2] = np.nan
    run.save_image(run.image_bytes(data))

    def check(result: Any, good: Any) -> None:
        assert not bool(result.mask[:2].any())
        assert bool(result.mask[2:].all())

    return check


@odd("I11", "W-DWI-NONFINITE", "1 voxels hold NaN or infinity")
def one_infinite_voxel(run: Run) -> Check:
    return _with_bad_voxel(run, np.inf)


@bad("I11", "E-DWI-NONFINITE", "voxels of the head")
def many_infinite_voxels(run: Run) -> None:
    data = _float(run)
    data[4:8, 4:8, 4:8, 0] = -np.inf
    run.save_image(run.image_bytes(data))


@odd("I12", "W-DWI-NEGATIVE", "are negative and were set to 0")
def few_negatives(run: Run) -> Check:
    data = _float(run)
    data[0, 0, 0, 5], data[6, 6, 6, 7] = -3, -1
    run.save_image(run.image_bytes(data))

    def check(result: Any, good: Any) -> None:
        assert float(result.signal.min()) == 0
        assert bool(result.mask.all())

    return check


@bad("I12", "E-DWI-NEGATIVE", "% of the values in the head are negative")
def many_negatives(run: Run) -> None:
    run.save_image(run.image_bytes(_float(run) - 400))


@bad("I13", "E-DWI-CONSTANT", "every voxel of every volume is 0")
def all_zero(run: Run) -> None:
    run.save_image(run.image_bytes(run.data * 0))


@bad("I13", "E-DWI-CONSTANT", "every voxel of every volume is 7")
def all_constant(run: Run) -> None:
    run.save_image(run.image_bytes(run.data * 0 + 7))


@bad("I13", "E-DWI-EMPTY", r"volumes 5 \(1 in all\)")
def one_empty_volume(run: Run) -> None:
    run.data[..., 5] = 0
    run.save()


@odd("I14")
def slope_and_intercept(run: Run) -> Check:
    run.reset(scl_slope=0.5, scl_inter=3)

    def check(result: Any, good: Any) -> None:
        np.testing.assert_allclose(result.signal.numpy(), 0.5 * good.signal.numpy() + 3)

    return check


def _unscaled(run: Run, slope: float) -> Check:
    run.reset(scl_slope=slope, scl_inter=3)
    return same


@odd("I14")
def slope_zero(run: Run) -> Check:
    return _unscaled(run, 0)


@odd("I14")
def slope_nan(run: Run) -> Check:
    return _unscaled(run, np.nan)


@odd("I14")
def slope_infinite(run: Run) -> Check:
    return _unscaled(run, np.inf)


@bad("I14", "E-IMG-SCALE", "scl_inter nan")
def intercept_nan(run: Run) -> None:
    run.reset(scl_slope=2, scl_inter=np.nan)


def _typed(run: Run, dtype: Any, **how: Any) -> Check:
    run.save_image(run.image_bytes(run.data.astype(dtype), **how))
    return same


@odd("I15")
def stored_as_float64(run: Run) -> Check:
    return _typed(run, np.float64)


@odd("I15")
def stored_as_uint16(run: Run) -> Check:
    return _typed(run, np.uint16)


@odd("I15")
def stored_as_int64(run: Run) -> Check:
    return _typed(run, np.int64)


@odd("I15")
def stored_big_endian(run: Run) -> Check:
    return _typed(run, ">i2", order=">")


@odd("I15")
def stored_as_nifti2(run: Run) -> Check:
    return _typed(run, np.int16, kind=nib.Nifti2Image)


@odd("I15")
def stored_as_big_endian_nifti2_floats(run: Run) -> Check:
    return _typed(run, ">f4", kind=nib.Nifti2Image, order=">")


@odd("I32", anatomy=True)
def anatomy_of_one_volume_in_four_dimensions(run: Run) -> Check:
    run.save_image(run.image_bytes(run.data[..., :1]))

    def check(image: Any, good: Any) -> None:
        assert tuple(image.values.shape) == (1, 12, 11, 10)

    return check


@bad("I32", "E-IMG-VOLUMES", "14 volumes", anatomy=True)
def anatomy_of_several_volumes(run: Run) -> None:
    run.save_image()


@bad("I32", "E-IMG-CONSTANT", "every voxel is 0", anatomy=True)
def anatomy_all_zero(run: Run) -> None:
    run.save_image(run.image_bytes(run.data[..., 0] * 0))


@odd("I10", "W-IMG-NONFINITE", "1 values", anatomy=True)
def anatomy_with_nan(run: Run) -> Check:
    data = run.data[..., 0].astype(np.float32)
    data[3, 3, 3] = np.nan
    run.save_image(run.image_bytes(data))

    def check(image: Any, good: Any) -> None:
        assert float(image.values[0, 3, 3, 3]) == 0

    return check
