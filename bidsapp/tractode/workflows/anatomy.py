"""The anatomical steps of one participant: what the runs of each session are registered through.

::

    sessionwise, first-lex      prepare_anat ── normalise_anat (one a template) ── segment_anat

    unbiased                    prepare_anat (one a session) ── build_subject_template ── normalise_anat (one a template)
                                     └──────────────────── normalise_through_subject ────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nipype.interfaces.utility import Merge
from nipype.pipeline import engine as pe

from tractode.bids import names
from tractode.bids.query import AnatFile, Participant, choose_anat
from tractode.bids.templates import Template, tissue_files
from tractode.bids.tissues import find_tissue_source
from tractode.errors import ResourceUnavailableError
from tractode.interfaces.anatomy import UNBIASED, NormaliseAnat, NormaliseThroughSubject, PrepareAnat
from tractode.interfaces.segmentation import SegmentAnat
from tractode.interfaces.step import Step
from tractode.interfaces.within_subject import BuildSubjectTemplate
from tractode.settings import Settings

AddNode = Callable[[Step, str, str, float], pe.Node]


@dataclass(frozen=True)
class Anatomy:
    """The nodes of one anatomical image, shared by all runs that go through it."""

    anat: AnatFile
    space: str
    prepared: pe.Node
    normalised: dict[str, pe.Node]
    segmented: pe.Node | None = None

    @property
    def first(self) -> pe.Node:
        """The registration that also gives the brain mask."""
        return next(iter(self.normalised.values()))


@dataclass
class AnatomyBuilder:
    """Lays out every image's nodes once, whichever sessions ask for it.

    Parameters
    ----------
    templates
        Registered to, the first of them also for the brain mask.
    add_node
        Adds a step to ``workflow`` under its name, the run it belongs to and its memory (GB).
    """

    participant: Participant
    settings: Settings
    templates: Sequence[Template]
    workflow: pe.Workflow
    add_node: AddNode
    _made: dict[Path, Anatomy] = field(default_factory=dict)

    def of_session(self, session: str | None) -> Anatomy | None:
        """What the runs of a session are registered through; ``None`` where there is no image, or none is wanted."""
        settings = self.settings
        if settings.anat_modality == "none" or not self.templates:
            return None
        anat = choose_anat(self.participant, session, settings.subject_anatomical_reference)
        if anat is None:
            return None
        if anat.path not in self._made:
            each = self._one_a_session()
            if settings.subject_anatomical_reference == "unbiased" and len(each) > 1:
                self._add_through_template(each)
            else:
                self._made[anat.path] = self._add(anat)
            if settings.segmentation != "none":
                self._made |= {path: self._segmented(one) for path, one in self._made.items()}
        return self._made[anat.path]

    def _segmented(self, anatomy: Anatomy) -> Anatomy:
        """The tissues of an image: those that were given, unless its own are asked for, else its own."""
        if anatomy.segmented is not None:
            return anatomy
        anat, settings, template = anatomy.anat, self.settings, self.templates[0]
        source = None
        if settings.segmentation == "auto" and settings.act != "segment":
            source = find_tissue_source(
                settings.bids_dir, self.participant.label, anat.session, settings.derivatives,
                own=settings.output_dir, fractions=True,
            )  # fmt: skip
        if source is None and not _has_tissues(template):
            return anatomy
        step = SegmentAnat(anat=anat, space=anatomy.space, template=template, source=source)
        node = self.add_node(step, f"{names.stem(anat.entities)}_segment-{anat.modality}", anatomy.space, 3.0)
        self.workflow.connect(anatomy.prepared, "outputs", node, "prepared")
        self.workflow.connect(anatomy.first, "outputs", node, "normalised")
        self.workflow.connect(anatomy.first, "facts", node, "normalised_facts")
        return replace(anatomy, segmented=node)

    def _one_a_session(self) -> list[AnatFile]:
        """The image of every session that has one of its own."""
        sessions = sorted({anat.session or "" for anat in self.participant.anats})
        chosen = (choose_anat(self.participant, session or None) for session in sessions)
        return [anat for anat in chosen if anat is not None]

    def _prepare(self, anat: AnatFile) -> tuple[str, pe.Node]:
        stem = names.stem(anat.entities)
        space = f"{stem}_{anat.modality}"
        step = PrepareAnat(anat=anat, space=space, assume_orientation=self.settings.assume_orientation)
        return space, self.add_node(step, f"{stem}_prepare-{anat.modality}", space, 1.0)

    def _add(self, anat: AnatFile) -> Anatomy:
        space, prepared = self._prepare(anat)
        return Anatomy(anat, space, prepared, self._normalise(anat, space, prepared))

    def _normalise(self, anat: AnatFile, space: str, prepared: pe.Node) -> dict[str, pe.Node]:
        """Registered by its contents to every template."""
        found: dict[str, pe.Node] = {}
        for template in self.templates:
            step = NormaliseAnat(anat=anat, space=space, template=template, write_mask=not found)
            name = f"{names.stem(anat.entities)}_normalise-{anat.modality}-{template.name}"
            found[template.name] = node = self.add_node(step, name, space, 3.0)
            self.workflow.connect(prepared, "outputs", node, "prepared")
        return found

    def _add_through_template(self, anats: Sequence[AnatFile]) -> None:
        """One template of all sessions is registered, and each session goes through it."""
        prepared = [self._prepare(anat) for anat in anats]
        subject, own = self._subject_template(anats, prepared)
        space = f"sub-{self.participant.label}_{UNBIASED}"
        normalised = self._normalise(subject, space, own)
        for anat, (session_space, node) in zip(anats, prepared, strict=True):
            through: dict[str, pe.Node] = {}
            for template in self.templates:
                step = NormaliseThroughSubject(
                    anat=anat, space=session_space, template=template, write_mask=not through, subject_space=space
                )
                name = f"{names.stem(anat.entities)}_normalise-{anat.modality}-{template.name}"
                through[template.name] = link = self.add_node(step, name, session_space, 3.0)
                self.workflow.connect(node, "outputs", link, "prepared")
                self.workflow.connect(own, "outputs", link, "to_subject")
                self.workflow.connect(normalised[template.name], "outputs", link, "subject_normalised")
            self._made[anat.path] = Anatomy(anat, session_space, node, through)

    def _subject_template(
        self, anats: Sequence[AnatFile], prepared: Sequence[tuple[str, pe.Node]]
    ) -> tuple[AnatFile, pe.Node]:
        label, modality = self.participant.label, anats[0].modality
        space = f"sub-{label}_{UNBIASED}"
        relative = names.derivative(
            {"sub": label}, suffix=modality, extension=".nii.gz", datatype="anat", desc=UNBIASED
        )
        subject = AnatFile(self.settings.output_dir / relative, {}, {"sub": label}, modality, None)
        step = BuildSubjectTemplate(anats=list(anats), spaces=[s for s, _ in prepared], anat=subject, space=space)
        node = self.add_node(step, f"sub-{label}_build-subject-template", space, 3.0)
        gather = pe.Node(Merge(len(prepared)), name=f"gather_sessions_{label}", run_without_submitting=True)
        for number, (_, one) in enumerate(prepared, start=1):
            self.workflow.connect(one, "outputs", gather, f"in{number}")
        self.workflow.connect(gather, "out", node, "prepared")
        return subject, node


def _has_tissues(template: Template) -> bool:
    """Whether the template has maps to segment by; one that has none is still good for all else."""
    try:
        return bool(tissue_files(template))
    except ResourceUnavailableError:
        return False
