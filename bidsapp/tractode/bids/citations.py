"""The methods text of a run and the works it cites, as Markdown, BibTeX and HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tractode
from tractode.bids.spec_files import load
from tractode.io.atomic import write_text


def reference(key: str) -> dict[str, Any]:
    """One work; keys are looked up without regard to case.

    Raises
    ------
    KeyError
        No work has this key.
    """
    return load("references")["references"][key.lower()]


def boilerplate(facts: Mapping[str, Any]) -> str:
    """Methods text in Markdown, with the works cited at its end.

    Parameters
    ----------
    facts
        ``models``: a list of ``{"label", …settings of the fit}``; ``trackers``: ``{"method", "n_streamlines", …settings}``;
        ``sentences``: pairs of what a further step did, without its full stop, and the work it rests on; ``templates``:
        names; ``preprocessed``: who preprocessed scans before, ``raw``: whether there were others too; ``anatomical``: whether an anatomical image led there (else b=0 did); ``keys``: further works to cite. All may be
        absent.
    """
    models, trackers = facts.get("models", ()), _distinct(facts.get("trackers", ()))
    templates = list(dict.fromkeys(facts.get("templates", ())))
    paragraphs = [
        f"Results were obtained with *tractode* {tractode.__version__}, a BIDS-App {_cite('gorgolewski2016', 'gorgolewski2017')} "
        f"built on PyBIDS {_cite('yarkoni2019')}, Nipype {_cite('gorgolewski2011')} and DIPY {_cite('garyfallidis2014')}.",
        f"{_untouched(facts)} ".lstrip()
        + "Gradient tables were brought to the scanner frame by the images' own affines and checked against the images: attenuation "
        f"and fibre coherence of the table given were compared with those of its axis flips and swaps {_cite('jeurissen2014')}.",
    ]
    paragraphs += dict.fromkeys(_model_text(model) for model in models)
    paragraphs += [_tracker_text(tracker) for tracker in trackers]
    paragraphs += [f"{text} {_cite(key)}." for text, key in dict.fromkeys(map(tuple, facts.get("sentences", ())))]
    if templates:
        paragraphs.append(_registration_text(templates, facts.get("anatomical", True)))
    keys = citation_keys(facts)
    listed = "\n".join(f"- {_plain(reference(key))}" for key in keys)
    return "\n\n".join(["## Methods", *paragraphs, "## References", listed]) + "\n"


def citation_keys(facts: Mapping[str, Any]) -> list[str]:
    """Keys of all works that `boilerplate` cites for these facts, sorted."""
    known = load("references")
    keys = {key.lower() for key in facts.get("keys", ())} | {key for _, key in facts.get("sentences", ())}
    keys |= set(known["always"]) | set(known["gradient_check"])
    keys |= {key for name in facts.get("preprocessed", ()) for key in _written_by(name)}
    keys |= {key.lower() for model in facts.get("models", ()) for key in _model_keys(model)}
    for template in facts.get("templates", ()):
        keys |= set(known["template_keys"].get(template, known["template_default"])) | set(known["registration"])
        keys |= set(known["registration_flow"]) if facts.get("anatomical", True) else set()
    for key in list(keys):
        keys |= set(known["also"].get(key, ()))
    return sorted(keys)


def write_citations(logs_dir: Path, keys: Iterable[str], text: str, *, md_only: bool = False) -> tuple[Path, ...]:
    """Write ``CITATION.md``, ``.bib`` and ``.html`` (each replaced whole, so that parallel jobs leave no mixture).

    Parameters
    ----------
    keys
        Works for the ``.bib``, from `citation_keys`.
    text
        The Markdown of `boilerplate`.
    md_only
        Only the Markdown (``--md-only-boilerplate``).
    """
    paths = (logs_dir / "CITATION.md", logs_dir / "CITATION.bib", logs_dir / "CITATION.html")
    ordered = sorted({key.lower() for key in keys})
    contents = {paths[0]: text} if md_only else dict(zip(paths, (text, bibtex(ordered), to_html(text)), strict=True))
    for path, content in contents.items():
        write_text(path, content)
    return tuple(contents)


def bibtex(keys: Sequence[str]) -> str:
    """BibTeX entries."""
    return "\n".join(_bib_entry(key, reference(key)) for key in keys)


def to_html(text: str) -> str:
    """The subset of Markdown that `boilerplate` writes (headings, paragraphs, lists, emphasis, links) as an HTML page."""
    blocks = []
    for block in text.strip().split("\n\n"):
        if block.startswith("## "):
            blocks.append(f"<h2>{_inline(block[3:])}</h2>")
        elif block.startswith("- "):
            items = "".join(f"<li>{_inline(line[2:])}</li>\n" for line in block.splitlines())
            blocks.append(f"<ul>\n{items}</ul>")
        else:
            blocks.append(f"<p>{_inline(block)}</p>")
    head = '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>How to cite</title></head>\n<body>\n'
    return head + "\n".join(blocks) + "\n</body>\n</html>\n"


def _inline(text: str) -> str:
    escaped = html.escape(text)
    linked = re.sub(r"&lt;(https://[^\s&]+)&gt;", r'<a href="\1">\1</a>', escaped)
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", linked)


def _untouched(facts: Mapping[str, Any]) -> str:
    """What was not corrected here, and what had been corrected elsewhere."""
    if not (writers := list(dict.fromkeys(facts.get("preprocessed", ())))):
        return _uncorrected(facts)
    known = [f"{name}{''.join(f' {_cite(key)}' for key in _written_by(name))}" for name in writers]
    if not facts.get("raw"):
        return (
            f"Diffusion images came preprocessed by {' and '.join(known)}, and no step of preprocessing was repeated."
        )
    text = f"Some diffusion images came preprocessed by {' and '.join(known)}; on these no step of preprocessing was repeated."
    return f"{text} What follows on preprocessing is said of the others. {_uncorrected(facts)}".rstrip()


def _written_by(name: str) -> list[str]:
    """Works on the programs that are known by their name."""
    return [key for part, key in load("references")["preprocessed_by"].items() if part in name]


def _uncorrected(facts: Mapping[str, Any]) -> str:
    keys = {key for _, key in facts.get("sentences", ())}
    missing = [] if keys & _SDC_KEYS else ["of susceptibility distortion"]
    missing += [] if keys & _MOTION_KEYS else ["of motion or eddy currents"]
    if not keys & (_SDC_KEYS | _STEP_KEYS):
        return "Diffusion images were used as acquired: no correction of distortion, motion or eddy currents was made."
    return f"No correction {' or '.join(missing)} was made." if missing else ""


_SDC_KEYS = {"andersson2003", "jezzard1995", "wang2017"}
_MOTION_KEYS = {"cieslak2024"}
_STEP_KEYS = {
    "veraart2016",
    "kellner2016",
    *_MOTION_KEYS,
    "andersson2016",
    "tustison2010",
}  # of `interfaces.prepared_files`


def _model_text(model: Mapping[str, Any]) -> str:
    """The model's own sentence (``Text`` in ``spec/sidecars.yaml``), with what is known of this fit put in."""
    label = str(model.get("label", ""))
    known = load("sidecars")["models"].get(label, {})
    if "Text" not in known:
        return f"The model {label or 'named in the settings'} was fitted as the sidecars of its maps describe."
    words = known.get("Settings", {})

    def filled(found: re.Match[str]) -> str:
        if found[1]:
            return _cite(*_keys_of(found[2]))
        value: Any = model
        for part in found[2].split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return str(words.get(found[2], {}).get(str(value).lower(), "unknown" if value is None else value))

    return _PLACE.sub(filled, known["Text"].strip())


def _model_keys(model: Mapping[str, Any]) -> list[str]:
    """Works that the model's sentence cites."""
    text = load("sidecars")["models"].get(str(model.get("label", "")), {}).get("Text", "")
    return [key for found in _PLACE.finditer(text) if found[1] for key in _keys_of(found[2])]


_PLACE = re.compile(r"\{(cite:)?([^{}]+)\}")


def _keys_of(text: str) -> list[str]:
    return [key.strip() for key in text.split(",")]


def _tracker_text(tracker: Mapping[str, Any]) -> str:
    count = tracker.get("n_streamlines")
    number = f"{count:,} streamlines were" if isinstance(count, int) else "Streamlines were"
    settings = []
    if (step := tracker.get("StepSize")) is not None:
        settings.append(f"steps of {step:g} mm")
    if (angle := tracker.get("MaximumAngle")) is not None:
        settings.append(f"at most {angle:.0f}° between steps")
    if (cutoff := tracker.get("CutoffAmplitude")) is not None:
        settings.append(f"amplitude above {cutoff:g}")
    listed = f" ({', '.join(settings)})" if settings else ""
    if str(tracker.get("method", "")).lower() == "sdstream":
        return (
            f"{number} asked for by deterministic tracking along the peaks of the orientation distribution, SD_STREAM "
            f"{_cite('tournier2012')}, from random seeds{listed}."
        )
    if str(tracker.get("method", "")).lower() == "gentract":
        return (
            f"{number} asked for of a generative model of whole streamlines after GenTract {_cite('sargood2025')}, conditioned on the "
            f"orientation distribution, by flow matching {_cite('lipman2022')} from streamlines of an atlas {_cite('albergo2023')}; it was "
            f"trained on {tracker.get('TrainedOn', 'simulated participants')} and draws the bundles of that atlas only."
        )
    return f"{number} asked for with the method {tracker.get('method')}{listed}."


def _registration_text(templates: Sequence[str], anatomical: bool) -> str:
    known = load("references")
    named = " and ".join(
        f"*{name}* {_cite(*known['template_keys'].get(name, known['template_default']))}" for name in templates
    )
    affine = f"by an affine transform that maximises normalised mutual information {_cite('studholme1999')}"
    if not anatomical:
        return f"Mean b=0 images were registered to {named} {affine}; there was no anatomical image."
    return (
        f"Anatomical images were registered to {named} {affine}, followed by the flow of a stationary velocity field "
        f"{_cite('arsigny2006')} that aligns modality-independent neighbourhood descriptors {_cite('heinrich2012')}; mean b=0 images were "
        "aligned rigidly with the anatomical image by the same descriptors. Transforms were composed and applied once."
    )


def _cite(*keys: str) -> str:
    shown = (f"{_first_author(reference(key))} et al., {reference(key)['year']}" for key in keys)
    return f"({'; '.join(shown)})"


def _first_author(work: Mapping[str, Any]) -> str:
    return work["author"].partition(",")[0]


def _plain(work: Mapping[str, Any]) -> str:
    authors = work["author"].replace(" and others", ", et al.").replace(" and ", "; ")
    return f"{authors} ({work['year']}). {work['title']}. *{work['journal']}*. <{_address(work)}>"


def _address(work: Mapping[str, Any]) -> str:
    """A work's DOI as a link; of one without, where its authors keep it."""
    return f"https://doi.org/{work['doi']}" if "doi" in work else str(work["url"])


def _bib_entry(key: str, work: Mapping[str, Any]) -> str:
    place = "journal" if work["type"] == "article" else "booktitle"
    fields = {name: work[name] for name in ("author", "title")} | {
        place: work["journal"],
        "year": work["year"],
        **{name: work[name] for name in ("doi", "url") if name in work},
    }
    body = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{work['type']}{{{key},\n{body}}}\n"


def _distinct(items: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without repetitions: two runs tracked alike are described once."""
    kept: list[Mapping[str, Any]] = []
    seen = set()
    for item in items:
        mark = (
            item.get("method"),
            item.get("StepSize"),
            item.get("n_streamlines"),
        )
        if mark not in seen:
            seen.add(mark)
            kept.append(item)
    return kept
