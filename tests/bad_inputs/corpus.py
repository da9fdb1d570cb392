"""Bad and odd dwi runs, made by code: one function per row of the table of inputs that users were hurt by.

Each function spoils a good run in place. `ROWS` says what must follow: the exit code, the stable ID and words of the
message; or, for what must be accepted, the ID of the note, and a check of the result that the function returns.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

Check = Callable[[Any, Any], None]  # (result, result of the good run)


@dataclass
class Run:
    """The files of a run and what is in them; `save` writes them."""

    folder: Path
    data: np.ndarray
    affine: np.ndarray
    bvals: np.ndarray
    bvecs: np.ndarray  # (n, 3), in the frame of the file
    header: dict[str, Any] = field(default_factory=dict)
    stem: str = "sub-01_dwi"

    @property
    def nii(self) -> Path:
        return self.folder / f"{self.stem}.nii.gz"

    @property
    def bval(self) -> Path:
        return self.folder / f"{self.stem}.bval"

    @property
    def bvec(self) -> Path:
        return self.folder / f"{self.stem}.bvec"

    def image_bytes(self, data: np.ndarray | None = None, kind: type = nib.Nifti1Image, order: str = "<") -> bytes:
        """A valid NIfTI file in memory, and then the header fields of `header` overwritten as they are."""
        data = self.data if data is None else data
        image = kind(data, self.affine, kind.header_class(endianness=order), dtype=data.dtype)
        image.set_sform(self.affine, 1)
        image.set_qform(self.affine, 1)
        image.header.set_slope_inter(1, 0)
        image.header.set_xyzt_units("mm", "sec")
        raw = bytearray(image.to_bytes())
        layout = image.header.template_dtype.newbyteorder(order)
        record = np.frombuffer(raw, layout, count=1)
        for name, value in self.header.items():
            record[name][0] = value
        return bytes(raw)

    def save_image(self, raw: bytes | None = None) -> None:
        self.nii.write_bytes(gzip.compress(self.image_bytes() if raw is None else raw, mtime=0))

    def save_table(self, bvals: np.ndarray | None = None, bvecs: np.ndarray | None = None) -> None:
        self.bval.write_text(" ".join(f"{b:g}" for b in (self.bvals if bvals is None else bvals)) + "\n")
        rows = (self.bvecs if bvecs is None else bvecs).T
        self.bvec.write_text("".join(" ".join(f"{c:.9f}" for c in row) + "\n" for row in rows))

    def save(self) -> None:
        self.save_image()
        self.save_table()

    def reset(self, **fields: Any) -> None:
        """Header fields overwritten in an otherwise good image."""
        self.header.update(fields)
        self.save_image()


@dataclass(frozen=True)
class Row:
    row: str
    spoil: Callable[[Run], Check | None]
    code: int
    id: str
    says: str
    allow: dict[str, Any]
    anatomy: bool

    @property
    def name(self) -> str:
        return f"{self.row}-{self.spoil.__name__}"


ROWS: list[Row] = []


def bad(row: str, id: str, says: str, *, code: int = 65, anatomy: bool = False, **allow: Any):
    """Must be refused with this exit code, ID and message."""

    def register(spoil):
        ROWS.append(Row(row, spoil, code, id, says, allow, anatomy))
        return spoil

    return register


def odd(row: str, id: str = "", says: str = "", *, anatomy: bool = False, **allow: Any):
    """Must be accepted, with this note; without an ID: with no warning at all."""
    return bad(row, id, says, code=0, anatomy=anatomy, **allow)


DIRECTIONS = np.array(
    [[x, y, z] for a, b in ((1, 0.618), (1, -0.618)) for x, y, z in ((a, b, 0), (0, a, b), (b, 0, a))]
)
DIRECTIONS = np.concatenate([DIRECTIONS, Rotation.from_euler("zyx", [25, 14, 38], degrees=True).apply(DIRECTIONS)])
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)
SIZES = np.array([2.0, 2.2, 2.5])


def axes_of(affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)


def to_file(directions: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Scanner frame → frame of the file, by the words of the BIDS specification, independently of the reader."""
    cosines = directions @ axes_of(affine)
    if np.linalg.det(affine[:3, :3]) > 0:
        cosines = cosines * [-1, 1, 1]
    return cosines


def signal_of(bvals: np.ndarray, directions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A head in a field of view: anisotropic inside, noise outside."""
    shape = (12, 11, 10)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    radius = np.linalg.norm((index - (np.array(shape) - 1) / 2) / (np.array(shape) / 2.4), axis=-1)
    s0 = np.where(radius < 1, 900 + 150 * np.cos(index[..., 0]) + 60 * index[..., 2] / 10, 0)
    adc = 0.4e-3 + 1.2e-3 * (directions @ [0.6, 0.64, 0.48]) ** 2
    clean = s0[..., None] * np.exp(-bvals * adc)
    return np.abs(clean + rng.normal(0, 8, clean.shape))


def good_run(folder: Path) -> Run:
    """Oblique, left-handed, off-origin; 2 b=0 and 12 directions at b = 1000; int16."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("zyx", [9, -12, 7], degrees=True).as_matrix() @ np.diag([-1, 1, 1] * SIZES)
    affine[:3, 3] = [14.5, -31.25, 6.75]
    affine = affine.astype(np.float32).astype(float)
    bvals = np.array([0, 0, *[1000] * 12], float)
    scanner = np.concatenate([np.zeros((2, 3)), DIRECTIONS])
    data = signal_of(bvals, scanner, np.random.default_rng(0)).round().astype(np.int16)
    run = Run(folder, data, affine, bvals, to_file(scanner, affine))
    run.save()
    return run


def scanner_of(run: Run) -> np.ndarray:
    return np.concatenate([np.zeros((2, 3)), DIRECTIONS])


def same_image(result: Any, good: Any) -> None:
    np.testing.assert_allclose(result.signal.numpy(), good.signal.numpy(), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(result.grid.affine.numpy(), good.grid.affine.numpy(), atol=1e-4)


def same_table(result: Any, good: Any) -> None:
    np.testing.assert_allclose(result.gtab.bvals.numpy(), good.gtab.bvals.numpy(), atol=1e-6)
    np.testing.assert_allclose(result.gtab.bvecs.numpy(), good.gtab.bvecs.numpy(), atol=1e-6)


def same(result: Any, good: Any) -> None:
    same_image(result, good)
    same_table(result, good)


# ---------------------------------------------------------------------------------------------- files that are not data


@bad("D11", "E-FILE-ANNEX", "not fetched.*datalad get", code=66)
def dangling_link(run: Run) -> None:
    run.nii.unlink()
    run.nii.symlink_to(run.folder / ".git/annex/objects/aa/bb/MD5E-s1--0.nii.gz")


@bad("D12", "E-FILE-LFS", "git-lfs pointer.*git lfs pull", code=66)
def lfs_pointer(run: Run) -> None:
    run.nii.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")


@bad("D12", "E-FILE-LFS", "git-lfs pointer", code=66)
def lfs_pointer_for_bvec(run: Run) -> None:
    run.bvec.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")


@bad("D12", "E-FILE-ANNEX", "git-annex pointer.*datalad get", code=66)
def annex_pointer(run: Run) -> None:
    run.nii.write_text("/annex/objects/MD5E-s24546--1f2a.nii.gz\n")


@bad("D12", "E-FILE-HTML", "HTML", code=66)
def html_page(run: Run) -> None:
    run.nii.write_text("\n<!DOCTYPE html><html><body>404 Not Found</body></html>")


@bad("D12", "E-FILE-EMPTY", "0 bytes")
def empty_image(run: Run) -> None:
    run.nii.write_bytes(b"")


@bad("D23", "E-FILE-KIND", "not a regular file")
def folder_in_place_of_image(run: Run) -> None:
    run.nii.unlink()
    run.nii.mkdir()


# --------------------------------------------------------------------------------------------------------------- images


@bad("I01", "E-IMG-CUT", "the file was cut")
def gzip_cut_in_half(run: Run) -> None:
    raw = run.nii.read_bytes()
    run.nii.write_bytes(raw[: len(raw) // 2])


@bad("I02", "E-IMG-CUT", "the file was cut")
def gzip_lacks_last_ten_bytes(run: Run) -> None:
    run.nii.write_bytes(run.nii.read_bytes()[:-10])


@bad("I02", "E-IMG-CRC", "incorrect data check")
def gzip_with_wrong_crc(run: Run) -> None:
    raw = bytearray(run.nii.read_bytes())
    raw[-8] ^= 0xFF
    run.nii.write_bytes(raw)


@bad("I02", "E-IMG-CRC", "incorrect length check")
def gzip_with_wrong_length(run: Run) -> None:
    raw = bytearray(run.nii.read_bytes())
    raw[-1] ^= 0xFF
    run.nii.write_bytes(raw)


@bad("I03", "E-IMG-CRC", "gzip stream is damaged")
def bit_flip_inside(run: Run) -> None:
    raw = bytearray(run.nii.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    run.nii.write_bytes(raw)


@odd("I04", "W-IMG-TRAILING", "7 bytes follow")
def garbage_after_gzip(run: Run) -> Check:
    run.nii.write_bytes(run.nii.read_bytes() + b"garbage")
    return same


@odd("I04", "W-IMG-TRAILING", "16 bytes follow")
def bytes_after_last_voxel(run: Run) -> Check:
    run.save_image(run.image_bytes() + b"\1" * 16)
    return same


@odd("I04")
def gzip_of_several_members(run: Run) -> Check:
    raw = run.image_bytes()
    run.nii.write_bytes(b"".join(gzip.compress(raw[start : start + 5000]) for start in range(0, len(raw), 5000)))
    return same


@bad("I05", "E-IMG-MAGIC", "magic string")
def wrong_magic(run: Run) -> None:
    run.reset(magic=b"x+1")


@bad("I05", "E-IMG-MAGIC", "pair")
def magic_of_a_pair(run: Run) -> None:
    run.reset(magic=b"ni1")


@bad("I05", "E-IMG-HEADER", "sizeof_hdr is 0")
def header_size_zero(run: Run) -> None:
    run.reset(sizeof_hdr=0)


@bad("I06", "E-IMG-NOTGZIP", "rename it to sub-01_dwi.nii")
def uncompressed_named_gz(run: Run) -> None:
    run.nii.write_bytes(run.image_bytes())


class Uncompressed(Run):
    @property
    def nii(self) -> Path:
        return self.folder / f"{self.stem}.nii"


def _uncompressed(run: Run) -> None:
    run.nii.unlink()
    run.__class__ = Uncompressed


@bad("I06", "E-IMG-GZIPNAME", "rename it to sub-01_dwi.nii.gz")
def compressed_named_nii(run: Run) -> None:
    _uncompressed(run)
    run.save_image()


@bad("I07", "E-IMG-SIZE", "the header announces")
def nii_shorter_than_header(run: Run) -> None:
    _uncompressed(run)
    run.nii.write_bytes(run.image_bytes()[:-100])


@bad("I07", "E-IMG-SHORT", "bytes of voxels, the header announces")
def gzip_shorter_than_header(run: Run) -> None:
    run.save_image(run.image_bytes()[:-100])


@bad("I07", "E-IMG-SHORT", "ends inside its header")
def nii_ends_inside_header(run: Run) -> None:
    _uncompressed(run)
    run.nii.write_bytes(run.image_bytes()[:200])


@odd("I07")
def whole_nii(run: Run) -> Check:
    _uncompressed(run)
    run.nii.write_bytes(run.image_bytes())
    return same


@bad("I08", "E-DWI-3D", "one volume")
def dwi_of_three_dimensions(run: Run) -> None:
    run.save_image(run.image_bytes(run.data[..., 0]))


@bad("I08", "E-DWI-3D", "one volume")
def dwi_whose_slices_equal_its_gradients(run: Run) -> None:
    run.save_image(run.image_bytes(run.data[..., 0]))
    run.save_table(np.full(10, 1000.0), run.bvecs[2:12])


@bad("I09", "E-IMG-5D", "5 dimensions")
def five_dimensions(run: Run) -> None:
    run.save_image(run.image_bytes(run.data.reshape(*run.data.shape[:3], 7, 2)))


@odd("I09")
def five_dimensions_of_which_one_is_empty(run: Run) -> Check:
    run.save_image(run.image_bytes(run.data[..., None]))
    return same


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


@bad("I27", "E-IMG-SIZE", "cannot hold more than")
def huge_dimensions(run: Run) -> None:
    run.reset(dim=[4, 30000, 30000, 30000, 100, 1, 1, 1])


@bad("I27", "E-IMG-SIZE", "cannot hold more than")
def huge_dimensions_uncompressed(run: Run) -> None:
    _uncompressed(run)
    run.header["dim"] = [4, 30000, 30000, 30000, 100, 1, 1, 1]
    run.nii.write_bytes(run.image_bytes())


@bad("I27", "E-IMG-LONG", "bytes follow")
def bomb_behind_the_voxels(run: Run) -> None:
    run.save_image(run.image_bytes() + bytes(20_000_000))


@bad("I28", "E-IMG-DIM", "dimensions are")
def dimension_zero(run: Run) -> None:
    run.reset(dim=[4, 12, 0, 10, 14, 1, 1, 1])


@bad("I28", "E-IMG-DIM", "dimensions are")
def dimension_negative(run: Run) -> None:
    run.reset(dim=[4, 12, -11, 10, 14, 1, 1, 1])


@bad("I28", "E-IMG-DIM", "dimensions are")
def nine_dimensions(run: Run) -> None:
    run.reset(dim=[9, 12, 11, 10, 14, 1, 1, 1])


@bad("I29", "E-IMG-SIZE", "cannot hold more than")
def offset_huge(run: Run) -> None:
    run.reset(vox_offset=1e9)


@bad("I29", "E-IMG-OFFSET", "vox_offset is -100")
def offset_negative(run: Run) -> None:
    run.reset(vox_offset=-100)


@bad("I29", "E-IMG-OFFSET", "vox_offset is nan")
def offset_nan(run: Run) -> None:
    run.reset(vox_offset=np.nan)


def _extended(run: Run, offset: int) -> None:
    raw = run.image_bytes()
    extension = struct.pack("<ii", 32, 6) + b"a comment".ljust(24, b"\0")
    head = bytearray(raw[:348] + b"\1\0\0\0" + extension)
    struct.pack_into("<f", head, 108, offset)
    run.save_image(bytes(head) + raw[352:])


@odd("I29")
def extension_counted(run: Run) -> Check:
    _extended(run, 384)
    return same


@bad("I29", "E-IMG-EXTENSION", "extensions do not end where vox_offset")
def extension_not_counted(run: Run) -> None:
    _extended(run, 352)


@bad("I29", "E-IMG-EXTENSION", "extensions do not end where vox_offset")
def extension_half_counted(run: Run) -> None:
    _extended(run, 368)


@bad("I30", "E-IMG-DATATYPE", "data type code is 37")
def unknown_data_type(run: Run) -> None:
    run.reset(datatype=37)


@bad("I30", "E-IMG-BITPIX", "8 bits a voxel")
def bits_contradict_data_type(run: Run) -> None:
    run.reset(bitpix=8)


@bad("I31", "E-IMG-RGB", "RGB colours")
def colour_map(run: Run) -> None:
    run.reset(datatype=128, bitpix=24)


@bad("I31", "E-IMG-COMPLEX", "part-mag and part-phase")
def complex_values(run: Run) -> None:
    run.save_image(run.image_bytes(run.data.astype(np.complex64)))


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


# ------------------------------------------------------------------------------------------------------ gradient tables


@bad("G01", "E-FILE-MISSING", r"sub-01_dwi\.bvec", code=66)
def bvec_missing(run: Run) -> None:
    run.bvec.unlink()


@bad("G01", "E-FILE-MISSING", r"sub-01_dwi\.bval", code=66)
def bval_missing(run: Run) -> None:
    run.bval.unlink()


@odd("G02", "W-GRAD-TRANSPOSED", "14 rows of 3")
def bvec_transposed(run: Run) -> Check:
    run.save_table(bvecs=run.bvecs.T)
    return same


@odd("G02", "W-GRAD-TRANSPOSED", "one column of 14")
def bval_transposed(run: Run) -> Check:
    run.bval.write_text("\n".join(f"{b:g}" for b in run.bvals))
    return same


@bad("G03", "E-GRAD-DIRECTIONS", "2 different directions")
def three_volumes_are_read_by_rows(run: Run) -> None:
    # The vectors are unit by columns alone: read by rows they would be refused for their norms instead.
    run.data = run.data[..., 1:4]
    run.save_image()
    run.save_table(run.bvals[1:4], run.bvecs[1:4])


@bad("G03", "E-GRAD-ROWS", "4 rows of 4")
def four_columns_of_four_volumes(run: Run) -> None:
    run.data = run.data[..., :4]
    run.save_image()
    run.save_table(run.bvals[:4], run.bvecs[:4])
    run.bvec.write_text(
        "".join(f"{x} {y} {z} {b}\n" for (x, y, z), b in zip(run.bvecs[:4], run.bvals[:4], strict=True))
    )


@bad("G04", "E-GRAD-COUNT", "13 gradients, 14 volumes")
def both_files_one_short(run: Run) -> None:
    run.save_table(run.bvals[:-1], run.bvecs[:-1])


@bad("G05", "E-GRAD-LENGTH", "14 vectors, and 13 b-values")
def lengths_differ(run: Run) -> None:
    run.save_table(run.bvals[:-1])


@bad("G05", "E-GRAD-RAGGED", "row 2 has 13 numbers and the others 14")
def ragged_rows(run: Run) -> None:
    lines = run.bvec.read_text().splitlines()
    lines[1] = lines[1].rsplit(" ", 1)[0]
    run.bvec.write_text("\n".join(lines))


@bad("G05", "E-GRAD-ROWS", "4 rows of 14")
def four_rows(run: Run) -> None:
    run.bvec.write_text(run.bvec.read_text() + " ".join("0" * 14))


@bad("G05", "E-GRAD-ROWS", "2 rows of 7")
def bval_on_two_lines(run: Run) -> None:
    run.bval.write_text(" ".join(["0", "0", *["1000"] * 5]) + "\n" + " ".join(["1000"] * 7))


@bad("G05", "E-FILE-EMPTY", "0 bytes")
def bvec_empty(run: Run) -> None:
    run.bvec.write_text("")


@bad("G05", "E-GRAD-EMPTY", "no numbers")
def bvec_blank(run: Run) -> None:
    run.bvec.write_text("\n \n")


@bad("G05", "E-GRAD-TEXT", "line 1 holds 'hello'")
def bvec_is_text(run: Run) -> None:
    run.bvec.write_text("hello world\n")


def _scaled(run: Run, factor: float, volumes: slice = slice(2, None)) -> None:
    run.bvecs[volumes] *= factor
    run.save_table()


@odd("G06")
def norms_of_1_005(run: Run) -> Check:
    _scaled(run, 1.005)
    return same


@bad("G06", "E-GRAD-NORM", "--bval-from-norm")
def norms_of_1_02(run: Run) -> None:
    _scaled(run, 1.02)


@odd("G06", "W-GRAD-NORM", "multiplied by the squared norm", bval_from_norm="square")
def norms_of_1_02_squared(run: Run) -> Check:
    _scaled(run, 1.02)

    def check(result: Any, good: Any) -> None:
        np.testing.assert_allclose(result.gtab.bvals.numpy()[2:], 1040.4, rtol=1e-6)
        np.testing.assert_allclose(result.gtab.bvecs.numpy(), good.gtab.bvecs.numpy(), atol=1e-6)

    return check


@odd("G06", "W-GRAD-NORM", "b was kept", bval_from_norm="none")
def norms_of_1_02_ignored(run: Run) -> Check:
    _scaled(run, 1.02)
    return same


@bad("G06", "E-GRAD-NORM", "volumes 7 have norms 0.5 to 0.5")
def one_norm_of_a_half(run: Run) -> None:
    _scaled(run, 0.5, slice(7, 8))


@odd("G06", "W-GRAD-NORM", "squared", bval_from_norm="square")
def shells_coded_by_norm(run: Run) -> Check:
    run.bvals[2:] = 2000
    _scaled(run, 0.5**0.5, slice(2, 8))

    def check(result: Any, good: Any) -> None:
        np.testing.assert_allclose(result.gtab.bvals.numpy()[2:], [1000] * 6 + [2000] * 6, rtol=1e-6)

    return check


def _with_extra(run: Run, volume: np.ndarray, b: float, vector: tuple[float, float, float] = (0, 0, 0)) -> None:
    run.data = np.concatenate([run.data, volume[..., None].astype(np.int16)], axis=-1)
    run.bvals, run.bvecs = np.append(run.bvals, b), np.vstack([run.bvecs, vector])
    run.save()


@odd("G07", "W-GRAD-TRACE", r"volumes 14 .*dropped \(15 volumes in, 14 out\)")
def trace_volume(run: Run) -> Check:
    _with_extra(run, np.exp(np.log(run.data[..., 2:].clip(1)).mean(-1)), 1000)
    return same


@odd("G07", "W-GRAD-B0SIGNAL", "volumes 14 .*taken as b=0")
def unweighted_volume_with_a_b_value(run: Run) -> Check:
    _with_extra(run, run.data[..., 0], 1000)

    def check(result: Any, good: Any) -> None:
        assert result.gtab.is_b0.tolist() == [True] * 2 + [False] * 12 + [True]
        assert float(result.gtab.bvals[14]) == 0

    return check


@bad("G07", "E-GRAD-NODIRECTION", r"volumes 14 \(b=1000\).*resembles neither")
def map_in_place_of_a_volume(run: Run) -> None:
    _with_extra(run, (run.data[..., 0] > 300) * 7000 - run.data[..., 1], 1000)


@bad("G07", "E-GRAD-NODIRECTION", "zero vector")
def every_vector_zero(run: Run) -> None:
    run.save_table(bvecs=run.bvecs * 0)


@odd("G08", "W-GRAD-B0NAN", "b=0 volumes 0, 1")
def nan_vector_on_b0(run: Run) -> Check:
    run.bvecs[:2] = np.nan
    run.save_table()
    return same


@bad("G09", "E-GRAD-NONFINITE", "vectors of volumes 5")
def nan_vector_on_weighted_volume(run: Run) -> None:
    run.bvecs[5] = np.nan
    run.save_table()


@bad("G09", "E-GRAD-NONFINITE", "vectors of volumes 6")
def infinite_vector(run: Run) -> None:
    run.bvecs[6, 1] = np.inf
    run.save_table()


@bad("G09", "E-GRAD-NONFINITE", "b-values of volumes 4")
def nan_bval(run: Run) -> None:
    run.bvals[4] = np.nan
    run.save_table()


def _low_b(run: Run, *values: float) -> Check:
    run.bvals[:2] = values
    run.save_table()
    return same


@odd("G10", "N-GRAD-B0", "b-values up to 5")
def b0_of_5(run: Run) -> Check:
    return _low_b(run, 0, 5)


@odd("G10", "N-GRAD-B0", "b-values up to 45")
def b0_of_10_and_45(run: Run) -> Check:
    return _low_b(run, 10, 45)


@odd("G10", "N-GRAD-B0", "b-values up to 60")
def b0_of_60(run: Run) -> Check:
    return _low_b(run, 60, 60)


@odd("G10", "N-GRAD-B0", "b-values up to 100")
def b0_of_100(run: Run) -> Check:
    return _low_b(run, 100, 100)


@odd("G10", "N-GRAD-B0", "b-values up to 15")
def b0_of_15_with_a_direction(run: Run) -> Check:
    run.bvecs[:2] = run.bvecs[4]
    return _low_b(run, 15, 15)


@odd("G10", "N-GRAD-SHELLS", "b=90: 1 directions")
def low_shell_beside_b0(run: Run) -> Check:
    run.bvecs[1] = run.bvecs[5]
    _low_b(run, 0, 90)

    def check(result: Any, good: Any) -> None:
        assert result.gtab.is_b0.tolist() == [True] + [False] * 13
        assert float(result.gtab.bvals[1]) == 90

    return check


@odd("G10", "N-GRAD-B0", "b-values up to 200", b0_threshold=200.0)
def threshold_by_hand(run: Run) -> Check:
    return _low_b(run, 0, 200)


@odd("G11", "N-GRAD-SHELLS", "b=985–1015: 12 directions")
def b_values_jitter(run: Run) -> Check:
    run.bvals[2:] += np.array([-15, 15] * 6)
    run.save_table()

    def check(result: Any, good: Any) -> None:
        assert len(result.gtab.shells()) == 1

    return check


@bad("G12", "E-GRAD-NODWI", "all 14 volumes are b=0")
def only_b0(run: Run) -> None:
    run.save_table(run.bvals * 0)


@bad("G13", "E-GRAD-NOB0", "no volume has b=0")
def no_b0(run: Run) -> None:
    run.data, run.bvals, run.bvecs = run.data[..., 2:], run.bvals[2:], run.bvecs[2:]
    run.save()


def _two_shells(run: Run) -> None:
    bvals = np.array([1000.0] * 6 + [2000] * 6)
    run.data = signal_of(bvals, DIRECTIONS, np.random.default_rng(1)).round().astype(np.int16)
    run.bvals, run.bvecs = bvals, run.bvecs[2:]
    run.save()


@bad("G13", "E-GRAD-NOB0", "--estimate-s0")
def no_b0_but_two_shells(run: Run) -> None:
    _two_shells(run)


@bad("G13", "E-GRAD-NOB0", "cannot be estimated", estimate_s0=True)
def no_b0_and_one_shell(run: Run) -> None:
    no_b0(run)


@odd("G13", "W-GRAD-NOB0", "extrapolated from 2 shells", estimate_s0=True)
def no_b0_estimated(run: Run) -> Check:
    _two_shells(run)

    def check(result: Any, good: Any) -> None:
        inside = good.mean_b0().values > 500
        ratio = result.mean_b0().values[inside] / good.mean_b0().values[inside]
        assert abs(float(ratio.median()) - 1) < 0.15

    return check


def _directions(run: Run, vectors: np.ndarray) -> None:
    run.bvecs[2:] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    run.save_table()


@bad("G14", "E-GRAD-DIRECTIONS", "5 different directions")
def five_directions(run: Run) -> None:
    _directions(run, np.resize(DIRECTIONS[:5], (12, 3)))


@bad("G14", "E-GRAD-DIRECTIONS", "12 different directions.*infinite")
def coplanar_directions(run: Run) -> None:
    angles = np.arange(12) * np.pi / 12
    _directions(run, np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1))


@bad("G14", "E-GRAD-DIRECTIONS", "1 different direction,")
def one_direction(run: Run) -> None:
    _directions(run, np.tile([0.6, 0, 0.8], (12, 1)))


@bad("G14", "E-GRAD-DIRECTIONS", "condition number")
def directions_in_a_narrow_cone(run: Run) -> None:
    _directions(run, [0, 0, 1] + 0.05 * DIRECTIONS)


@odd("G14")
def six_directions(run: Run) -> None:
    _directions(run, np.resize(DIRECTIONS[:6], (12, 3)))


def grid_table() -> tuple[np.ndarray, np.ndarray]:
    """q-space on a lattice of radius 3: b-values and directions of its half, b=0 first."""
    steps = [(x, y, z) for x in range(-3, 4) for y in range(-3, 4) for z in range(4) if 0 < x * x + y * y + z * z <= 9]
    q = np.array([(0, 0, 0), *[s for s in steps if s[2] > 0 or s[:2] > (0, 0)]], float)
    squares = (q**2).sum(1)
    return squares * 400, q / np.sqrt(squares.clip(1))[:, None]


@odd("G15", "W-GRAD-SCHEME", "Cartesian grid")
def cartesian_grid(run: Run) -> Check:
    run.bvals, run.bvecs = grid_table()
    run.data = signal_of(run.bvals, run.bvecs, np.random.default_rng(2)).round().astype(np.int16)
    run.save()

    def check(result: Any, good: Any) -> None:
        assert len(result.gtab.shells()) >= 5

    return check


@bad("G16", "E-GRAD-UNIT", "multiply by 1000")
def b_in_ms_per_square_micrometre(run: Run) -> None:
    run.save_table(run.bvals / 1000)


@bad("G16", "E-GRAD-UNIT", "divide by 1 000 000")
def b_in_s_per_square_metre(run: Run) -> None:
    run.save_table(run.bvals * 1e6)


@bad("G17", "E-GRAD-NEGATIVE", r"volumes 3 are negative \(least -1000\)")
def negative_b(run: Run) -> None:
    run.bvals[3] *= -1
    run.save_table()


@odd("G18", "N-GRAD-SHELLS", "b=40000: 12 directions")
def very_high_b(run: Run) -> Check:
    run.save_table(run.bvals * 40)

    def check(result: Any, good: Any) -> None:
        assert float(result.gtab.bvals.max()) == 40_000

    return check


def _respelt(run: Run, change: Callable[[str], str], encoding: str = "utf-8") -> Check:
    for path in (run.bval, run.bvec):
        path.write_bytes(change(path.read_text()).encode(encoding))
    return same


@odd("G19", "W-GRAD-FORMAT", "commas")
def commas(run: Run) -> Check:
    return _respelt(run, lambda text: text.replace(" ", ","))


@odd("G19", "W-GRAD-FORMAT", "commas")
def commas_and_blanks(run: Run) -> Check:
    return _respelt(run, lambda text: text.replace(" ", ", "))


@odd("G19", "W-GRAD-FORMAT", "tabs")
def tabs(run: Run) -> Check:
    return _respelt(run, lambda text: text.replace(" ", "\t"))


@odd("G19")
def several_and_trailing_blanks(run: Run) -> Check:
    return _respelt(run, lambda text: text.replace(" ", "   ").replace("\n", "  \n\n"))


@odd("G19", "W-GRAD-FORMAT", "Windows line ends")
def windows_line_ends(run: Run) -> Check:
    return _respelt(run, lambda text: text.replace("\n", "\r\n"))


@odd("G19", "W-GRAD-FORMAT", "comments")
def header_line(run: Run) -> Check:
    return _respelt(run, lambda text: "# b-values or vectors\n" + text)


@odd("G19")
def scientific_notation(run: Run) -> Check:
    run.bval.write_text(" ".join(f"{b:.3e}" for b in run.bvals))
    run.bvec.write_text("\n".join(" ".join(f"{c:+.9E}" for c in row) for row in run.bvecs.T))
    return same


@odd("G20", "W-GRAD-FORMAT", "old Macintosh line ends")
def carriage_returns_alone(run: Run) -> Check:
    return _respelt(run, lambda text: text.replace("\n", "\r"))


@odd("G20", "W-GRAD-FORMAT", "byte-order mark")
def byte_order_mark(run: Run) -> Check:
    return _respelt(run, lambda text: text, "utf-8-sig")


@bad("G20", "E-GRAD-TEXT", "semicolons")
def semicolons(run: Run) -> None:
    _respelt(run, lambda text: text.replace(" ", ";"))


@bad("G20", "E-GRAD-TEXT", "decimal commas")
def decimal_commas(run: Run) -> None:
    run.bvec.write_text(run.bvec.read_text().replace(".", ","))


@bad("G20", "E-GRAD-ENCODING", "UTF-16")
def utf_16(run: Run) -> None:
    _respelt(run, lambda text: text, "utf-16")


@bad("G20", "E-GRAD-TEXT", "no decimal number")
def hexadecimal_floats(run: Run) -> None:
    run.bvec.write_text("\n".join(" ".join(float(c).hex() for c in row) for row in run.bvecs.T))


@bad("G20", "E-GRAD-ENCODING", "no plain text")
def unicode_minus(run: Run) -> None:
    run.bvec.write_text(run.bvec.read_text().replace("-", "\N{MINUS SIGN}"), encoding="utf-8")


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
