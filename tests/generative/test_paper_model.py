"""The published model's parts against torch's and MONAI's own, and the model put together at the size of two cores."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import replace

import pytest
import tomli_w
import torch
from torch import nn

from tractode.errors import ShapeError
from tractode.fields import ImageGrid, ShField
from tractode.generative.coefficient_vae import CoefficientVaes, VaeSettings, padded
from tractode.generative.latent_encoder import LatentEncoder, LatentEncoderSettings
from tractode.generative.paper_model import RECIPES, Denoiser, PaperModel, PaperSettings
from tractode.generative.space import training_grid
from tractode.generative.transformer import StreamlineTransformer, TransformerSettings, sinusoidal

SMALL = TransformerSettings(layers=2, width=24, heads=3, feedforward=40)
TINY = PaperSettings(
    n_coefficients=6,
    spacing_mm=12.0,
    n_points=8,
    vae=VaeSettings(channels=(4, 4, 4), n_blocks=1, groups=2),
    encoder=LatentEncoderSettings(channels=4, embedding=8),
    transformer=replace(SMALL, layers=1),
)


@pytest.fixture
def tiny() -> PaperModel:
    torch.manual_seed(0)
    return PaperModel(TINY).eval()


def random_field(seed: int = 0, order: int = 2) -> ShField:
    grid = training_grid()
    n = (order + 1) * (order + 2) // 2
    return ShField(grid, torch.randn(n, *grid.shape, generator=torch.Generator().manual_seed(seed)), order)


def torchs_stack(ours: StreamlineTransformer) -> nn.TransformerDecoder:
    """PyTorch's own decoder, normalised after each sum, with our weights."""
    s = ours.settings
    layer = nn.TransformerDecoderLayer(s.width, s.heads, s.feedforward, s.dropout, batch_first=True)
    stack = nn.TransformerDecoder(layer, s.layers, nn.LayerNorm(s.width)).eval()
    with torch.no_grad():
        for theirs, mine in zip(stack.layers, ours._stack, strict=True):
            theirs.self_attn.in_proj_weight.copy_(mine.among.project.weight)
            theirs.self_attn.in_proj_bias.copy_(mine.among.project.bias)
            theirs.self_attn.out_proj.load_state_dict(mine.among.out.state_dict())
            looked = mine.looked_up
            theirs.multihead_attn.in_proj_weight.copy_(torch.cat([looked.query.weight, looked.key_value.weight]))
            theirs.multihead_attn.in_proj_bias.copy_(torch.cat([looked.query.bias, looked.key_value.bias]))
            theirs.multihead_attn.out_proj.load_state_dict(looked.out.state_dict())
            theirs.linear1.load_state_dict(mine.wide.state_dict())
            theirs.linear2.load_state_dict(mine.narrow.state_dict())
            for n in range(3):
                getattr(theirs, f"norm{n + 1}").load_state_dict(mine.norms[n].state_dict())
        stack.norm.load_state_dict(ours.norm.state_dict())
    return stack


@pytest.mark.reference
def test_kept_keys_and_values_give_what_torchs_decoder_gives(generator: torch.Generator) -> None:
    """PyTorch projects the context again for every streamline; ours is projected once and shared."""
    torch.manual_seed(1)
    ours = StreamlineTransformer(10, SMALL).eval()
    nn.init.normal_(ours.null)
    for parameter in ours.parameters():
        parameter.requires_grad_(False).add_(0.1 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(5, 7, 3, generator=generator)
    time, tokens = torch.rand(5, generator=generator), torch.randn(11, 10, generator=generator)
    width = SMALL.width
    hidden = torch.relu(ours.points(x)) * width**0.5 + sinusoidal(torch.arange(7.0), width)
    hidden = hidden + ours.time(sinusoidal(1000 * time, width))[:, None]
    stack = torchs_stack(ours)
    expected = ours.out(stack(hidden, ours.context(tokens).expand(5, 11, width)))
    memory = ours.memory(tokens)
    torch.testing.assert_close(ours(x, time, memory), expected, atol=2e-6, rtol=1e-5)
    blind = torch.tensor([True, False, True, False, False])
    nobody = ours.out(stack(hidden, ours.null.expand(5, 1, width)))
    mixed = torch.where(blind[:, None, None], nobody, expected)
    torch.testing.assert_close(ours(x, time, memory, blind), mixed, atol=2e-6, rtol=1e-5)


@pytest.mark.reference
def test_context_encoder_is_monais_down_block(generator: torch.Generator) -> None:
    from monai.networks.nets.diffusion_model_unet import DownBlock

    torch.manual_seed(2)
    ours = LatentEncoder(3, 4, LatentEncoderSettings(channels=6, embedding=8)).eval()
    for parameter in ours.parameters():
        parameter.requires_grad_(False).add_(0.1 * torch.randn(parameter.shape, generator=generator))
    theirs = DownBlock(3, 4, 6, 8, num_res_blocks=2, norm_num_groups=2).eval()
    state = ours.state_dict()
    names = {"conv1": "conv1.conv", "conv2": "conv2.conv", "shift": "time_emb_proj", "skip": "skip_connection.conv"}
    moved = {}
    for key, value in state.items():
        if key.startswith("blocks."):
            _, n, part, kind = key.split(".")
            moved[f"resnets.{n}.{names.get(part, part)}.{kind}"] = value
        elif key.startswith("halve."):
            moved[key.replace("halve", "downsampler.op.conv")] = value
    theirs.load_state_dict(moved)
    latents = torch.randn(3, 4, 6, 8, 7, generator=generator)
    expected = theirs(latents, ours.index.weight)[0]
    tokens = ours(latents)
    assert tokens.shape == (3 * 4 * 4, 18)
    at = (1, 2, 3)
    row = (at[0] * 4 + at[1]) * 4 + at[2]
    torch.testing.assert_close(tokens[row], expected[:, :, 1, 2, 3].flatten(), atol=1e-5, rtol=1e-5)


def test_paper_has_the_published_sizes() -> None:
    paper = RECIPES["paper"]
    denoiser = Denoiser(paper)
    stack = sum(parameter.numel() for parameter in denoiser.transformer.layers.parameters())
    assert stack == pytest.approx(12.6e6, rel=0.01)
    assert denoiser.encoder.n_features == 28 * 32
    assert paper.grid.voxel_sizes == pytest.approx((1.875,) * 3)
    assert padded(torch.zeros(1, *paper.grid.shape)).shape == (1, 88, 104, 88)


@pytest.mark.parametrize("name", list(RECIPES))
def test_settings_survive_a_file(name: str) -> None:
    text = tomli_w.dumps(RECIPES[name].record())
    assert PaperSettings.from_record(tomllib.loads(text)) == RECIPES[name]


def test_monai_is_loaded_only_when_an_autoencoder_is_made() -> None:
    code = (
        "import sys, tractode, tractode.generative.paper_model, tractode.training.coefficient_vae; "
        "sys.exit('monai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_autoencoders_share_nothing_and_quarter_the_grid(generator: torch.Generator) -> None:
    torch.manual_seed(3)
    vaes = CoefficientVaes(2, TINY.vae).eval().requires_grad_(False)
    volumes = torch.randn(2, 13, 16, 11, generator=generator)
    latents = vaes.latents(volumes)
    assert latents.shape == (2, 4, 4, 4, 4)
    assert vaes.reconstructed(volumes).shape == volumes.shape
    changed = volumes.clone()
    changed[1] += 1
    assert torch.equal(vaes.latents(changed)[0], latents[0])
    assert not torch.equal(vaes.latents(volumes[[0, 0]])[1], latents[0])


def test_model_draws_the_same_again_and_the_first_of_a_longer_row(tiny: PaperModel) -> None:
    context = tiny.context(random_field())
    first = tiny.sample(context, 5, torch.Generator().manual_seed(4), n_steps=3)
    assert first.shape == (5, 8, 3)
    assert torch.equal(first, tiny.sample(context, 5, torch.Generator().manual_seed(4), n_steps=3))
    longer = tiny.sample(context, 150, torch.Generator().manual_seed(4), n_steps=3)
    assert torch.equal(longer[:5], first)
    assert tiny.sample(context, 0, torch.Generator(), n_steps=3).shape == (0, 8, 3)


def test_guidance_joins_subject_and_nobody(tiny: PaperModel) -> None:
    context, other = tiny.context(random_field()), tiny.context(random_field(1))

    def draw(at: float, of: object = context) -> torch.Tensor:
        return tiny.sample(of, 3, torch.Generator().manual_seed(5), 2, at)  # type: ignore[arg-type]

    assert torch.equal(draw(0.0), draw(0.0, other))
    assert not torch.equal(draw(1.0), draw(1.0, other))
    # The last layer of one step is affine in its prediction, but two steps are not: only one is compared.
    one = [tiny.sample(context, 3, torch.Generator().manual_seed(5), 1, at) for at in (0.0, 1.0, 2.0)]
    torch.testing.assert_close(one[2] - one[1], one[1] - one[0], atol=0.05, rtol=1e-3)


def test_model_looks_at_fields_of_any_order_and_grid(tiny: PaperModel) -> None:
    high = random_field(order=4)
    low = ShField(high.grid, high.coeffs[:6], 2)
    torch.testing.assert_close(tiny.volumes(high), tiny.volumes(low))
    assert tiny.volumes(high).shape == (6, *TINY.grid.shape)
    with pytest.raises(ShapeError, match="6 coefficients"):
        tiny.volumes(ShField(high.grid, high.coeffs[:1], 0))
    # A field that is linear in space reads the same at a place whatever grid it comes on.
    fine = training_grid()
    shifted = ImageGrid(fine.shape, fine.affine + torch.tensor([[0, 0, 0, 1.3], *[[0, 0, 0, 0.0]] * 3]), fine.space)
    read = [
        tiny.volumes(ShField(grid, grid.centres()[..., 0].expand(6, *grid.shape).contiguous(), 2))
        for grid in (fine, shifted)
    ]
    inner = (slice(None), slice(2, -2), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(read[0][inner], read[1][inner], atol=1e-3, rtol=0)


def test_box_there_and_back(tiny: PaperModel, generator: torch.Generator) -> None:
    points = 40 * torch.randn(6, 3, generator=generator)
    torch.testing.assert_close(tiny.to_mm(tiny.to_unit(points)), points, atol=1e-4, rtol=0)
    moved = tiny.with_box(torch.tensor([-10.0, -20.0, 0.0]), torch.tensor([10.0, 20.0, 30.0]))
    torch.testing.assert_close(moved.to_unit(torch.tensor([0.0, 20.0, 0.0])), torch.tensor([0.0, 1.0, -1.0]))


def test_weights_make_the_same_model(tiny: PaperModel) -> None:
    again = PaperModel.from_weights(tiny.state_dict(), tiny.settings.record())
    context, same = tiny.context(random_field()), again.context(random_field())
    draws = [m.sample(c, 2, torch.Generator().manual_seed(6), 2) for m, c in ((tiny, context), (again, same))]
    assert torch.equal(*draws)
