"""The steps that name bundles: one for every tractogram of a run, after it is made and registered to the codec's space."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nipype.pipeline import engine as pe

from tractode.bids.query import DwiRun
from tractode.interfaces.bundle_codes import EncodeBundles
from tractode.interfaces.codec_plan import CodecPlan
from tractode.interfaces.methods import is_generative, method_of
from tractode.interfaces.step import Step
from tractode.settings import Settings


def needs_built_in(settings: Settings) -> bool:
    """Whether runs must be registered to the built-in template, which models of streamlines know."""
    return settings.encode_bundles or any(map(is_generative, settings.tracking))


def codec_of(settings: Settings) -> CodecPlan:
    """What is asked of the codec."""
    return CodecPlan(settings.codec_max_error_mm, settings.codec_min_confidence, settings.codec_weights)


def bundle_nodes(
    run: DwiRun,
    prepared: pe.Node,
    tracks: Mapping[str, pe.Node],
    settings: Settings,
    workflow: pe.Workflow,
    make: Callable[[Step, str, str, float], pe.Node],
) -> list[pe.Node]:
    """A node for every method's streamlines; the caller hands each the registration to the built-in template."""
    nodes = []
    for method, track in tracks.items() if settings.encode_bundles else ():
        interface = EncodeBundles(run=run, track=method_of(method).label, plan=codec_of(settings))
        node = make(interface, f"{run.name}_encode-{method}", run.name, 3.0)
        for source, field in ((prepared, "prepared"), (track, "tractogram")):
            workflow.connect(source, "outputs", node, field)
        nodes.append(node)
    return nodes
