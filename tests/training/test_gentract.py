"""The training problem of GenTract: mirror, masks of validity, and that a few steps learn a known shift from the field."""

import pytest
import torch

from tractode.generative.gentract import GenTract
from tractode.generative.source import SourceSettings
from tractode.generative.space import training_grid
from tractode.generative.streamline_network import NetworkSettings
from tractode.ops import spherical_harmonics as sh
from tractode.simulate.bundle_library import BundleLibrary
from tractode.simulate.tract_subject import TractSubject
from tractode.training.gentract import GenTractSettings, LocalProblem, mean_field, source_of
from tractode.training.loop import LoopSettings, fit

GRID = training_grid()


def library() -> BundleLibrary:
    """Two straight bundles of 12 lines along y, left and right, each other's mirror image."""
    along = torch.linspace(-45, 5, 31)
    rows = []
    for side in (-1, 1):
        for n in range(12):
            rows.append(torch.stack([0 * along + side * (25 + n % 4), along, 0 * along + 10 + n // 4], -1))
    bundle = torch.arange(2).repeat_interleave(12)
    is_held_out = torch.arange(24) % 3 == 2
    return BundleLibrary(
        ("L", "R"), torch.stack(rows), bundle, torch.tensor([1, 0]), is_held_out, torch.tensor([False, False])
    )


class Shifted:
    """Subjects whose left bundle lies a whole number of voxels higher or lower than the library's, and shows it."""

    shifts = (-6.0, 6.0, -3.0, 3.0)

    def __len__(self) -> int:
        return len(self.shifts)

    def __getitem__(self, number: int) -> TractSubject:
        lib = library()
        lines = lib.lines.clone()
        lines[:12, :, 2] += self.shifts[number]
        coeffs = torch.zeros(28, *GRID.shape)
        voxels = GRID.to_voxel(lines.reshape(-1, 3)).round().long()
        coeffs[:, voxels[:, 0], voxels[:, 1], voxels[:, 2]] = sh.basis(torch.tensor([0.0, 1.0, 0.0]), 6)[:, None]
        present = torch.tensor([True, True])
        return TractSubject(coeffs, lines, present, ~lib.is_held_out)


def problem(**changes: object) -> LocalProblem:
    settings = GenTractSettings(**({"n_lines": 64, "n_judged": 16, "judged_steps": 2} | changes))
    network = NetworkSettings(width=24, depth=1, heads=2, encoder=(4, 4, 8))
    return LocalProblem(Shifted(), library(), network, settings)


def test_the_source_leaves_out_what_is_held_out() -> None:
    source = source_of(library())
    assert len(source.knots) == 16
    torch.testing.assert_close(source.knots[:, 0], library().lines[~library().is_held_out][:, 0])


def test_the_mean_field_is_its_own_mirror_image() -> None:
    mean = mean_field(Shifted(), 4)
    torch.testing.assert_close(mean[0], mean[0].flip(0))
    assert float(mean[0].sum()) > 0


@pytest.mark.parametrize("path", ["bridge", "flow", "diffusion"])
def test_every_path_has_a_finite_loss_and_gradient(path: str) -> None:
    one = problem(path=path, shifted=1.0)
    loss = one.loss(torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [p.grad for p in one.module.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


def test_the_same_step_has_the_same_loss() -> None:
    first, second, other = (float(problem().loss(torch.Generator().manual_seed(n)).detach()) for n in (3, 3, 4))
    assert first == second != other


def test_a_line_is_valid_near_its_own_bundle_only() -> None:
    one = problem()
    seen = one._subject(torch.Generator().manual_seed(1))
    rows = torch.arange(len(seen.lines))
    assert bool(one._is_valid(seen, rows, seen.lines).all())
    far = seen.lines + torch.tensor([0.0, 0.0, 30.0])
    assert not bool(one._is_valid(seen, rows, far).any())
    crossed = seen.lines.flip(0)  # every line where the other bundle is
    assert not bool(one._is_valid(seen, rows, crossed).any())


def test_a_short_training_follows_the_field() -> None:
    """After some steps lines drawn in a field with the bundle 6 mm higher lie higher than in one with it lower."""
    one = problem(withheld=0.0, shifted=0.0, n_judged=0, source=SourceSettings(sd_mm=(0.5,)))
    fit(one, LoopSettings(steps=12, learning_rate=1e-2, warm_up=5))
    model = GenTract(one.module, one.source, library().names, (False, False))
    rows = torch.arange(8)
    low, high = (
        model.draw(_seen(model, number), rows, torch.Generator().manual_seed(0))[0][..., 2].mean() for number in (0, 1)
    )
    assert float(high - low) > 2.0


def _seen(model: GenTract, number: int) -> object:
    from tractode.fields import ShField

    return model.context(ShField(GRID, Shifted()[number].coeffs, 6))
