"""The compiled linear fits against those in torch, voxels that have no solution, and code kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tractode.models import dki
from tractode.models.dki import DKI
from tractode.ops import log_linear, native
from tractode.ops.kept import folder
from tractode.ops.least_squares import Design


def _case(n: int = 40) -> tuple[torch.Tensor, Design]:
    gtab = DKI.example_table(30)
    signal = DKI().predict(DKI().example(seed=8, n=n), gtab)
    noise = torch.randn(signal.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return (signal + 0.02 * signal[:, :1] * noise).float(), Design(dki.design(gtab))


@pytest.mark.parametrize("method", ["ols", "wls", "iwls"])
def test_compiled_fits_are_those_of_torch_wherever_a_voxel_stands(method: log_linear.Method) -> None:
    signal, design = _case()
    compiled = log_linear.fit_voxels(signal, design, method)
    expected = log_linear.fit(signal.double(), design, method)
    torch.testing.assert_close(compiled.double(), expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
    for part in (slice(3, 4), slice(5, 38)):
        assert torch.equal(log_linear.fit_voxels(signal[part].flip(0), design, method).flip(0), compiled[part])
    assert len(log_linear.fit_voxels(signal[:0], design, method)) == 0


def test_voxels_without_a_solution_of_their_own_do_not_touch_their_neighbours() -> None:
    signal, design = _case()
    alone = log_linear.fit_voxels(signal, design, "iwls")
    signal[3] = 0  # dead
    signal[7, 5:] = 0  # weights of a few volumes only
    signal[11, 2] = torch.nan
    found = log_linear.fit_voxels(signal, design, "iwls")
    others = torch.ones(len(signal), dtype=torch.bool)
    others[[3, 7, 11]] = False
    assert torch.equal(found[others], alone[others])
    assert bool(torch.isfinite(found[[3, 7]]).all())
    assert not bool(torch.isfinite(found[11]).all())


def test_code_on_disk_is_read_only_where_it_is_whole(tmp_path: Path) -> None:
    signal, design = _case(4)
    log_linear.fit_voxels(signal, design, "ols")
    kept = sorted(Path(folder("tractode.ops.log_linear_kernel")).glob("fit_rows-*.native"))
    if not kept:
        pytest.skip("no folder for compiled code")
    found = native._read(str(kept[0]))
    assert found is not None
    assert "fit_rows" in found[0]
    content = kept[0].read_bytes()
    for damaged in (content[:-1], content[:40], b"", content[:-9] + b"\0" + content[-8:]):
        (tmp_path / "code").write_bytes(damaged)
        assert damaged == content or native._read(str(tmp_path / "code")) is None
    assert native._read(str(tmp_path / "absent")) is None
