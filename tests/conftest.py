"""Fixtures shared by all tests: an oblique, left-handed, off-origin world by default, and the real test data."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# One thread a process, of the programs that tests start too: several workers share the machine.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real scans; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    path = Path(os.environ.get("TRACTODE_TEST_DATA", default)).resolve()
    if not (path / "bids_real").is_dir():
        pytest.skip("real test data not found; set TRACTODE_TEST_DATA")
    return path


def needs(program: str) -> pytest.MarkDecorator:
    """Skip where an outside program is not installed."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@pytest.fixture
def oblique_affine() -> torch.Tensor:
    """Left-handed storage (L, P, S), 2.0 × 2.3 × 2.6 mm, 17° oblique, off-origin."""
    from scipy.spatial.transform import Rotation

    rotation = torch.tensor(Rotation.from_euler("zyx", [9, -12, 7], degrees=True).as_matrix())
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = rotation @ torch.diag(torch.tensor([-2.0, -2.3, 2.6], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([31.0, 17.0, -44.0], dtype=torch.float64)
    return affine


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
