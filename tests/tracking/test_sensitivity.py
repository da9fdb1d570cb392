"""Sensitivity maps: against finite differences of the whole chain, and what they predict of an altered signal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tractode.errors import InputDataError, ShapeError
from tractode.fields import DWI, Image, ShField
from tractode.models.csd import CSD
from tractode.models.response import gaussian_response
from tractode.ops import smooth
from tractode.simulate.gradients import multi_shell
from tractode.simulate.phantom import Phantom, PhantomSettings, phantom
from tractode.tracking.sdstream import SDStream
from tractode.tracking.sensitivity import Probe, Sensitivity, levelled, sensitivity, soft_connection
from tractode.tracking.survival import SoftTermination, memberships

DOUBLE = torch.float64


@dataclass(frozen=True)
class Scene:
    """A crossing, its scan in double precision, and a question to it."""

    truth: Phantom
    scan: DWI
    model: CSD
    mask: Tensor
    field: ShField
    probe: Probe
    found: Sensitivity

    def fitted(self, signal: Tensor) -> ShField:
        coeffs = torch.zeros(45, *self.scan.grid.shape, dtype=DOUBLE)
        coeffs[:, self.mask] = self.model.fit(signal[:, self.mask].mT, self.scan.gtab).mT
        return ShField(self.scan.grid, coeffs, 8)

    def connection(self, signal: Tensor) -> float:
        with torch.no_grad():
            return float(soft_connection(self.fitted(signal), self.probe))


@pytest.fixture(scope="module")
def scene() -> Scene:
    truth = phantom(multi_shell(((2500.0, 45),), 2), PhantomSettings(regions=("crossing",), size=15, voxel_mm=4.0))
    white = truth.white_matter.mask
    mask = smooth.dilate(white, (1, 1, 1)) & truth.dwi.mask
    scan = DWI(truth.dwi.grid, truth.dwi.signal.double(), truth.dwi.gtab, mask)
    model = CSD(gaussian_response(2500.0, 1.9e-3, 0.3e-3, 1000.0))
    ends = truth.bundles["CrossA"]
    regions = memberships(torch.stack([ends.start, ends.end]), scan.grid, 3.0)
    seeds = scan.grid.to_world(white.nonzero().double())
    tracker = SDStream(step_mm=2.0, angle=math.radians(45), min_length=20.0, max_length=100.0, compiled=False)
    probe = Probe.of(tracker, seeds, Image(scan.grid, mask[None]), regions, SoftTermination(0.15, 0.03, 2.0))
    coeffs = torch.zeros(45, *scan.grid.shape, dtype=DOUBLE)
    coeffs[:, mask] = model.fit(scan.signal[:, mask].mT, scan.gtab).mT
    field = ShField(scan.grid, coeffs, 8)
    return Scene(
        truth, scan, model, mask, field, probe, sensitivity(model, scan.signal, scan.gtab, field, probe)
    )  # fmt: skip


def test_the_map_is_the_finite_difference_of_the_whole_chain(scene: Scene, generator: torch.Generator) -> None:
    """Signal → CSD → lines → connection, each voxel's signals disturbed at random.

    By 10⁻⁴: the search for a peak stops at a finite tolerance, which differences of 10⁻⁵ and less show as noise.
    """
    found = scene.found
    assert found.connection > 5
    flat = found.strength().flatten()
    strongest = flat.argsort(descending=True)[[0, 3, 10, 30]]
    predicted, actual = [], []
    for voxel in strongest.tolist():
        change = torch.randn(len(scene.scan.gtab), generator=generator, dtype=DOUBLE)
        move = torch.zeros_like(scene.scan.signal).flatten(1)
        move[:, voxel] = 1e-4 * scene.scan.signal.flatten(1)[:, voxel] * change
        move = move.reshape(scene.scan.signal.shape)
        two = [scene.connection(scene.scan.signal + sign * move) for sign in (1, -1)]
        actual.append((two[0] - two[1]) / 2)
        predicted.append(found.predicted_change(scene.scan.signal + move))
    given, wanted = torch.tensor(predicted), torch.tensor(actual)
    assert float((given - wanted).norm() / wanted.norm()) < 0.01


def test_what_hangs_on_hard_ends_is_told(scene: Scene) -> None:
    """With the cutoff alone soft the lines end at the mask's border, which has no derivative; with all rules soft few do."""
    assert scene.found.abrupt > 0.3
    probe = Probe.of(scene.probe.tracker, scene.probe.seeds, scene.probe.mask, scene.probe.regions)
    found = sensitivity(scene.model, scene.scan.signal, scene.scan.gtab, scene.field, probe)
    assert found.connection > 1
    assert found.abrupt < 0.02


def test_maps_lie_along_the_bundle_and_have_their_units(scene: Scene) -> None:
    found = scene.found
    strength = found.strength()
    bundle = smooth.dilate(scene.truth.bundles["CrossA"].mask, (1, 1, 1))
    assert float(strength[bundle].sum()) > 0.9 * float(strength.sum())
    assert float(strength[~scene.mask].abs().max()) == 0
    # Scaling all signals of all voxels by 1 + ε changes amplitudes alike; the map's sum is that derivative.
    step = 1e-5
    weighted = ~scene.scan.gtab.is_b0
    up = scene.scan.signal.clone()
    up[weighted] *= 1 + step
    slope = (scene.connection(up) / found.connection - 1) / step
    assert float(found.of_signal().sum()) == pytest.approx(slope, rel=0.05)
    levelling = levelled(scene.scan.signal.flatten(1).mT, scene.scan.gtab).mT.reshape(scene.scan.signal.shape)
    total = found.predicted_change(levelling) / found.connection
    assert float(found.of_anisotropy_loss().sum()) == pytest.approx(total, rel=1e-6)


def test_levelled_signals_keep_their_shells_mean(generator: torch.Generator) -> None:
    gtab = multi_shell(((1000.0, 12), (2000.0, 20)), 3)
    signal = torch.rand(5, len(gtab), generator=generator, dtype=DOUBLE)
    half, whole = levelled(signal, gtab, 0.5), levelled(signal, gtab)
    for _, index in gtab.shells():
        torch.testing.assert_close(whole[:, index], signal[:, index].mean(-1, keepdim=True).expand(-1, len(index)))
        torch.testing.assert_close(half[:, index], (signal + whole)[:, index] / 2)
    assert torch.equal(whole[:, gtab.is_b0], signal[:, gtab.is_b0])


def test_regions_that_nothing_joins_are_an_error(scene: Scene) -> None:
    nowhere = Image(scene.scan.grid, torch.zeros(2, *scene.scan.grid.shape))
    probe = Probe.of(scene.probe.tracker, scene.probe.seeds[:20], scene.probe.mask, nowhere)
    with pytest.raises(InputDataError, match="E-SENS-EMPTY"):
        sensitivity(scene.model, scene.scan.signal, scene.scan.gtab, scene.field, probe)
    with pytest.raises(ShapeError, match="two regions"):
        Probe.of(scene.probe.tracker, scene.probe.seeds, scene.probe.mask, Image(scene.scan.grid, nowhere.values[:1]))
