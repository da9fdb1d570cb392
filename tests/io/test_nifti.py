"""NIfTI in and out: agreement with nibabel, the round trip, the same bytes each time, and no crash on any header."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tractode.errors import InputDataError
from tractode.fields import Image, ImageGrid
from tractode.io.nifti import read_image, read_volume, write_image


def image_of(
    affine: torch.Tensor, channels: int = 3, space: str = "sub-01_dwi", dtype: torch.dtype = torch.float32
) -> Image:
    values = torch.arange(channels * 4 * 5 * 6, dtype=torch.float64).reshape(channels, 4, 5, 6)
    return Image(ImageGrid((4, 5, 6), affine, space), (values * 0.37 - 20).to(dtype))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("channels", [1, 3])
def test_write_then_read_is_identity(tmp_path, oblique_affine, suffix, channels):
    image, path = image_of(oblique_affine, channels), tmp_path / f"x{suffix}"
    write_image(path, image)
    again, notes = read_image(path, "sub-01_dwi")
    assert torch.equal(again.values, image.values)
    torch.testing.assert_close(again.grid.affine, oblique_affine, atol=1e-5, rtol=0)
    assert notes == []


def test_nibabel_reads_what_we_write(tmp_path, oblique_affine):
    image, path = image_of(oblique_affine), tmp_path / "x.nii.gz"
    write_image(path, image)
    theirs = nib.load(path)
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), np.moveaxis(image.values.numpy(), 0, -1))
    for matrix, code in (theirs.get_qform(coded=True), theirs.get_sform(coded=True)):
        np.testing.assert_allclose(matrix, oblique_affine.numpy(), atol=1e-5)
        assert code == 1
    assert theirs.get_data_dtype() == np.float32
    assert theirs.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(theirs.header.get_zooms()[:3], [2.0, 2.3, 2.6], atol=1e-6)


@pytest.mark.parametrize(("space", "code"), [("sub-01_T1w", 1), ("MNI152NLin2009cAsym", 4), ("OASIS30ANTs", 5)])
def test_form_codes_say_which_space(tmp_path, oblique_affine, space, code):
    write_image(tmp_path / "x.nii.gz", image_of(oblique_affine, space=space))
    header = nib.load(tmp_path / "x.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (code, code)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [(torch.bool, np.uint8), (torch.float64, np.float32), (torch.int64, np.int32), (torch.float32, np.float32)],
)
def test_stored_types(tmp_path, oblique_affine, dtype, stored):
    image = image_of(oblique_affine, 1, dtype=dtype)
    write_image(tmp_path / "x.nii.gz", image)
    theirs = nib.load(tmp_path / "x.nii.gz")
    assert theirs.get_data_dtype() == stored
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), image.values[0].numpy().astype(stored))


def test_same_image_same_bytes_under_any_name(tmp_path, oblique_affine):
    hashes = set()
    for name in ("a.nii.gz", "another.nii.gz"):
        write_image(tmp_path / name, image_of(oblique_affine))
        hashes.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(hashes) == 1
    write_image(tmp_path / "c.nii.gz", Image(image_of(oblique_affine).grid, image_of(oblique_affine).values + 1))
    assert hashlib.sha256((tmp_path / "c.nii.gz").read_bytes()).hexdigest() not in hashes


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8", ">i2", ">f8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_values_and_affine_agree_with_nibabel(tmp_path, oblique_affine, dtype, kind):
    rng = np.random.default_rng(1)
    data = rng.integers(0, 100, (4, 5, 6, 3)).astype(dtype)
    image = kind(
        data, oblique_affine.numpy(), kind.header_class(endianness=">" if dtype[0] == ">" else "<"), dtype=dtype
    )
    image.header.set_slope_inter(0.25, -7)
    path = tmp_path / "x.nii"
    path.write_bytes(image.to_bytes())
    theirs = nib.load(path)
    ours, _ = read_image(path, "sub-01_dwi")
    np.testing.assert_allclose(np.moveaxis(ours.values.numpy(), 0, -1), np.asarray(theirs.dataobj), rtol=1e-6)
    np.testing.assert_allclose(ours.grid.affine.numpy(), theirs.affine, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_qform_agrees_with_nibabel(tmp_path, seed):
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() @ np.diag([2.0, 2.5, 3.0 * (-1) ** seed])
    affine[:3, 3] = rng.normal(size=3) * 40
    image = nib.Nifti1Image(np.ones((3, 4, 5), np.uint8), affine)
    image.set_qform(affine, 1)
    image.set_sform(None, 0)
    image.to_filename(tmp_path / "x.nii")
    ours, notes = read_image(tmp_path / "x.nii", "sub-01_T1w")
    np.testing.assert_allclose(ours.grid.affine.numpy(), nib.load(tmp_path / "x.nii").affine, atol=1e-5)
    np.testing.assert_allclose(ours.grid.affine.numpy(), affine, atol=1e-4)
    assert not [note for note in notes if note.level == "warning"]


def read_or_none(path: Path) -> Image | None:
    """The image, or ``None`` where it was refused as invalid; any other exception goes through."""
    try:
        return read_image(path, "sub-01_dwi")[0]
    except InputDataError:
        return None


def test_no_header_makes_the_reader_crash_or_take_memory(tmp_path, oblique_affine):
    """Random bytes in the header: read, or refused with an error of ours; never another exception."""
    path = tmp_path / "x.nii"
    write_image(path, image_of(oblique_affine, 2))
    whole, rng, refused = path.read_bytes(), np.random.default_rng(5), 0
    for _ in range(400):
        raw = bytearray(whole)
        for position in rng.integers(0, 352, rng.integers(1, 6)):
            raw[position] = rng.integers(0, 256)
        path.write_bytes(raw)
        image = read_or_none(path)
        refused += image is None
        assert image is None or bool(image.values.isfinite().all())
    assert 100 < refused < 400


def test_no_damage_to_gzip_goes_unnoticed(tmp_path, oblique_affine):
    """Any byte of the file changed or cut off: refused, or the image is the same (bytes that gzip does not use)."""
    path = tmp_path / "x.nii.gz"
    image = image_of(oblique_affine, 2)
    write_image(path, image)
    whole, rng = path.read_bytes(), np.random.default_rng(6)
    for position in [*range(14), *rng.integers(14, len(whole), 60), *range(len(whole) - 8, len(whole))]:
        for raw in (whole[:position], whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :]):
            path.write_bytes(raw)
            again = read_or_none(path)
            assert again is None or torch.equal(again.values, image.values)


def test_checksum_is_read_even_where_the_voxels_end_with_a_piece(tmp_path, oblique_affine):
    """A long file name inside the gzip header puts the checksum behind the first MiB, which holds every voxel."""
    plain = gzip.compress(gzip.decompress(_written(tmp_path, oblique_affine)))
    body, trailer = plain[10:-8], plain[-8:]
    name = b"n" * ((1 << 20) - 10 - 1 - len(body)) + b"\0"
    head = b"\x1f\x8b\x08\x08" + bytes(6) + name
    path = tmp_path / "x.nii.gz"
    path.write_bytes(head + body + trailer)
    image, _ = read_image(path, "sub-01_dwi")
    assert torch.equal(image.values, image_of(oblique_affine).values)
    path.write_bytes(head + body + bytes([trailer[0] ^ 1]) + trailer[1:])
    with pytest.raises(InputDataError, match="E-IMG-CRC"):
        read_image(path, "sub-01_dwi")


def test_memory_is_not_taken_for_a_header_that_lies(tmp_path, oblique_affine):
    """A small file that announces 10 TB is refused before anything is read."""
    raw = bytearray(gzip.decompress(_written(tmp_path, oblique_affine)))
    raw[40:56] = np.array([4, 20000, 20000, 20000, 300, 1, 1, 1], "<i2").tobytes()
    (tmp_path / "lie.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(InputDataError, match="E-IMG-SIZE"):
        read_volume(tmp_path / "lie.nii.gz", "sub-01_T1w")


def _written(folder, affine) -> bytes:
    write_image(folder / "w.nii.gz", image_of(affine))
    return (folder / "w.nii.gz").read_bytes()
