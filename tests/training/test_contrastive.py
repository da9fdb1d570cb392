"""Training the contrastive descriptor: painting, the loop and its checkpoints, weights on disk, the command."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tractode.cli.train import main
from tractode.errors import ConfigurationError, InputDataError, ResourceUnavailableError
from tractode.evaluate.found_shifts import found_shifts, score
from tractode.io.weights import load_metric, read_weights, shipped, write_weights
from tractode.registration import METRICS
from tractode.registration.metrics.contrastive import Contrastive, DescriptorNetwork, DescriptorSettings
from tractode.registration.metrics.mse import MeanSquares
from tractode.simulate.painting import PaintSettings, compact, known_palette, paint, random_palette
from tractode.training.contrastive import ContrastiveProblem, ContrastiveSettings
from tractode.training.loop import LoopSettings, fit

SMALL = DescriptorSettings(width=4, channels=6, dilations=(1,))
BATCH = ContrastiveSettings(crop=14, factors=(1,), centres=24)


@pytest.fixture(scope="module")
def head() -> torch.Tensor:
    """Nested balls with FreeSurfer's codes, left and right, in air."""
    axes = [torch.arange(n) - n / 2 for n in (30, 28, 32)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    radius = (x**2 + y**2 + z**2).sqrt()
    labels = torch.zeros(30, 28, 32, dtype=torch.int64)
    for bound, left, right in ((12.0, 3, 42), (9.0, 2, 41), (4.0, 4, 43)):
        labels = torch.where(radius < bound, torch.where(x < 0, left, right), labels)
    return labels


def problem(head: torch.Tensor) -> ContrastiveProblem:
    return ContrastiveProblem([head], ["ball"], SMALL, BATCH)


def test_both_sides_of_the_head_are_one_tissue(head: torch.Tensor) -> None:
    small, codes = compact(head)
    assert codes.tolist() == [0, 2, 3, 4]
    assert torch.equal(codes[small], torch.where(head > 40, head - 39, head))


def test_paint_without_disturbance_is_the_palette(head: torch.Tensor) -> None:
    small, codes = compact(head)
    palette = known_palette(codes, "T2w")
    still = PaintSettings(noise=0.0, bias=0.0, blur=0.0)
    image = paint(small, palette, torch.Generator().manual_seed(0), factor=2, settings=still)
    assert image.shape == (1, 15, 14, 16)
    # The middle of the ventricle, averaged over eight voxels of texture.
    assert float(image[0, 7, 7, 8]) == pytest.approx(1.0, abs=0.03)
    assert float(image[0, 0, 0, 0]) == pytest.approx(0.0, abs=0.03)
    draws = [random_palette(50, torch.Generator().manual_seed(seed)).mean for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert len(set(draws[0].tolist())) < 50


def test_descriptor_has_length_one_and_its_built_in_invariances(head: torch.Tensor) -> None:
    """Before any training: gain of either sign and offset leave it as it is."""
    small, codes = compact(head)
    image = paint(small, random_palette(len(codes), torch.Generator().manual_seed(5)), torch.Generator().manual_seed(6))
    metric = Contrastive(DescriptorNetwork(SMALL).requires_grad_(False))
    described = metric.describe(image)
    torch.testing.assert_close(described.norm(dim=0), torch.ones(image.shape[1:]))
    torch.testing.assert_close(metric.describe(7 - 3 * image), described, atol=1e-4, rtol=1e-4)


def test_loss_falls(head: torch.Tensor) -> None:
    losses = fit(problem(head), LoopSettings(steps=150, learning_rate=0.02, warm_up=5))
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.2


def test_interrupted_run_ends_like_an_uninterrupted_one(head: torch.Tensor, tmp_path: Path) -> None:
    settings = LoopSettings(steps=6, checkpoint_every=2)
    whole = problem(head)
    fit(whole, settings)

    class Stop(Exception):
        pass

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 4:
            raise Stop

    with pytest.raises(Stop):
        fit(problem(head), settings, tmp_path / "c.safetensors", stop)
    again = problem(head)
    assert len(fit(again, settings, tmp_path / "c.safetensors")) == 2
    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(again.module.state_dict()[name], value, atol=0, rtol=0)
    with pytest.raises(ConfigurationError, match="E-TRAIN-RESUME"):
        fit(problem(head), LoopSettings(steps=7), tmp_path / "c.safetensors")


def test_weights_survive_the_disk_and_are_checked(tmp_path: Path) -> None:
    network = DescriptorNetwork(SMALL)
    write_weights(tmp_path / "w", network.state_dict(), {"network": SMALL.record()}, "# card")
    tensors, settings = read_weights(tmp_path / "w")
    for name, value in network.state_dict().items():
        assert torch.equal(tensors[name], value.half().float())
    assert DescriptorSettings.from_record(settings["network"]) == SMALL
    assert isinstance(load_metric("contrastive", tmp_path / "w"), Contrastive)
    model = tmp_path / "w" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(InputDataError, match="E-WEIGHTS-SUM"):
        read_weights(tmp_path / "w")
    model.unlink()
    with pytest.raises(ResourceUnavailableError, match="E-WEIGHTS-MISSING"):
        read_weights(tmp_path / "w")
    with pytest.raises(ResourceUnavailableError, match="E-REG-WEIGHTS"):
        METRICS["contrastive"]()


def test_shipped_weights_are_whole_small_and_have_a_card() -> None:
    folder = shipped("contrastive")
    tensors, _ = read_weights(folder)
    assert sum(tensor.numel() for tensor in tensors.values()) < 50_000
    assert "not trained on" in (folder / "card.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in folder.iterdir()) == ["card.md", "model.safetensors", "settings.toml", "sha256"]


def test_found_shifts_of_a_known_shift() -> None:
    """Waves of one length: an image in place is found in place, one moved by a voxel (2 mm) along i is found off."""
    axes = [torch.arange(24.0)] * 3
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    image = (torch.sin(x / 2) + torch.sin(y / 2.2) + torch.sin(z / 2.4))[None]
    inside = torch.zeros(24, 24, 24, dtype=torch.bool)
    inside[6:18, 6:18, 6:18] = True
    there = found_shifts(MeanSquares(), image, image, inside, 2.0, n=300)
    assert score(there)["within_1mm"] > 0.95
    moved = found_shifts(MeanSquares(), image, image.roll(2, 1), inside, 2.0, n=300)
    assert score(moved)["within_1mm"] < 0.6


def test_command(head: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        nib.save(
            nib.Nifti1Image(head.numpy().astype(np.int16), np.diag([1.0, 1.0, 1.0, 1.0])), tmp_path / f"{name}.nii.gz"
        )
    a, b, out = str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz"), tmp_path / "out"
    command = ["contrastive", a, "--leave-out", b, "--out", str(out), "--steps", "2", "--crop", "12"]
    assert main(command) == 0
    card = (out / "card.md").read_text(encoding="utf-8")
    assert "b.nii.gz, not trained on" in card
    assert "| T1w→T2w |" in card
    before = (out / "model.safetensors").read_bytes()
    assert main(command) == 0  # done already: the same weights again
    assert (out / "model.safetensors").read_bytes() == before
    assert main([*command[:-2], "--steps", "3"]) == 78
    assert main(["contrastive", a, "--leave-out", a, "--out", str(out)]) == 64
    assert main(["contrastive", str(tmp_path / "none.nii.gz"), "--out", str(out)]) == 66
    assert "E-TRAIN-LABELS" in capsys.readouterr().err
