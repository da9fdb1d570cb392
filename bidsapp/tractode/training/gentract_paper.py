"""Fitting the published model: at each step one subject, its latents, and streamlines of it drawn with replacement.

A. Sargood et al., "GenTract: generative global tractography", arXiv:2511.13183 (2025), sections 4.2, 5.1 and its code: AdamW, a
subject a step, 1,024 streamlines (2,048 in the later code), subjects turned by ±15°, ±30° and ±45° about each axis.

Departures: the field's harmonics are turned with the head (the code shows no such step) and both turn about the middle of the
grid; the learning rate falls to nought (`training/loop.py`), there to a quarter; half precision is bfloat16, not float16; at a share of the
steps nobody is shown (`generative/transformer.py`). Latents are computed once for every subject and pose, as there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from tractode.errors import InputDataError
from tractode.fields import ImageGrid, ShField
from tractode.fields.sh import order_of
from tractode.generative.paper_model import Denoiser, PaperModel, Path
from tractode.generative.space import ORDER, training_grid
from tractode.ops import interpolate
from tractode.ops.reorient_fod import reorient
from tractode.training.loop import LoopSettings


@runtime_checkable
class Subject(Protocol):
    """What is learned from; `simulate.tract_subject.TractSubject` is one."""

    @property
    def coeffs(self) -> Tensor: ...  # (l, i, j, k) on the training grid

    @property
    def lines(self) -> Tensor: ...  # (s, p, 3), RAS mm

    @property
    def kept(self) -> Tensor: ...  # (s,): lines that exist here


@runtime_checkable
class Subjects(Protocol):
    """Subjects by number, made or read when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Subject: ...


@dataclass(frozen=True)
class PaperTrainingSettings:
    """How a step's batch is drawn.

    Parameters
    ----------
    n_lines
        Streamlines a step, drawn with replacement.
    angles_deg
        Subjects are turned by plus and minus each of these about each axis, and not at all; one of all at each step.
    withheld
        Share of the streamlines that see nobody (the paper has none).
    """

    n_lines: int = 1024
    angles_deg: tuple[float, ...] = (15.0, 30.0, 45.0)
    withheld: float = 0.0

    @property
    def poses(self) -> list[tuple[int, float]]:
        """(axis, degrees) of every pose; the first is upright."""
        signed = [sign * angle for angle in self.angles_deg for sign in (1, -1)]
        return [(0, 0.0), *((axis, angle) for axis in range(3) for angle in signed)]


@dataclass(frozen=True)
class TrainingRecipe:
    """How batches are drawn, and how the loop descends."""

    batch: PaperTrainingSettings
    loop: LoopSettings


Made = dict[tuple[int, int], tuple[Tensor, Tensor]]

# 1,042 subjects, of which 75 % are learned from, in 19 poses, 100 times: the paper's steps.
RECIPES: dict[str, TrainingRecipe] = {
    "paper": TrainingRecipe(
        PaperTrainingSettings(),
        LoopSettings(steps=100 * 782 * 19, learning_rate=5e-5, warm_up=0, checkpoint_every=5000, bfloat16=True),
    ),
    "small": TrainingRecipe(
        PaperTrainingSettings(n_lines=192, angles_deg=(), withheld=0.1),
        LoopSettings(steps=1500, learning_rate=1e-3, warm_up=100, weight_decay=1e-2, checkpoint_every=250),
    ),
}


class PaperProblem:
    """Subjects, and the encoder and transformer to fit on the latents of a model whose autoencoders are fitted.

    ``made`` keeps latents and lines of (subject, pose); several problems on the same autoencoders may share one.
    """

    module: Denoiser

    def __init__(
        self,
        subjects: Subjects,
        model: PaperModel,
        settings: PaperTrainingSettings | None = None,
        names: Sequence[str] = (),
        made: Made | None = None,
    ) -> None:
        self.settings = settings or PaperTrainingSettings()
        self.subjects, self.model, self.module, self.names = subjects, model, model.denoiser, list(names)
        self.path: Path = model.settings.path
        self.made: Made = {} if made is None else made

    def record(self) -> dict[str, Any]:
        batch = {**asdict(self.settings), "angles_deg": list(self.settings.angles_deg)}
        return {"model": self.model.settings.record(), "batch": batch, "subjects": self.names or len(self.subjects)}

    def loss(self, generator: torch.Generator) -> Float[Tensor, ""]:
        """The mean squared error of what the path wants predicted, over random lines of one random subject."""
        self.module.train()
        number = _below(len(self.subjects), generator)
        pose = _below(len(self.settings.poses), generator)
        latents, lines = self.seen(number, pose)
        n, device = self.settings.n_lines, latents.device
        rows = torch.randint(len(lines), (n,), generator=generator, device=generator.device)
        data = lines[rows.to(device)]
        noise = torch.randn(data.shape, generator=generator, device=generator.device).to(data)
        x, time, target = self.path.training_pair(data, noise, generator)
        is_blind = self._withheld(n, generator)
        # Dropout draws from torch's own generator: its seed is this step's, and the caller's state comes back.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(_below(2**31, generator))
            predicted = self.module(x, time, self.module.memory(latents), is_blind)
        return functional.mse_loss(predicted, target)

    def seen(self, number: int, pose: int) -> tuple[Float[Tensor, "n c a b d"], Float[Tensor, "s p 3"]]:
        """Latents and scaled lines of a subject in a pose; kept once made."""
        if (number, pose) not in self.made:
            subject, (axis, degrees) = self.subjects[number], self.settings.poses[pose]
            like, grid = self.model.mean, training_grid()
            coeffs, lines = subject.coeffs.to(like), subject.lines[subject.kept].to(like)
            if len(lines) == 0:
                raise InputDataError(f"Subject {number} has no streamlines", id="E-TRAIN-EMPTY", needed="one or more")
            coeffs, lines = turned(coeffs, lines, grid, rotation(axis, degrees))
            latents = self.model.latents(ShField(grid, coeffs, ORDER))
            self.made[number, pose] = latents, self.model.to_unit(with_points(lines, self.model.settings.n_points))
        return self.made[number, pose]

    def _withheld(self, n: int, generator: torch.Generator) -> Bool[Tensor, " s"] | None:
        if not self.settings.withheld:
            return None
        draw = torch.rand(n, generator=generator, device=generator.device) < self.settings.withheld
        return draw.to(self.model.mean.device)


def normalise(model: PaperModel, subjects: Subjects, every_line: bool = False) -> PaperModel:
    """Sets the model's z-scores and its box from the subjects it will learn from (all lines, or the kept ones)."""
    n, count = model.settings.n_coefficients, 0
    total, square = torch.zeros(2, n, dtype=torch.float64)
    low, high = torch.full((3,), math.inf), torch.full((3,), -math.inf)
    for subject in each(subjects):
        values = subject.coeffs[:n].double().flatten(1)
        total, square, count = total + values.sum(1), square + (values**2).sum(1), count + values.shape[1]
        points = (subject.lines if every_line else subject.lines[subject.kept]).reshape(-1, 3).float()
        low, high = torch.minimum(low, points.amin(0)), torch.maximum(high, points.amax(0))
    mean = total / count
    model.mean.copy_(mean)
    model.deviation.copy_((square / count - mean**2).clamp_min(1e-12).sqrt())
    return model.with_box(low, high)


def rotation(axis: int, degrees: float) -> Float[Tensor, "3 3"]:
    """About axis 0 (x), 1 (y) or 2 (z), counter-clockwise seen from its end."""
    angle = math.radians(degrees)
    one, other = (axis + 1) % 3, (axis + 2) % 3
    matrix = torch.eye(3)
    matrix[one, one] = matrix[other, other] = math.cos(angle)
    matrix[other, one], matrix[one, other] = math.sin(angle), -math.sin(angle)
    return matrix


def turned(
    coeffs: Float[Tensor, "l i j k"], lines: Float[Tensor, "s p 3"], grid: ImageGrid, by: Float[Tensor, "3 3"]
) -> tuple[Float[Tensor, "l i j k"], Float[Tensor, "s p 3"]]:
    """A subject turned about the middle of the grid: values move, harmonics turn with them, lines follow."""
    by = by.to(coeffs)
    if torch.equal(by, torch.eye(3).to(by)):
        return coeffs, lines
    middle = grid.to_world((torch.tensor(grid.shape, dtype=torch.float64) - 1) / 2).to(coeffs)
    centres = grid.centres(coeffs.dtype, coeffs.device)
    origin = (centres - middle) @ by  # by its transpose: where a voxel's value comes from
    moved = interpolate.sample(coeffs, grid.to_voxel((origin + middle).double()).to(coeffs))
    flat = reorient(moved.flatten(0, 2), by[None], order_of(len(coeffs)))
    return flat.mT.reshape(coeffs.shape), (lines - middle) @ by.mT + middle


def with_points(lines: Float[Tensor, "s p 3"], n: int) -> Float[Tensor, "s n 3"]:
    """Lines of equally spaced points with another number of them, by linear interpolation."""
    if lines.shape[1] == n:
        return lines
    return functional.interpolate(lines.mT, size=n, mode="linear", align_corners=True).mT


def volumes_of(model: PaperModel, subjects: Subjects) -> list[Float[Tensor, "n i j k"]]:
    """What the autoencoders are fitted to."""
    return [model.volumes(ShField(training_grid(), one.coeffs.to(model.mean), ORDER)) for one in each(subjects)]


def each(subjects: Subjects) -> Iterator[Subject]:
    """One after the other."""
    return (subjects[number] for number in range(len(subjects)))


def _below(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator, device=generator.device))
