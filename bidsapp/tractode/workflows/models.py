"""The nodes that fit one run's models, and what is made of several tissues before they are followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nipype.pipeline import engine as pe

from tractode.bids.query import DwiRun
from tractode.contracts import OrientationModel
from tractode.interfaces.model import FitModel
from tractode.interfaces.step import Step
from tractode.models import MODELS
from tractode.settings import Settings
from tractode.workflows.eligibility import Choice, choice_of
from tractode.workflows.group_responses import response_files
from tractode.workflows.memory import fit_memory_gb

_MULTI_TISSUE = "msmt_csd"
_MEMORY_GB = 2.0  # of a run whose header could not be read


@dataclass(frozen=True)
class Fits:
    """The nodes of a run's models by name, and the one that brought tissues to one scale."""

    choice: Choice
    nodes: dict[str, pe.Node]
    normalised: pe.Node | None = None

    @property
    def leading(self) -> str | None:
        """The model whose orientations are followed."""
        return self.choice.orientations

    @property
    def orientations(self) -> pe.Node | None:
        """The node whose FOD is followed."""
        if self.leading is None:
            return None
        return self.normalised if self.leading == _MULTI_TISSUE and self.normalised else self.nodes[self.leading]

    @property
    def tensor(self) -> pe.Node | None:
        return self.nodes.get("dti")

    def carried(self) -> list[tuple[str, pe.Node]]:
        """Models and nodes whose maps go into other spaces."""
        extra = [(_MULTI_TISSUE, self.normalised)] if self.normalised is not None else []
        return [*self.nodes.items(), *extra]


def model_nodes(
    run: DwiRun,
    prepared: pe.Node,
    settings: Settings,
    workflow: pe.Workflow,
    make: Callable[[Step, str, str, float], pe.Node],
) -> Fits:
    """A node for every model that the run's data support and that was asked for."""
    choice = choice_of(run, settings)
    nodes: dict[str, pe.Node] = {}
    of_tracking = choice.untracked(settings.tracking)
    for name in choice.models:
        kind = MODELS[name]
        reason = choice.reasons[name] if nodes or not of_tracking else f"{choice.reasons[name]}; {of_tracking}"
        step = FitModel(
            run=run, model=name, reason=reason, uncertainty=settings.uncertainty,
            fixels=settings.fixels and issubclass(kind, OrientationModel),
            refused=choice.reasons[name].removeprefix("refused: ") if name in choice.refused else "",
            left_out={} if nodes else choice.passed_over,
            responses=response_files(settings, kind.label) if hasattr(kind, "with_responses") else [],
            fields={"largest_b": settings.dti_largest_b} if name == "dti" and settings.dti_largest_b is not None else {},
        )  # fmt: skip
        memory = (
            fit_memory_gb(choice.shape, kind, settings.uncertainty, settings.fixels) if choice.shape else _MEMORY_GB
        )
        nodes[name] = make(step, f"{run.name}_fit-{name}", run.name, round(memory, 2))
        workflow.connect(prepared, "outputs", nodes[name], "prepared")
    if not settings.mtnormalise or _MULTI_TISSUE not in nodes:
        return Fits(choice, nodes)
    from tractode.interfaces.mtnormalise import NormaliseTissues

    step = NormaliseTissues(run=run, model=_MULTI_TISSUE)
    normalised = make(step, f"{run.name}_mtnormalise", run.name, _MEMORY_GB)
    for source, field in ((prepared, "prepared"), (nodes[_MULTI_TISSUE], "tissues")):
        workflow.connect(source, "outputs", normalised, field)
    return Fits(choice, nodes, normalised)
