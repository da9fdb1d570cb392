"""What was asked of generative tractography, and what came of it: the model for one run, and a count of its lines by bundle."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tractode.errors import UsageError
from tractode.fields import Streamlines
from tractode.interfaces.methods import load_generator, weights_of
from tractode.io.weights import SETTINGS, stored_sums


@dataclass(frozen=True)
class GenerationPlan:
    """The settings of generative tractography; ``None`` keeps what the model was shipped with, no bundles means all."""

    steps: int | None = None
    min_confidence: float | None = None
    bundles: tuple[str, ...] = ()
    weights: Path | None = None

    def facts(self) -> dict[str, Any]:
        """Plain data: decides, with the files, whether a result can be reused."""
        return {**asdict(self), "bundles": list(self.bundles), "weights": str(self.weights or "")}

    def files(self, method: str) -> list[Path]:
        """The files of the weights that decide the result."""
        folder = weights_of(method, self.weights)
        return [folder / name for name in stored_sums(folder)]

    def model(self, method: str) -> Any:
        """The model with its weights, ready to draw as asked.

        Raises
        ------
        UsageError
            It knows no bundle of a name that was given.
        """
        model = load_generator(method, self.weights, steps=self.steps, min_confidence=self.min_confidence)
        check_bundles(self.bundles, model.names)
        return model

    def weights_facts(self, method: str) -> dict[str, Any]:
        """The name of the weights, the sha256 of each of their files, and what they were trained on as far as that is known."""
        folder = weights_of(method, self.weights)
        known = tomllib.loads((folder / SETTINGS).read_text(encoding="utf-8")).get("training", {})
        return {"Name": folder.name, "SHA256": stored_sums(folder), "TrainedOn": _trained_on(known)}


def _trained_on(training: Mapping[str, Any]) -> str:
    """In words, from the table that `tractode-train` writes."""
    simulated, people = int(training.get("n_synthetic", 0)), int(training.get("n_participants", 0))
    if not simulated and not people:
        return "what the card of its weights says"
    if not people:
        return f"{simulated:,} simulated participants, not on people"
    return f"{simulated:,} simulated participants and {people:,} people" if simulated else f"{people:,} people"


def check_bundles(asked: Sequence[str], known: Sequence[str]) -> None:
    """Raise `UsageError` for names that the model does not know, with the nearest it does."""
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            raise UsageError(
                f"The model knows no bundle named {name!r}",
                id="E-GENTRACT-BUNDLE",
                needed=f"names among its {len(known)} bundles",
                fix=f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}",
            )


class Tally:
    """Lines drawn and kept of every bundle, and the confidence of those drawn."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.drawn, self.kept = (torch.zeros(len(names), dtype=torch.long) for _ in range(2))
        self._confidence = torch.zeros(len(names), dtype=torch.float64)
        self._seen: list[Tensor] = []
        self._bundles: list[Tensor] = []
        self.n_leaving = self.n_points = self.n_points_outside = 0

    def add_drawn(self, lines: Streamlines) -> None:
        bundle, confidence = lines.per_streamline["bundle"].long(), lines.per_streamline["confidence"]
        self.drawn.index_add_(0, bundle, torch.ones_like(bundle))
        self._confidence.index_add_(0, bundle, confidence.double())
        self._seen.append(confidence.float())

    def add_kept(self, lines: Streamlines, is_outside: Tensor) -> None:
        """``is_outside`` says which points are outside the brain mask."""
        bundle = lines.per_streamline["bundle"].long()
        self.kept.index_add_(0, bundle, torch.ones_like(bundle))
        self._bundles.append(bundle)
        leaving = torch.zeros(len(lines), dtype=torch.bool)
        leaving[lines.streamline_of_point[is_outside]] = True
        self.n_leaving += int(leaving.sum())
        self.n_points, self.n_points_outside = (
            self.n_points + len(is_outside),
            self.n_points_outside + int(is_outside.sum()),
        )

    @property
    def confidences(self) -> Float[Tensor, " d"]:
        """Of every line drawn, kept or not."""
        return torch.cat(self._seen) if self._seen else torch.zeros(0)

    def groups(self) -> dict[str, Int[Tensor, " m"]]:
        """The indices of the kept lines of each bundle, in the order they were added."""
        bundle = torch.cat(self._bundles) if self._bundles else torch.zeros(0, dtype=torch.long)
        return {name: (bundle == number).nonzero().ravel() for number, name in enumerate(self.names)}

    def rows(self, spread: dict[str, float] | None = None) -> list[dict[str, Any]]:
        """A row a bundle, in the order of the model's names: counts, shares of 1, and the spread in mm where it is known."""
        found = []
        for number, name in enumerate(self.names):
            drawn, kept = int(self.drawn[number]), int(self.kept[number])
            row: dict[str, Any] = {
                "Index": number,
                "Name": name,
                "Generated": drawn,
                "Accepted": kept,
                "Acceptance": round(kept / drawn, 4) if drawn else None,
                "MeanConfidence": round(float(self._confidence[number]) / drawn, 4) if drawn else None,
            }
            if spread is not None:
                row["SpreadMillimetres"] = round(spread[name], 2) if name in spread else None
            found.append(row)
        return found
