"""How to quantise a streamline: the ways that were tried for the bundle codec (decision 0011), at about one rate.

    python benchmarks/codec_choice.py --seconds 60 --output benchmarks/results/codec_choice.json

Every way learns from the same random lines (`simulate/line_samples.py`) for the same time of one thread, those with networks after the
codebooks' own; errors are of the points of held-out lines of held-out persons, mm.

``klt``  principal axes, equal steps; ``bits`` of codes of fixed length, ``ideal_bits`` by entropy (`codec_klt.py`)
``fsq``  finite scalar quantisation (Mentzer et al. 2023, doi:10.48550/arXiv.2309.15505) between learned networks around the same axes
``kmeans``, ``averages``, ``averages_beam``  residual codewords: begun, followed by exponential averages, searched by a beam of 4
``…_decoder``, ``…_straight_through``, ``…_rotation``  with a network after the codewords; with one before them too, the gradient passed
               straight through or turned (Fifty et al. 2024, doi:10.48550/arXiv.2410.06424)
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from codec_klt import Klt
from codec_test_set import load_library, test_set
from measure import meta
from torch import Tensor, nn
from torch.nn import functional

from tractode.generative.codec_tables import CodecSettings, CodecTables
from tractode.generative.line_code import lines31
from tractode.generative.residual_quantiser import ResidualQuantiser
from tractode.simulate.line_samples import LineSamples, LineSampleSettings, false_lines
from tractode.training.codebooks import CodebookSettings, fit_codebooks

STAGES, BATCH, WIDTH, FSQ_BITS = 16, 1024, 384, 160
_STEPS_PER_S = 5  # of codebooks, on one thread
Draw = Callable[[], Tensor]


class Networks(nn.Module):
    """Residual networks around the transform: before the quantiser (``encodes``) and after it. Both begin at nothing."""

    def __init__(self, tables: CodecTables, spread: Tensor, encodes: bool) -> None:
        super().__init__()
        self.tables, self.spread, self.encodes = tables, spread, encodes
        d = len(spread)
        self.before, self.after = _network(d, d), _network(d, 93)

    def latents(self, lines: Tensor) -> Tensor:
        latents = self.tables.latents(lines)
        return latents + self.before(latents / self.spread) if self.encodes else latents

    def lines(self, latents: Tensor) -> Tensor:
        return self.tables.lines(latents) + self.after(latents / self.spread).unflatten(1, (31, 3))


def _network(n_in: int, n_out: int) -> nn.Sequential:
    last = nn.Linear(WIDTH, n_out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(n_in, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the processor, for each way to learn")
    parser.add_argument("--persons", type=int, default=10)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    library = load_library()
    held_out = lines31(test_set(library, arguments.persons).streamlines()).float()
    samples = LineSamples(
        library, LineSampleSettings(other=0.15, simulated=0.1), false_lines(library, 16_000, _seeded(0))
    )
    generator = _seeded(1)
    result = {
        "meta": meta(f"python benchmarks/codec_choice.py --seconds {arguments.seconds:g}"),
        "ways": ways(lambda: samples.draw(BATCH, generator)[0], samples, held_out, arguments.seconds),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


def ways(draw: Draw, samples: LineSamples, held_out: Tensor, seconds: float) -> dict[str, Any]:
    """Every way's bits and errors."""
    first = torch.cat([draw() for _ in range(64)])
    found = {}
    for step in (1.0, 1.5, 2.0, 3.0):
        plain = Klt(first, step)
        codes = plain.quantise(plain.latents(held_out))
        ideal = plain.ideal_bits(codes.clamp(plain.least, plain.largest) - plain.least)
        found[f"klt_{step:g}mm"] = {
            "bits": plain.bits_per_streamline, "ideal_bits": round(ideal, 1), **errors(plain.lines(plain.dequantise(codes)), held_out)
        }  # fmt: skip
    codec = CodecSettings(stages=STAGES, most_stages=STAGES)
    begun = CodecTables(codec)
    begun.begin(first, _seeded(2))
    found["kmeans"] = _rated(begun, held_out)
    settings = CodebookSettings(steps=round(seconds * _STEPS_PER_S), n_first=len(first))
    tables = fit_codebooks(lambda n, generator: samples.draw(n, generator)[0], codec, settings)
    found["averages"] = {"steps": settings.steps, **_rated(tables, held_out)}
    found["averages_beam"] = _rated(tables, held_out, beam=4)
    spread = tables.latents(first).std(0)
    for name, encodes, passed in (
        ("decoder", False, None), ("straight_through", True, straight_through), ("rotation", True, rotated),
    ):  # fmt: skip
        network = Networks(copy.deepcopy(tables), spread, encodes)
        n_steps = fit(network, draw, seconds, passed)
        latents = network.latents(held_out)
        quantised = network.tables.quantiser.vectors(network.tables.quantiser.codes(latents))
        found[f"averages_{name}"] = {
            "bits": 10 * STAGES,
            "steps": n_steps,
            **errors(network.lines(quantised), held_out),
        }
    found["fsq"] = finite_scalar(tables, spread, draw, held_out, 2 * seconds)
    return found


def _rated(tables: CodecTables, held_out: Tensor, beam: int = 1) -> dict[str, Any]:
    codes = tables.quantiser.codes(tables.latents(held_out), beam=beam)
    return {"bits": 10 * STAGES, **errors(tables.lines(tables.quantiser.vectors(codes)), held_out)}


def fit(network: Networks, draw: Draw, seconds: float, passed: Callable[[Tensor, Tensor], Tensor] | None) -> int:
    """Networks by gradient, codebooks by averages. ``passed`` gives the quantised latents with their gradient; `None` for none."""
    quantiser: ResidualQuantiser = network.tables.quantiser
    generator = _seeded(3)

    def loss() -> Tensor:
        lines = draw()
        latents = network.latents(lines)
        codes = quantiser.learn(latents.detach(), 0.99, generator)
        quantised = quantiser.vectors(codes)
        moved = quantised if passed is None else passed(latents, quantised)
        commitment = (latents - quantised).square().sum(1).mean() / 31 if passed else 0.0
        return (network.lines(moved) - lines).square().sum(-1).mean() + 0.25 * commitment

    return descend(network, loss, seconds)


def descend(module: nn.Module, loss: Callable[[], Tensor], seconds: float) -> int:
    parameters = list(module.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4)
    start, n_steps = time.process_time(), 0
    while (share := (time.process_time() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1, (n_steps + 1) / 50) * 0.5 * (1 + math.cos(math.pi * share))
        optimiser.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        n_steps += 1
    return n_steps


def straight_through(latents: Tensor, quantised: Tensor) -> Tensor:
    return latents + (quantised - latents).detach()


def rotated(latents: Tensor, quantised: Tensor) -> Tensor:
    """The quantised latents as the latents turned and scaled, both held fixed for the gradient."""
    sizes = latents.norm(dim=1, keepdim=True).clamp_min(1e-6), quantised.norm(dim=1, keepdim=True).clamp_min(1e-6)
    own, other = (latents / sizes[0]).detach(), (quantised / sizes[1]).detach()
    middle = functional.normalize(own + other, dim=1, eps=1e-6)
    turned = (
        latents
        - 2 * (latents * middle).sum(1, keepdim=True) * middle
        + 2 * (latents * own).sum(1, keepdim=True) * other
    )
    return (sizes[1] / sizes[0]).detach() * turned


def finite_scalar(tables: CodecTables, spread: Tensor, draw: Draw, held_out: Tensor, seconds: float) -> dict[str, Any]:
    """Every latent rounded to a number of levels of its own, inside a hyperbolic tangent; levels by reverse water-filling."""
    variance = spread.square()
    low, high = 0.0, float(variance.max())
    for _ in range(60):
        water = (low + high) / 2
        bits = (0.5 * torch.log2(variance / water)).clamp_min(0)
        low, high = (water, high) if float(bits.sum()) > FSQ_BITS else (low, water)
    levels = (2**bits).round().clamp_min(2)
    half = (levels - 1) / 2
    offset = (levels % 2 == 0) * 0.5
    network = Networks(tables, spread, encodes=True)

    def decoded(lines: Tensor) -> Tensor:
        bounded = torch.tanh(network.latents(lines) / (2 * spread)) * half
        rounded = ((bounded - offset).round() + offset).clamp(-half, half)
        passed = bounded + (rounded - bounded).detach()
        return network.lines(2 * spread * torch.atanh((passed / half).clamp(-0.97, 0.97)))

    def loss() -> Tensor:
        lines = draw()
        return (decoded(lines) - lines).square().sum(-1).mean()

    n_steps = descend(network, loss, seconds)
    return {"bits": round(float(levels.log2().sum()), 1), "steps": n_steps, **errors(decoded(held_out), held_out)}


@torch.no_grad()
def errors(found: Tensor, truth: Tensor) -> dict[str, Any]:
    apart = (found - truth).norm(dim=-1)
    ranked = apart.flatten().kthvalue(round(0.95 * apart.numel())).values
    return {"error_mm": round(float(apart.mean()), 4), "error_p95_mm": round(float(ranked), 4), "n": len(truth)}


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


if __name__ == "__main__":
    main()
