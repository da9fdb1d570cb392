"""Fitting the published model: poses, the autoencoders' terms, and the small recipe from end to end on two made-up heads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tractode.errors import InputDataError, ResourceUnavailableError
from tractode.fields import ImageGrid, ShField
from tractode.generative.coefficient_vae import CoefficientVaes, VaeSettings
from tractode.generative.latent_encoder import LatentEncoderSettings
from tractode.generative.paper_model import PaperModel, PaperSettings
from tractode.generative.space import training_grid
from tractode.generative.transformer import TransformerSettings
from tractode.ops import interpolate
from tractode.ops import spherical_harmonics as sh
from tractode.training.coefficient_vae import (
    VaeProblem,
    VaeTrainingSettings,
    adversarial_terms,
    divergence,
    perceptual_loss,
)
from tractode.training.gentract_paper import (
    RECIPES,
    PaperProblem,
    PaperTrainingSettings,
    normalise,
    rotation,
    turned,
    volumes_of,
    with_points,
)
from tractode.training.loop import LoopSettings, fit

TINY = PaperSettings(
    n_coefficients=6,
    spacing_mm=6.0,
    n_points=6,
    vae=VaeSettings(channels=(4, 4, 4), n_blocks=1, groups=2),
    encoder=LatentEncoderSettings(channels=4, embedding=8),
    transformer=TransformerSettings(layers=1, width=32, heads=2, feedforward=64, dropout=0.0),
)


@dataclass(frozen=True, eq=False)
class Head:
    coeffs: Tensor
    lines: Tensor
    kept: Tensor


def head(side: float) -> Head:
    """A ball with one bundle along y at ``x = side`` (mm), its fibres in the field; 31 points a line."""
    grid = training_grid()
    centres = grid.centres()
    along = sh.basis(torch.tensor([0.0, 1.0, 0.0]), 6)
    ball = ((centres / torch.tensor([60.0, 75.0, 60.0])) ** 2).sum(-1) < 1
    inside = ((centres[..., 0] - side).abs() < 12) & (centres[..., 2].abs() < 12) & (centres[..., 1].abs() < 50)
    coeffs = along[:, None, None, None] * inside
    coeffs[0] += 0.1 * ball
    generator = torch.Generator().manual_seed(7)
    offset = torch.tensor([side, 0.0, 0.0]) + 6 * (torch.rand(40, 1, 3, generator=generator) - 0.5)
    line = torch.stack([torch.zeros(31), torch.linspace(-45, 45, 31), torch.zeros(31)], dim=-1)
    kept = torch.ones(40, dtype=torch.bool)
    kept[-1] = False
    return Head(coeffs, offset + line, kept)


def test_turned_field_stays_along_the_turned_lines(oblique_affine: Tensor) -> None:
    """A bundle along a slanted line: after the turn the field at the line's new places points along it."""
    grid = ImageGrid((40, 36, 32), oblique_affine, "head")
    middle = grid.to_world((torch.tensor(grid.shape, dtype=torch.float64) - 1) / 2).float()
    direction = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -0.5]), dim=0)
    off = torch.tensor([4.0, -3.0, 5.0])
    from_axis = grid.centres() - middle - off
    near = (from_axis - (from_axis @ direction)[..., None] * direction).norm(dim=-1) < 7
    coeffs = sh.basis(direction, 6)[:, None, None, None] * near
    line = (middle + off + torch.linspace(-15, 15, 9)[:, None] * direction)[None]
    by = rotation(2, 30.0) @ rotation(0, -15.0)
    moved, lines = turned(coeffs, line, grid, by)
    tangent = torch.nn.functional.normalize(lines[0, -1] - lines[0, 0], dim=0)
    torch.testing.assert_close(tangent, by @ direction, atol=1e-5, rtol=0)
    seen = interpolate.sample(moved, grid.to_voxel(lines[0].double()).float())
    directions = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(8)), dim=1)
    peaks = directions[(seen @ sh.basis(directions, 6).T).argmax(1)]
    assert (peaks @ tangent).abs().min() > 0.995
    assert seen[:, 0].min() > 0.9 * float(coeffs[0].max())
    same, lines = turned(coeffs, line, grid, rotation(1, 0.0))
    assert torch.equal(same, coeffs)
    assert torch.equal(lines, line)


def test_rotation_turns_to_the_right_hand() -> None:
    torch.testing.assert_close(rotation(2, 90.0) @ torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]))
    torch.testing.assert_close(rotation(0, 90.0) @ torch.tensor([0, 1.0, 0]), torch.tensor([0, 0, 1.0]))
    torch.testing.assert_close(rotation(1, 90.0) @ torch.tensor([0, 0, 1.0]), torch.tensor([1.0, 0, 0]))
    assert len(RECIPES["paper"].batch.poses) == 19
    assert len(RECIPES["small"].batch.poses) == 1


def test_points_are_spread_along_the_line() -> None:
    line = torch.stack([torch.linspace(0, 30, 31), torch.zeros(31), torch.zeros(31)], dim=-1)[None]
    torch.testing.assert_close(with_points(line, 16), line[:, ::2])
    torch.testing.assert_close(with_points(line, 128)[0, :, 0], torch.linspace(0, 30, 128))


def test_divergence_is_torchs(generator: torch.Generator) -> None:
    mean, deviation = torch.randn(2, 3, 4, generator=generator), torch.rand(2, 3, 4, generator=generator) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0)).sum()
    torch.testing.assert_close(divergence(mean, deviation), expected)


def test_neither_side_of_the_adversarial_term_moves_the_other() -> None:
    torch.manual_seed(9)
    critic = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.Conv3d(2, 1, 3))

    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = critic

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.inner(x)]

    x, back = torch.randn(8, 8, 8), torch.randn(8, 8, 8, requires_grad=True)
    module = Layers()
    paid = adversarial_terms(module, x, back, 0.1)
    by_critic, by_back = torch.autograd.grad(paid, [critic[0].weight, back])
    generator_only = 0.1 * ((module(back[None, None])[-1] - 1) ** 2).mean()
    critic_only = 0.5 * (
        ((module(x[None, None])[-1] - 1) ** 2).mean() + (module(back.detach()[None, None])[-1] ** 2).mean()
    )
    torch.testing.assert_close(by_back, torch.autograd.grad(generator_only, back)[0])
    torch.testing.assert_close(by_critic, torch.autograd.grad(critic_only, critic[0].weight)[0])


def test_autoencoders_learn_and_are_compared_with_the_mean() -> None:
    torch.manual_seed(10)
    vaes = CoefficientVaes(2, TINY.vae)
    axes = torch.meshgrid(*[torch.linspace(-2, 2, n) for n in (24, 20, 22)], indexing="ij")
    volumes = [torch.stack([torch.sin(axes[0] * k), torch.cos(axes[1] + k)]) for k in (1.0, 1.4)]
    terms = VaeTrainingSettings(crop=16, discriminator_channels=2, discriminator_layers=1)
    problem = VaeProblem(volumes, vaes, terms)
    losses = fit(problem, LoopSettings(steps=80, learning_rate=1e-2, warm_up=5))
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    with torch.no_grad():
        left = (vaes.reconstructed(volumes[0]) - volumes[0]).abs().mean()
    assert left < 0.7 * (volumes[0] - volumes[0].mean((1, 2, 3), keepdim=True)).abs().mean()


def test_perceptual_term_says_what_is_missing() -> None:
    try:
        import lpips  # noqa: F401
    except ImportError:
        with pytest.raises(ResourceUnavailableError, match="E-TRAIN-PERCEPTUAL"):
            perceptual_loss()
    else:
        pytest.skip("lpips is installed")


@pytest.fixture(scope="module")
def heads() -> list[Head]:
    return [head(-24.0), head(24.0)]


def problem(heads: list[Head], settings: PaperSettings = TINY, **batch: object) -> PaperProblem:
    torch.manual_seed(11)
    model = normalise(PaperModel(settings), heads)
    return PaperProblem(heads, model, PaperTrainingSettings(n_lines=32, angles_deg=(), **batch))  # type: ignore[arg-type]


def test_statistics_are_those_of_the_training_set(heads: list[Head]) -> None:
    model = problem(heads).model
    stack = torch.stack(volumes_of(model.__class__(replace(TINY, spacing_mm=3.0)), heads))
    torch.testing.assert_close(model.mean, stack.mean((0, 2, 3, 4)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.deviation, stack.std((0, 2, 3, 4)), atol=1e-4, rtol=1e-3)
    scaled = model.to_unit(torch.cat([one.lines[one.kept] for one in heads]))
    torch.testing.assert_close(scaled.reshape(-1, 3).amin(0), -torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.reshape(-1, 3).amax(0), torch.ones(3), atol=1e-5, rtol=0)


def test_loss_depends_on_the_generator_alone(heads: list[Head]) -> None:
    dropout = replace(TINY, transformer=replace(TINY.transformer, dropout=0.2))
    one = problem(heads, dropout, withheld=0.5)
    values = []
    for seed in (1, 1, 2):
        torch.rand(seed)  # the state of torch's own generator must not matter
        values.append(float(one.loss(torch.Generator().manual_seed(seed)).detach()))
    assert values[0] == values[1] != values[2]
    assert one.record()["subjects"] == 2
    empty = replace(heads[0], kept=torch.zeros(40, dtype=torch.bool))
    with pytest.raises(InputDataError, match="E-TRAIN-EMPTY"):
        PaperProblem([empty], one.model, one.settings).loss(torch.Generator())


@pytest.mark.parametrize(
    ("paradigm", "rate"), [pytest.param("diffusion", 4e-3, marks=pytest.mark.slow), ("flow_matching", 2e-3)]
)
def test_small_recipe_from_end_to_end_looks_at_its_subject(heads: list[Head], paradigm: str, rate: float) -> None:
    """Autoencoders, then encoder and transformer, on two heads whose one bundle lies left or right."""
    one = problem(heads, replace(TINY, paradigm=paradigm, flow_times="uniform"))  # type: ignore[arg-type]
    vaes = VaeProblem(volumes_of(one.model, heads), one.model.vaes, VaeTrainingSettings(adversarial=0.0, crop=16))
    fit(vaes, LoopSettings(steps=25, learning_rate=5e-3, warm_up=5))
    fit(one, LoopSettings(steps=400, learning_rate=rate, warm_up=50, weight_decay=0.0))
    grid = training_grid()
    drawn = [
        one.model.sample(
            one.model.context(ShField(grid, each.coeffs, 6)), 40, torch.Generator().manual_seed(1), n_steps=10
        )
        for each in heads
    ]
    left, right = (float(lines[..., 0].mean()) for lines in drawn)
    assert left < -12
    assert right > 12
