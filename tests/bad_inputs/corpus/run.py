"""A good dwi run to spoil, the rows of the table, and what a result is compared with."""

from __future__ import annotations

import gzip
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
