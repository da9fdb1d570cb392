"""Where the tissues of a run come from, and the measure of how the anatomy's white matter lies in it."""

from __future__ import annotations

from collections.abc import Callable

from nipype.pipeline import engine as pe

from tractode.bids.query import DwiRun
from tractode.bids.tissues import need_tissue_source
from tractode.errors import ConfigurationError, MissingInputError
from tractode.interfaces.regions import CarryRegions
from tractode.interfaces.segmentation import MeasureBoundary
from tractode.interfaces.step import Step
from tractode.settings import Settings
from tractode.workflows.anatomy import Anatomy

AddNode = Callable[[Step, str, str, float], pe.Node]


def carry_regions(
    run: DwiRun, named: dict[str, str], settings: Settings, participant: str, anatomy: Anatomy | None
) -> CarryRegions:
    """The step that brings regions and tissues into a run; the node of the segmentation is still to be connected (`connect_tissues`).

    Raises
    ------
    MissingInputError
        The tissues asked for are in the space of an anatomical image that is not there, or they are not there themselves.
    ConfigurationError
        Nothing was segmented.
    """
    step = CarryRegions(run=run, regions=named, tissues="none")
    if settings.act == "template" or (settings.act == "auto" and anatomy is None):
        step.inputs.tissues = "template"
    elif settings.act != "none":
        if anatomy is None:
            raise MissingInputError(
                f"{run.name} has no anatomical image, and the tissues of --act {settings.act} are in its space",
                id="E-TISSUE-ANAT",
                path=run.path,
                needed="a T1w (or --anat-modality) image: for labels the one that they were made from",
                fix="add it to the dataset, or use --act template",
            )
        if settings.act == "labels":
            source = need_tissue_source(
                settings.bids_dir, participant, run.session, settings.derivatives, own=settings.output_dir
            )
            step.inputs.tissues, step.inputs.tissue_path = source.kind, str(source.path)
        else:
            if anatomy.segmented is None:
                raise ConfigurationError(
                    f"--act {settings.act} needs tissues and the template has no maps of grey and white matter to find them by",
                    id="E-CONFIG-SEGMENT",
                    fix="give the tissues with --derivatives, or name another template first in --output-spaces",
                )
            step.inputs.tissues = "segment"
    return step


def connect_tissues(workflow: pe.Workflow, node: pe.Node, anatomy: Anatomy | None) -> None:
    """Hand the node of `carry_regions` what the segmentation of the anatomy wrote."""
    if anatomy is not None and anatomy.segmented is not None and node.interface.inputs.tissues == "segment":
        workflow.connect(anatomy.segmented, "outputs", node, "segmented")


def measure_boundary(
    run: DwiRun,
    prepared: pe.Node,
    to_anat: pe.Node | None,
    anatomy: Anatomy | None,
    workflow: pe.Workflow,
    add_node: AddNode,
) -> None:
    """How the border of the anatomy's white matter lies in the run, where there is a segmentation."""
    if anatomy is None or to_anat is None or anatomy.segmented is None:
        return
    node = add_node(MeasureBoundary(run=run), f"{run.name}_measure-boundary", run.name, 2.0)
    node.inputs.anat_space, node.inputs.anat_modality = anatomy.space, anatomy.anat.modality
    workflow.connect(prepared, "outputs", node, "prepared")
    workflow.connect(anatomy.segmented, "outputs", node, "segmented")
    workflow.connect(to_anat, "outputs", node, "anat_link")
    workflow.connect(to_anat, "facts", node, "anat_facts")
