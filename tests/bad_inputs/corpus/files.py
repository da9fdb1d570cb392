"""Files that are no data, are cut or damaged, or whose header says what cannot be."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from .run import Check, Run, bad, odd, same


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
