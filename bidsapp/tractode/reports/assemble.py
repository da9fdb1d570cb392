"""From reportlets and facts to one self-contained HTML page: escaped, without a network, under a strict policy."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from jinja2 import DictLoader, Environment, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from tractode import __version__
from tractode.reports import viewer
from tractode.reports.reportlet import Reportlet

_TEMPLATES = ("base.html.j2", "macros.html.j2", "participant.html.j2", "group.html.j2")
_TONES = {
    "complete": "good", "done": "good", "pass": "good", "ok": "good", "reused": "good",
    "failed": "bad", "fail": "bad", "error": "bad", "missing": "bad",
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A heading of the report: its key, whether it repeats for each run, its title and what to look at."""

    key: str
    scope: str
    title: str
    hint: str = ""


@dataclass(frozen=True)
class RunSummary:
    """One run's line of the summary table. ``facts`` are its columns; ``reason`` says why it failed."""

    name: str
    status: str = "complete"
    facts: Mapping[str, object] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class ReportData:
    """Everything a participant's report shows. Texts are plain and escaped; ``methods_md`` is Markdown without HTML."""

    title: str
    participant: str
    summary: Sequence[tuple[str, object]]
    runs: Sequence[RunSummary] = ()
    reportlets: Sequence[Reportlet] = ()
    plan: Sequence[tuple[str, object]] = ()
    notes: Sequence[tuple[str, str]] = ()  # (level, message)
    errors: Sequence[Mapping[str, object]] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)
    methods_md: str = ""
    manifest: Sequence[Mapping[str, object]] = ()


def load_spec(text: str | None = None) -> tuple[Section, ...]:
    """The sections of ``reports-spec.yml`` or of a text of the same form."""
    content = yaml.safe_load(viewer.resource("reports-spec.yml") if text is None else text)
    return tuple(Section(**entry) for entry in content["sections"])


def participant_report(data: ReportData, spec: Sequence[Section] | None = None) -> str:
    """A participant's page. Runs that only reportlets name are shown too, so that nothing made is left out."""
    spec = load_spec() if spec is None else spec
    fragments = [item.body for item in data.reportlets if isinstance(item.body, str)]
    known = {run.name for run in data.runs}
    extra = dict.fromkeys(item.run for item in data.reportlets if item.run and item.run not in known)
    summaries = [*data.runs, *(RunSummary(name, "unknown") for name in extra)]
    runs = [_run_view(run, data.reportlets, spec) for run in summaries]
    columns = dict.fromkeys(column for run in summaries for column in run.facts)
    return render(
        "participant.html.j2",
        viewer.participant_scripts(fragments),
        title=f"{data.participant} · {data.title}",
        data=data,
        participant_sections=_sections(data.reportlets, spec, "participant", ""),
        runs=runs,
        run_columns=list(columns),
        manifest_columns=list(dict.fromkeys(column for row in data.manifest for column in row)),
        methods=markdown(data.methods_md),
        complete=all(run.status.lower() in ("complete", "done", "reused") for run in summaries),
    )


def _run_view(run: RunSummary, reportlets: Sequence[Reportlet], spec: Sequence[Section]) -> dict[str, Any]:
    return {
        "label": run.name,
        "anchor": anchor(f"run-{run.name}"),
        "status": run.status,
        "reason": run.reason,
        "facts": dict(run.facts),
        "sections": _sections(reportlets, spec, "run", run.name),
    }


def _sections(reportlets: Sequence[Reportlet], spec: Sequence[Section], scope: str, run: str) -> list[dict[str, Any]]:
    """The sections that have reportlets, in the order of the spec, then those that the spec does not know."""
    mine = [item for item in reportlets if item.run == run]
    titles = {section.key: section for section in spec}
    listed = [section.key for section in spec if section.scope == scope]
    others = dict.fromkeys(item.section for item in mine if item.section not in listed)
    found = []
    for key in [*listed, *others]:
        items = [item for item in mine if item.section == key]
        if items:
            section = titles.get(key) or Section(key, scope, key.replace("_", " ").capitalize())
            name = f"{run}-{key}" if run else key
            found.append(
                {"anchor": anchor(f"section-{name}"), "title": section.title, "hint": section.hint, "reportlets": items}
            )
    return found


def render(template: str, scripts: Sequence[str], **context: object) -> str:
    """A template of this package with its style, its scripts and the policy that allows only these."""
    return (
        _environment()
        .get_template(template)
        .render(
            version=__version__,
            css=Markup(viewer.resource("report.css")),
            scripts=[Markup(script) for script in scripts],
            script_sources=Markup(viewer.script_sources(scripts)),
            tones=_TONES,
            **context,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=DictLoader({name: viewer.resource(name) for name in _TEMPLATES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "fragment": _fragment, "anchor": anchor}
    return environment


def data_uri(item: Reportlet) -> str:
    """A picture as the text of an ``src`` attribute."""
    body = item.body if isinstance(item.body, bytes) else item.body.encode()
    return f"data:image/{item.kind};base64,{base64.b64encode(body).decode()}"


def _fragment(body: str) -> Markup:
    # Made by this package from escaped texts; the policy stops any script that is not ours all the same.
    return Markup(body)


def anchor(text: str) -> str:
    """A fragment identifier: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def markdown(text: str) -> Markup:
    """CommonMark with tables; HTML in the text is shown, not used, and links that are not of the web stay text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    parser.validateLink = _is_web_link  # type: ignore[method-assign]
    return Markup(parser.render(text)) if text.strip() else Markup("")


def _is_web_link(url: str) -> bool:
    return url.startswith(("https://", "http://", "#"))
