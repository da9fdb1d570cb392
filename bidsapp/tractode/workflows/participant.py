"""The workflow of one participant: anatomy once a session, then every dwi run on its own.

::

    prepare_anat ── normalise_anat (one a template) ─────────────────┐
          └──────────────┐                                           │
    prepare_dwi ── coregister (to anatomy, or to the template) ── normalise_dwi (one a template)
          └── fit (one a model) ── track (one a method) ─────────────┘
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from nipype.interfaces.utility import Merge
from nipype.pipeline import engine as pe

from tractode.bids import names
from tractode.bids.query import AnatFile, DwiRun, Participant, choose_anat
from tractode.bids.templates import Template, find_template
from tractode.contracts import OrientationModel
from tractode.interfaces.anatomy import NormaliseAnat, PrepareAnat
from tractode.interfaces.coregistration import CoregisterToAnat, CoregisterToTemplate
from tractode.interfaces.model import FitModel
from tractode.interfaces.normalisation import NormaliseDwi
from tractode.interfaces.scan import PrepareDwi
from tractode.interfaces.step import Job, Step
from tractode.interfaces.tractography import Track
from tractode.io.dwi import IngestPolicy
from tractode.models import MODELS
from tractode.settings import Settings
from tractode.tracking import TRACKERS

SLOPPY_STREAMLINES = 2000


def init_participant_wf(participant: Participant, settings: Settings, run_id: str) -> pe.Workflow:
    """All steps of one participant; what it promises is written into the ledger before it returns.

    Raises
    ------
    ResourceUnavailableError
        A template that ``--output-spaces`` names is not to be had.
    """
    builder = _Builder(participant, settings, run_id)
    sessions = sorted({run.session or "" for run in participant.runs})
    for session in sessions:
        anat = choose_anat(participant, session or None) if settings.anat_modality != "none" else None
        anatomy = builder.add_anatomy(anat) if anat is not None else None
        for run in participant.runs:
            if (run.session or "") == session:
                builder.add_run(run, anatomy)
    builder.job.ledger().promise(builder.promised)
    return builder.workflow


class _Anatomy:
    """The nodes of one anatomical image, shared by the runs of its session."""

    def __init__(self, anat: AnatFile, space: str, prepared: pe.Node, normalised: dict[str, pe.Node]) -> None:
        self.anat, self.space, self.prepared, self.normalised = anat, space, prepared, normalised

    @property
    def first(self) -> pe.Node:
        """The registration that also gives the brain mask."""
        return next(iter(self.normalised.values()))


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
        self.templates: list[Template] = [find_template(spec) for spec in settings.output_spaces]
        self.promised: list[dict[str, str]] = []
        self.workflow = pe.Workflow(name=f"sub_{participant.label}_wf", base_dir=str(settings.work_dir))

    def _node(self, interface: Step, step: str, run: str, memory_gb: float) -> pe.Node:
        """A node that always runs: whether its result is reused is the ledger's decision, never nipype's cache."""
        interface.inputs.job = self.job
        interface.inputs.step = step
        node = pe.Node(interface, name=_node_name(step), mem_gb=memory_gb, n_procs=self.settings.omp_nthreads)
        node.overwrite = True
        self.workflow.add_nodes([node])
        self.promised.append({"step": step, "run": run})
        return node

    def add_anatomy(self, anat: AnatFile) -> _Anatomy | None:
        if not self.templates:
            return None
        stem = names.stem(anat.entities)
        space = f"{stem}_{anat.modality}"
        prepare = PrepareAnat(anat=anat, space=space, assume_orientation=self.settings.assume_orientation)
        prepared = self._node(prepare, f"{stem}_prepare-{anat.modality}", space, 1.0)
        normalised: dict[str, pe.Node] = {}
        for template in self.templates:
            first = not normalised
            node = self._node(
                NormaliseAnat(anat=anat, space=space, template=template, write_mask=first),
                f"{stem}_normalise-{anat.modality}-{template.name}", space, 3.0,
            )  # fmt: skip
            self.workflow.connect(prepared, "outputs", node, "prepared")
            normalised[template.name] = node
        return _Anatomy(anat, space, prepared, normalised)

    def add_run(self, run: DwiRun, anatomy: _Anatomy | None) -> None:
        settings = self.settings
        policy = IngestPolicy(
            assume_orientation=settings.assume_orientation,
            bval_from_norm=settings.bval_from_norm,
            estimate_s0=settings.estimate_s0,
            b0_threshold=settings.b0_threshold,
            will_track=bool(settings.tracking),
        )
        prepare = PrepareDwi(
            run=run,
            policy=policy,
            accept_gradients=settings.accept_gradients,
            apply_gradient_fix=settings.apply_gradient_fix or "",
        )
        prepared = self._node(prepare, f"{run.name}_prepare-dwi", run.name, 2.0)
        fits = {name: self._fit(run, name, prepared) for name in settings.models}
        tracks = self._tracks(run, prepared, fits)
        self._normalise(run, prepared, fits, tracks, anatomy)

    def _fit(self, run: DwiRun, name: str, prepared: pe.Node) -> pe.Node:
        node = self._node(FitModel(run=run, model=name), f"{run.name}_fit-{name}", run.name, 2.0)
        self.workflow.connect(prepared, "outputs", node, "prepared")
        return node

    def _tracks(self, run: DwiRun, prepared: pe.Node, fits: dict[str, pe.Node]) -> dict[str, pe.Node]:
        source = next((fits[name] for name in fits if issubclass(MODELS[name], OrientationModel)), None)
        if source is None:
            return {}
        n_streamlines = SLOPPY_STREAMLINES if self.settings.sloppy else self.settings.n_streamlines
        nodes = {}
        for method in self.settings.tracking:
            track = Track(
                run=run, method=method, n_streamlines=n_streamlines, formats=list(self.settings.tractogram_formats)
            )
            node = self._node(track, f"{run.name}_track-{method}", run.name, 2.5)
            self.workflow.connect(
                [(prepared, node, [("outputs", "prepared")]), (source, node, [("outputs", "orientations")])]
            )
            if "dti" in fits:
                self.workflow.connect(fits["dti"], "outputs", node, "tensor")
            nodes[method] = node
        return nodes

    def _normalise(
        self,
        run: DwiRun,
        prepared: pe.Node,
        fits: dict[str, pe.Node],
        tracks: dict[str, pe.Node],
        anatomy: _Anatomy | None,
    ) -> None:
        to_anat = self._coregister_to_anat(run, prepared, anatomy) if anatomy is not None else None
        for template in self.templates:
            node = self._node(
                NormaliseDwi(
                    run=run, template=template, models=list(fits), tracks=[TRACKERS[name].label for name in tracks],
                    resolution=self.settings.output_resolution or 0.0,
                ),
                f"{run.name}_normalise-dwi-{template.name}", run.name, 2.0,
            )  # fmt: skip
            if anatomy is not None and to_anat is not None:
                to_template = anatomy.normalised[template.name]
                node.inputs.anat_space, node.inputs.anat_modality = anatomy.space, anatomy.anat.modality
                self.workflow.connect(to_anat, "outputs", node, "anat_link")
                self.workflow.connect(to_anat, "facts", node, "anat_facts")
            else:
                to_template = self._node(
                    CoregisterToTemplate(run=run, template=template),
                    f"{run.name}_coregister-{template.name}",
                    run.name,
                    2.0,
                )
                self.workflow.connect(prepared, "outputs", to_template, "prepared")
            self.workflow.connect(to_template, "outputs", node, "template_link")
            self.workflow.connect(to_template, "facts", node, "template_facts")
            self._gather(run, f"maps-{template.name}", fits.values(), node, "fits")
            self._gather(run, f"tractograms-{template.name}", tracks.values(), node, "tractograms")

    def _coregister_to_anat(self, run: DwiRun, prepared: pe.Node, anatomy: _Anatomy) -> pe.Node:
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


def _node_name(step: str) -> str:
    """A name nipype accepts (letters, digits, underscores), unique even where the replacement is not."""
    plain = "".join(c if c.isalnum() else "_" for c in step)
    return f"{plain}_{hashlib.sha256(step.encode()).hexdigest()[:6]}"
