"""Pages are whole, escaped and self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tractode.errors import InputDataError
from tractode.reports.assemble import ReportData, RunSummary, load_spec, markdown, participant_report
from tractode.reports.figures_registration import flicker_fragment
from tractode.reports.group import group_report, outliers
from tractode.reports.reportlet import Reportlet, stem

PAYLOADS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    '" onmouseover="window.pwned = 1',
    "</title><script>window.pwned = 1</script>",
    "{{ 7 * 7 }}",
    "javascript:window.pwned=1",
]


class Page(HTMLParser):
    """Tags, identifiers, links and assets of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.assets: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                self.links.append(value or "")
            if name in ("src", "data", "poster", "srcset"):
                self.assets.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def example(text: str = "plain") -> ReportData:
    """A report in which every text is ``text``."""
    picture = Reportlet("sub-1_desc-b0_dwi", "dwi", text, text, b"RIFFxxxxWEBP", run="sub-1_dir-AP", alt=text)
    fragment = flicker_fragment("n", [(text, b"a"), (text, b"b")])
    flicker = Reportlet("sub-1_desc-t_reg", "template", text, text, fragment, "html")
    unknown = Reportlet("sub-1_desc-z_dwi", "noddi_maps", text, text, b"x", "png", run="sub-1_dir-AP")
    error = InputDataError(text, id="E-X", path="/data/" + text, needed=text, fix=text).record()
    return ReportData(
        title=text,
        participant=f"sub-1{text}",
        summary=[(text, text), ("nested", {text: [text, {"deep": text}]})],
        runs=[
            RunSummary("sub-1_dir-AP", "complete", {"Volumes": 21, text: text}),
            RunSummary("sub-1" + text, "failed", reason=text),
        ],
        reportlets=[picture, flicker, unknown],
        plan=[("Models", [text, "csd"])],
        notes=[("warning", text)],
        errors=[error, {"message": text, "traceback": text}],
        provenance={text: {"k": text}, "empty": None},
        methods_md=f"# M\n\n{text} **bold** [a]({text})\n\n![i]({text})",
        manifest=[{"path": text, "sha256": "00"}],
    )


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_becomes_markup(payload: str) -> None:
    clean, dirty = Page(participant_report(example())), Page(participant_report(example(payload)))
    assert dirty.tags.count("script") == clean.tags.count("script")
    assert dirty.tags.count("img") == clean.tags.count("img")
    assert not dirty.handlers
    assert all(link.startswith("#") for link in dirty.links)
    assert "49" not in participant_report(example("{{ 7 * 7 }}")).replace("sha256", "")[-2000:]


def test_a_page_loads_nothing_and_every_link_lands() -> None:
    html = participant_report(example())
    page = Page(html)
    assert page.assets
    assert all(asset.startswith("data:image/") for asset in page.assets)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy
    assert "default-src 'none'" in policy.group(1)
    assert "script-src 'none'" in policy.group(1)  # no interactive view: no script at all


def test_all_sections_of_a_report_are_there() -> None:
    html = participant_report(example())
    for word in (
        "Summary",
        "Plan",
        "Notes",
        "Registration to the template",
        "Noddi maps",
        "Methods",
        "Provenance",
        "Errors",
        "E-X",
    ):
        assert word in html
    assert (
        html.index('id="summary"')
        < html.index('id="section-template"')
        < html.index('id="run-sub-1-dir-ap"')
        < html.index('id="errors"')
    )


def test_reportlets_of_a_run_nobody_listed_are_shown() -> None:
    item = Reportlet("x", "dwi", "Lost", "caption", b"x", "png", run="sub-9")
    html = participant_report(ReportData("t", "sub-9", [], reportlets=[item]))
    assert "Lost" in html
    assert "sub-9" in html


def test_an_empty_report_says_so() -> None:
    html = participant_report(ReportData("t", "sub-1", []))
    for words in ("No errors.", "No methods text was written.", "No provenance was recorded."):
        assert words in html


def test_the_spec_names_each_section_once() -> None:
    keys = [section.key for section in load_spec()]
    assert len(keys) == len(set(keys))
    assert {section.scope for section in load_spec()} == {"participant", "run"}


def test_reportlets_survive_the_disk() -> None:
    for item in example("é<").reportlets:
        files = item.to_files()
        assert Reportlet.from_files(files[f"{item.name}.json"], files[item.filename]) == item


def test_reportlets_refuse_unsafe_names_and_mismatched_bodies() -> None:
    with pytest.raises(ValueError, match="file name"):
        Reportlet("../x", "dwi", "t", "c", b"x")
    with pytest.raises(ValueError, match="kind"):
        Reportlet("x", "dwi", "t", "c", b"x", "html")
    assert stem("sub-1/../<x>", "b0", "dwi") == "sub-1..x_desc-b0_dwi"


def test_markdown_renders_lists_tables_and_safe_links_only() -> None:
    out = markdown("- a\n- b\n\n| x |\n|---|\n| 1 |\n\n[ok](https://doi.org/1) [no](javascript:x) <i>raw</i>")
    assert "<li>a</li>" in out
    assert "<td>1</td>" in out
    assert 'href="https://doi.org/1"' in out
    assert 'href="javascript' not in out
    assert "<i>" not in out


def test_outliers_by_hand() -> None:
    assert outliers([10.0, 11.0, 9.0, 10.0, 30.0]) == [4]
    assert outliers([21.0] * 8 + [7.0]) == [8]
    assert outliers([5.0] * 6) == []
    assert outliers([1.0, 2.0, 900.0]) == []
    assert outliers([10.0, 11.0, 9.0, float("nan"), 10.0, 30.0]) == [5]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_group_page_escapes_and_links_inside_only(payload: str) -> None:
    rows = [{"participant_id": f"sub-{i}", "fa": str(0.4 + 0.01 * i), "note": payload} for i in range(6)]
    rows.append({"participant_id": payload, "fa": "9.0", "note": "n/a", payload: "n/a"})
    links = {"sub-0": "sub-0.html", "sub-1": payload, "sub-2": "//host/x", "sub-3": "../x.html", "sub-4": "https://x"}
    html = group_report(
        rows,
        dictionary={payload: {"Description": payload}},
        links=links,
        errors=[{"id": payload}],
        summary=[(payload, payload)],
    )
    page = Page(html)
    assert page.tags.count("script") == 1
    assert not page.handlers
    assert {link for link in page.links if not link.startswith("#")} == {"sub-0.html"}
    assert html.count('class="flag"') == 1
    assert all(asset.startswith("data:image/webp") for asset in page.assets)


def test_a_group_of_none_is_a_page() -> None:
    assert "Too few rows" in group_report([])
