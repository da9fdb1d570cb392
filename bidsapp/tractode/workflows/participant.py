"""The workflow of one participant: anatomy once a session (`workflows/anatomy.py`), then every dwi run on its own.

::

    prepare_anat ── normalise_anat (one a template) ─────────────────┐
          └──────────────┐                                           │
    estimate_field (from a reversed pair, a field map or the anatomy, where one can be had)
          │
    prepare_dwi ── coregister (to anatomy, or to the template) ── normalise_dwi (one a template)
          │              └── carry_regions ──┐                       │
          └── fit (one a model) ── refine ── track (one a method) ───┘
                     └── map_sensitivity         └── weigh

Methods that generate streamlines take the place of ``track`` and need the registration too; ``compare`` follows all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from nipype.interfaces.utility import Merge
from nipype.pipeline import engine as pe

from tractode.bids.found import Correction
from tractode.bids.query import DwiRun, Participant
from tractode.bids.templates import BUILT_IN, Template, find_template
from tractode.errors import MissingInputError
from tractode.interfaces.coregistration import CoregisterToAnat, CoregisterToTemplate
from tractode.interfaces.distortion import EstimateField
from tractode.interfaces.generated_comparison import CompareGenerated
from tractode.interfaces.generation import Generate
from tractode.interfaces.methods import is_generative, method_of
from tractode.interfaces.normalisation import NormaliseDwi
from tractode.interfaces.refinement import RefineOrientations
from tractode.interfaces.sensitivity import MapSensitivity
from tractode.interfaces.step import Job, Step
from tractode.interfaces.tractography import Track
from tractode.interfaces.weights import WeightStreamlines
from tractode.settings import Settings, templates_among
from tractode.workflows.anatomy import Anatomy, AnatomyBuilder
from tractode.workflows.bundles import bundle_nodes, needs_built_in
from tractode.workflows.models import Fits, model_nodes
from tractode.workflows.preprocessing import policy_of, prepared_node
from tractode.workflows.tissues import carry_regions, connect_tissues, measure_boundary
from tractode.workflows.tracking import generation_of, plan_of, region_names

SENSITIVITY_SEEDS, SLOPPY_SEEDS = 50_000, 5_000
_Nodes = dict[str, pe.Node]


def init_participant_wf(participant: Participant, settings: Settings, run_id: str) -> pe.Workflow:
    """All steps of one participant; what it promises is written into the ledger before it returns.

    Raises
    ------
    ResourceUnavailableError
        A template that ``--output-spaces`` names is not to be had.
    """
    builder = _Builder(participant, settings, run_id)
    for run in sorted(participant.runs, key=lambda run: run.session or ""):
        builder.add_run(run, builder.anatomies.of_session(run.session))
    builder.job.ledger().promise(builder.promised)
    return builder.workflow


@dataclass(frozen=True)
class _Links:
    """The registration nodes of one run: to its anatomy (where there is one) and, by name, to every template."""

    to_anat: pe.Node | None
    anatomy: Anatomy | None
    to_template: _Nodes


class _Builder:
    """Collects nodes and promises while a participant's workflow is laid out."""

    def __init__(self, participant: Participant, settings: Settings, run_id: str) -> None:
        self.settings = settings
        self.job = Job(
            bids_dir=settings.bids_dir,
            output_dir=settings.output_dir,
            participant=participant.label,
            run_id=run_id,
            device=settings.device,
            random_seed=settings.random_seed,
            omp_nthreads=settings.omp_nthreads,
            sloppy=settings.sloppy,
        )
        self.templates: list[Template] = [find_template(spec) for spec in templates_among(settings.output_spaces)]
        self.into_anatomy = len(self.templates) < len(settings.output_spaces)
        self.promised: list[dict[str, str]] = []
        self.corrections = {correction.run.name: correction for correction in participant.corrections}
        # A step for a part of a combined run belongs to that run.
        self.owners = {scan.name: run.name for run in participant.runs for scan in run.scans}
        self.fields: dict[tuple[str, ...], pe.Node] = {}
        self.workflow = pe.Workflow(name=f"sub_{participant.label}_wf", base_dir=str(settings.work_dir))
        self.registered = list(self.templates)
        if needs_built_in(settings) and all(one.name != BUILT_IN for one in self.templates):
            # Models of streamlines know one space; nothing is written in it unless it is asked for.
            self.registered.append(find_template(BUILT_IN))
        # Where only the anatomy is an output space, the built-in template still gives its brain mask.
        through = self.registered or ([find_template(BUILT_IN)] if self.into_anatomy else [])
        self.anatomies = AnatomyBuilder(participant, settings, through, self.workflow, self._node)

    def _node(self, interface: Step, step: str, run: str, memory_gb: float) -> pe.Node:
        """A node that always runs: whether its result is reused is the ledger's decision, never nipype's cache."""
        interface.inputs.job = self.job
        interface.inputs.step = step
        node = pe.Node(interface, name=_node_name(step), mem_gb=memory_gb, n_procs=self.settings.omp_nthreads)
        node.overwrite = True
        self.workflow.add_nodes([node])
        self.promised.append({"step": step, "run": run})
        return node

    def add_run(self, run: DwiRun, anatomy: Anatomy | None) -> None:
        settings = self.settings
        known = (self.corrections.get(scan.name) for scan in run.scans)
        corrections = [_possible(correction, anatomy) for correction in known if correction is not None]
        fields = dict.fromkeys(filter(None, (self._field(correction, anatomy) for correction in corrections)))
        prepared = prepared_node(run, settings, corrections, list(fields), self.workflow, self._node)
        fits = model_nodes(run, prepared, settings, self.workflow, self._node)
        links = self._links(run, prepared, anatomy)
        measure_boundary(run, prepared, links.to_anat, anatomy, self.workflow, self._node)
        regions = self._regions(run, prepared, links) if settings.tracking else None
        fod = self._orientations(run, prepared, fits)
        tracks = self._tracks(run, prepared, fod, fits, regions, links)
        self._compare(run, prepared, fod, fits.tensor, regions, tracks)
        self._weights(run, prepared, fod, tracks)
        for node in bundle_nodes(run, prepared, tracks, settings, self.workflow, self._node):
            node.inputs.template = self._built_in
            self._connect_links(links, self._built_in, node)
        self._sensitivity(run, prepared, fits, regions)
        self._normalise(run, prepared, fits, tracks, links)

    def _field(self, correction: Correction, anatomy: Anatomy | None) -> pe.Node | None:
        """The node that finds the field of a run, one for all runs that the same images serve."""
        if correction.kind == "none":
            return None
        if correction.key not in self.fields:
            served = [other for other in self.corrections.values() if other.key == correction.key]
            interface = EstimateField(
                corrections=served, policy=policy_of(self.settings), is_required=self.settings.require_sdc
            )
            step = f"{correction.run.name}_estimate-field-{correction.kind}"
            node = self._node(interface, step, self.owners.get(correction.run.name, correction.run.name), 2.0)
            if correction.kind == "anatomy" and anatomy is not None:
                node.inputs.anat, node.inputs.anat_space = anatomy.anat, anatomy.space
                self.workflow.connect(anatomy.prepared, "outputs", node, "prepared_anat")
                self.workflow.connect(anatomy.first, "outputs", node, "normalised_anat")
            self.fields[correction.key] = node
        return self.fields[correction.key]

    def _links(self, run: DwiRun, prepared: pe.Node, anatomy: Anatomy | None) -> _Links:
        """The registrations of a run: to its anatomy and on to every template, or straight to every template."""
        if anatomy is not None:
            return _Links(self._coregister_to_anat(run, prepared, anatomy), anatomy, anatomy.normalised)
        direct = {}
        for template in self.registered:
            interface = CoregisterToTemplate(run=run, template=template)
            node = self._node(interface, f"{run.name}_coregister-{template.name}", run.name, 2.0)
            self.workflow.connect(prepared, "outputs", node, "prepared")
            direct[template.name] = node
        return _Links(None, None, direct)

    def _connect_links(self, links: _Links, template: Template, node: pe.Node) -> None:
        """Hand a node the registrations between a run and a template."""
        if links.anatomy is not None:
            node.inputs.anat_space, node.inputs.anat_modality = links.anatomy.space, links.anatomy.anat.modality
            self.workflow.connect(links.to_anat, "outputs", node, "anat_link")
            self.workflow.connect(links.to_anat, "facts", node, "anat_facts")
        to_template = links.to_template[template.name]
        self.workflow.connect(to_template, "outputs", node, "template_link")
        self.workflow.connect(to_template, "facts", node, "template_facts")

    def _regions(self, run: DwiRun, prepared: pe.Node, links: _Links) -> pe.Node | None:
        """Regions and tissues brought into the run, where any are asked for."""
        settings = self.settings
        named = region_names(settings)
        if not named and settings.act == "none":
            return None
        interface = carry_regions(run, named, settings, self.job.participant, links.anatomy)
        node = self._node(interface, f"{run.name}_carry-regions", run.name, 2.0)
        self.workflow.connect(prepared, "outputs", node, "prepared")
        connect_tissues(self.workflow, node, links.anatomy)
        if self.templates:
            interface.inputs.template = self.templates[0]
            self._connect_links(links, self.templates[0], node)
        return node

    def _orientations(self, run: DwiRun, prepared: pe.Node, fits: Fits) -> pe.Node | None:
        """The node whose FOD is followed: the fit itself, brought to one scale or not, or its refinement."""
        model = fits.leading
        if model is None or not self.settings.tracking or not self.settings.refine_orientations:
            return fits.orientations
        interface = RefineOrientations(run=run, model=model)
        node = self._node(interface, f"{run.name}_refine-orientations", run.name, 3.0)
        self.workflow.connect(
            [(prepared, node, [("outputs", "prepared")]), (fits.nodes[model], node, [("outputs", "orientations")])]
        )
        return node

    def _tracks(
        self,
        run: DwiRun,
        prepared: pe.Node,
        fod: pe.Node | None,
        fits: Fits,
        regions: pe.Node | None,
        links: _Links,
    ) -> _Nodes:
        """The streamlines of every method, followed or generated, that finds its field among the models."""
        nodes, tensor = {}, fits.tensor
        for method in fits.choice.trackers(self.settings.tracking):
            followed = None if method == "tensordet" else fits.leading
            common = {"run": run, "method": method, "plan": plan_of(self.settings, followed)}
            common["formats"] = list(self.settings.tractogram_formats)
            if is_generative(method):
                step: Step = Generate(**common, generation=generation_of(self.settings), template=self._built_in)
                node = self._node(step, f"{run.name}_generate-{method}", run.name, 3.0)
                self._connect_links(links, self._built_in, node)
            else:
                node = self._node(Track(**common), f"{run.name}_track-{method}", run.name, 2.5)
                if tensor is not None:
                    self.workflow.connect(tensor, "outputs", node, "tensor")
            for source, field in ((prepared, "prepared"), (fod, "orientations"), (regions, "regions")):
                if source is not None:
                    self.workflow.connect(source, "outputs", node, field)
            nodes[method] = node
        return nodes

    @property
    def _built_in(self) -> Template:
        return next(template for template in self.registered if template.name == BUILT_IN)

    def _compare(
        self,
        run: DwiRun,
        prepared: pe.Node,
        fod: pe.Node | None,
        tensor: pe.Node | None,
        regions: pe.Node | None,
        tracks: _Nodes,
    ) -> None:
        """Generated streamlines beside the tracked ones, and both against the scan."""
        followed = {method: node for method, node in tracks.items() if not is_generative(method)}
        for method in tracks.keys() - followed.keys():
            labels = [method_of(name).label for name in followed]
            step = CompareGenerated(run=run, track=method_of(method).label, tracks=labels)
            node = self._node(step, f"{run.name}_compare-{method}", run.name, 2.5)
            sources = [(prepared, "prepared"), (fod, "orientations"), (tensor, "tensor"), (regions, "regions")]
            for source, field in [*sources, (tracks[method], "generated")]:
                if source is not None:
                    self.workflow.connect(source, "outputs", node, field)
            self._gather(run, f"compared-{method}", followed.values(), node, "tractograms")

    def _weights(self, run: DwiRun, prepared: pe.Node, fod: pe.Node | None, tracks: _Nodes) -> None:
        """Weights for the streamlines of every method."""
        target = self.settings.streamline_weights
        if target == "none" or fod is None:
            return
        for method, track in tracks.items():
            interface = WeightStreamlines(
                run=run, track=method_of(method).label, model=target, formats=list(self.settings.tractogram_formats)
            )
            node = self._node(interface, f"{run.name}_weigh-{method}", run.name, 3.0)
            for source, field in ((prepared, "prepared"), (fod, "orientations"), (track, "tractogram")):
                self.workflow.connect(source, "outputs", node, field)

    def _sensitivity(self, run: DwiRun, prepared: pe.Node, fits: Fits, regions: pe.Node | None) -> None:
        """What the connection of two regions rests on, through the model itself (not a refined field)."""
        model = fits.leading
        if not self.settings.sensitivity or model is None or regions is None:
            return
        plan, n_seeds = plan_of(self.settings, model), SLOPPY_SEEDS if self.settings.sloppy else SENSITIVITY_SEEDS
        interface = MapSensitivity(run=run, model=model, tracker=plan.tracker("sdstream"), n_seeds=n_seeds)
        node = self._node(interface, f"{run.name}_map-sensitivity", run.name, 3.0)
        sources = [(prepared, "prepared"), (fits.nodes[model], "orientations"), (regions, "regions")]
        if fits.tensor is not None:
            sources.append((fits.tensor, "tensor"))
        for source, field in sources:
            self.workflow.connect(source, "outputs", node, field)

    def _normalise(self, run: DwiRun, prepared: pe.Node, fits: Fits, tracks: _Nodes, links: _Links) -> None:
        """Maps, orientations and streamlines in every output space.

        Generated streamlines go there by themselves: a model that refuses a scan must not keep its maps from it.
        """
        followed = {name: node for name, node in tracks.items() if not is_generative(name)}
        targets: list[Template | None] = [*self.templates, *([None] if self.into_anatomy else [])]
        for template in targets:
            space = self.settings.anat_modality if template is None else template.name
            self._into(run, template, space, fits.carried(), followed, links)
            for name in tracks.keys() - followed.keys():
                node = self._into(run, template, f"{space}-{name}", [], {name: tracks[name]}, links)
                self.workflow.connect(prepared, "outputs", node, "prepared")

    def _into(
        self,
        run: DwiRun,
        template: Template | None,
        what: str,
        fits: list[tuple[str, pe.Node]],
        tracks: _Nodes,
        links: _Links,
    ) -> pe.Node:
        interface = NormaliseDwi(
            run=run, models=[name for name, _ in fits], tracks=[method_of(name).label for name in tracks],
            resolution=self.settings.output_resolution or 0.0, modulation=self.settings.fod_modulation,
        )  # fmt: skip
        node = self._node(interface, f"{run.name}_normalise-dwi-{what}", run.name, 2.5)
        if template is not None:
            interface.inputs.template = template
            self._connect_links(links, template, node)
        else:
            self._connect_anatomy(links, run, node)
        self._gather(run, f"maps-{what}", [fit for _, fit in fits], node, "fits")
        self._gather(run, f"tractograms-{what}", tracks.values(), node, "tractograms")
        return node

    def _connect_anatomy(self, links: _Links, run: DwiRun, node: pe.Node) -> None:
        """Hand a node the registration of a run to its anatomy, and the anatomy itself."""
        anatomy, modality = links.anatomy, self.settings.anat_modality
        if anatomy is None:
            raise MissingInputError(
                f"{run.name} has no {modality} image, and --output-spaces asks for outputs in its space",
                id="E-SPACE-ANAT",
                path=run.path,
                needed=f"a {modality} image of the participant",
                fix=f"add it to the dataset, or leave {modality} out of --output-spaces",
            )
        node.inputs.anat_space, node.inputs.anat_modality = anatomy.space, anatomy.anat.modality
        for source, names_ in (
            (links.to_anat, ("anat_link", "anat_facts")),
            (anatomy.prepared, ("prepared_anat",)),
            (anatomy.first, ("normalised_anat",)),
        ):
            for output, name in zip(("outputs", "facts"), names_, strict=False):
                self.workflow.connect(source, output, node, name)

    def _coregister_to_anat(self, run: DwiRun, prepared: pe.Node, anatomy: Anatomy) -> pe.Node:
        interface = CoregisterToAnat(run=run, anat=anatomy.anat, anat_space=anatomy.space)
        node = self._node(interface, f"{run.name}_coregister-{anatomy.anat.modality}", run.name, 2.0)
        self.workflow.connect(prepared, "outputs", node, "prepared")
        self.workflow.connect(anatomy.prepared, "outputs", node, "prepared_anat")
        self.workflow.connect(anatomy.first, "outputs", node, "normalised_anat")
        return node

    def _gather(self, run: DwiRun, what: str, nodes: Iterable[pe.Node], target: pe.Node, field: str) -> None:
        """Several nodes' outputs as one list, in order."""
        nodes = list(nodes)
        if not nodes:
            setattr(target.inputs, field, [])
            return
        merge = pe.Node(Merge(len(nodes)), name=_node_name(f"{run.name}_gather-{what}"), run_without_submitting=True)
        for index, node in enumerate(nodes, start=1):
            self.workflow.connect(node, "outputs", merge, f"in{index}")
        self.workflow.connect(merge, "out", target, field)


def _possible(correction: Correction, anatomy: Anatomy | None) -> Correction:
    """The correction, or none where it needs the anatomy and that is not registered."""
    if correction.kind != "anatomy" or anatomy is not None:
        return correction
    reason = "only the anatomical image could serve, and it is not registered without a template in --output-spaces"
    return replace(correction, kind="none", reason=reason)


def _node_name(step: str) -> str:
    """A name nipype accepts (letters, digits, underscores), unique even where the replacement is not."""
    plain = "".join(c if c.isalnum() else "_" for c in step)
    return f"{plain}_{hashlib.sha256(step.encode()).hexdigest()[:6]}"
