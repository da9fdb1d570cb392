"""The steps that a dwi run goes through before its models: its field or fields, then everything of `PrepareDwi`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nipype.interfaces.utility import Merge
from nipype.pipeline import engine as pe

from tractode.bids.found import Correction, DwiRun
from tractode.fields import GradientTable
from tractode.interfaces.preprocess import PreprocessPlan
from tractode.interfaces.scan import PrepareDwi
from tractode.interfaces.step import Step
from tractode.io.dwi import IngestPolicy
from tractode.preprocess import denoise, motion
from tractode.settings import Settings

AddNode = Callable[[Step, str, str, float], pe.Node]


def policy_of(settings: Settings) -> IngestPolicy:
    """What the user allows of a raw file."""
    return IngestPolicy(
        assume_orientation=settings.assume_orientation,
        bval_from_norm=settings.bval_from_norm,
        estimate_s0=settings.estimate_s0,
        b0_threshold=settings.b0_threshold,
        will_track=bool(settings.tracking),
    )


def preprocess_of(settings: Settings) -> PreprocessPlan:
    """Which steps are wanted."""
    return PreprocessPlan(
        denoise="on" if settings.denoise == "mppca" else settings.denoise,
        unring=settings.unring,
        motion=settings.motion,
        outliers=settings.outliers,
        bias=settings.bias,
        sloppy=settings.sloppy,
    )


def outlook(run: DwiRun, gtab: GradientTable, settings: Settings) -> str:
    """What will be done to a run, as far as its table tells before the signal is looked at."""
    if run.done_by:
        return f"none, the scan came preprocessed by {run.done_by}"
    plan = preprocess_of(settings)
    lacks = {
        "denoising": (plan.denoise, denoise.why_not(len(gtab))),
        "unringing": (plan.unring, None),
        "motion and eddy currents": (plan.motion, motion.why_not(gtab)),
        "coil shading": (plan.bias, None),
    }
    done = [name for name, (answer, lack) in lacks.items() if answer != "none" and lack is None]
    if "motion and eddy currents" in done and plan.outliers != "none":
        done.insert(done.index("motion and eddy currents") + 1, "lost slices")
    left = [f"no {name}: {lack}" for name, (answer, lack) in lacks.items() if answer != "none" and lack is not None]
    joined = [f"{len(run.parts)} runs combined"] if run.parts else []
    return "; ".join([", ".join([*joined, *done]) or "none", *left])


def prepared_node(
    run: DwiRun,
    settings: Settings,
    corrections: Sequence[Correction],
    fields: Sequence[pe.Node],
    workflow: pe.Workflow,
    add_node: AddNode,
) -> pe.Node:
    """The node that prepares a run; ``corrections`` are those of its parts, ``fields`` the nodes that find them."""
    step = PrepareDwi(
        run=run,
        policy=policy_of(settings),
        plan=preprocess_of(settings),
        mask_method=settings.dwi_mask,
        accept_gradients=settings.accept_gradients,
        apply_gradient_fix=settings.apply_gradient_fix or "",
        corrections={correction.run.name: correction for correction in corrections},
    )
    node = add_node(step, f"{run.name}_prepare-dwi", run.name, 3.0)
    if not fields:
        return node
    for output, target in (("outputs", "fields"), ("facts", "fields_facts")):
        name = f"gather_{target}_{node.name}"
        gather = pe.Node(Merge(len(fields)), name=name, run_without_submitting=True)
        for number, field in enumerate(fields, start=1):
            workflow.connect(field, output, gather, f"in{number}")
        workflow.connect(gather, "out", node, target)
    return node
