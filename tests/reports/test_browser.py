"""The pages in a real browser: no severe console entry, no missing asset, nothing injected runs, the view rotates."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tractode.fields import Streamlines
from tractode.reports import figures_gradients, figures_registration, figures_slices, figures_tractogram
from tractode.reports.assemble import ReportData, RunSummary, participant_report
from tractode.reports.group import group_report

from .conftest import head_grid, lateralised
from .test_assemble import PAYLOADS

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        shutil.which("chromium") is None or shutil.which("chromedriver") is None,
        reason="Chromium and its driver are not installed",
    ),
]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-unsafe-swiftshader",
    "--window-size=1400,900",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def severe(driver) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def opened(driver, folder: Path, html: str) -> None:
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    driver.get_log("browser")
    driver.get(path.as_uri())


def wait_for(driver, script: str, seconds: float = 60) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, seconds).until(lambda d: d.execute_script(f"return {script}"))


@pytest.fixture(scope="module")
def page() -> str:
    """A report with one of each kind of figure and a payload in every text."""
    payload = PAYLOADS[0] + PAYLOADS[1]
    image, mask = lateralised(head_grid("PSR", 12.0))
    along = torch.linspace(-20, 20, 21)
    lines = Streamlines.from_list(
        [torch.stack([along * 0 + 10 + i, along - 11, along * 0.5 + 23], -1) for i in range(12)], "head"
    )
    run = "sub-1_dir-AP"
    items = [
        figures_slices.mosaic(image, mask, desc="b0", section="dwi", title=payload, caption=payload, run=run),
        figures_gradients.verdict_table({"verdict": "PASS", payload: payload}, run=run),
        figures_tractogram.interactive(lines, image, mask, run=run),
        figures_registration.flicker(
            image, image, fixed_name=payload, moving_name="b", title=payload, desc="x", run=run
        ),
    ]
    return participant_report(
        ReportData(
            "Report",
            "sub-1",
            [(payload, payload)],
            [RunSummary(run, facts={payload: payload})],
            items,
            methods_md=payload,
        )
    )


def test_a_report_opens_clean_draws_its_pictures_and_rotates(browser, page: str, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    opened(browser, tmp_path, page)
    browser.execute_script("document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; })")
    wait_for(browser, "Array.from(document.images).every(i => i.complete)")
    assert browser.execute_script("return document.images.length") == 3
    assert browser.execute_script("return Array.from(document.images).every(i => i.naturalWidth > 300)")
    assert browser.execute_script("return typeof window.pwned") == "undefined"
    viewer = browser.find_element("css selector", ".viewer3d")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", viewer)
    wait_for(browser, "document.querySelector('.viewer3d').dataset.state === 'drawn'")
    eye = "JSON.stringify(document.querySelector('.viewer3d-plot').layout.scene.camera.eye)"
    before = browser.execute_script(f"return {eye}")
    viewer.find_element("css selector", "button[data-view=left]").click()
    wait_for(browser, f"{eye} !== '{before}'")
    left = browser.execute_script("return document.querySelector('.viewer3d-plot').layout.scene.camera.eye")
    assert left["x"] < -0.5
    assert abs(left["y"]) < 1e-6
    plot = viewer.find_element("css selector", ".viewer3d-plot")
    at_left = browser.execute_script(f"return {eye}")
    ActionChains(browser).move_to_element(plot).click_and_hold().move_by_offset(120, 30).release().perform()
    wait_for(browser, f"{eye} !== '{at_left}'")
    assert severe(browser) == []


def test_the_flicker_alternates_and_stays_where_it_is_told(browser, page: str, tmp_path: Path) -> None:
    opened(browser, tmp_path, page)
    above = "getComputedStyle(document.querySelector('.flicker .above'))"
    assert browser.execute_script(f"return {above}.animationName") == "flick"
    for choice, expected in (("first", "hidden"), ("second", "visible")):
        browser.execute_script(f"document.querySelector('.flick-{choice}').checked = true")
        assert browser.execute_script(f"return {above}.animationName") == "none"
        assert browser.execute_script(f"return {above}.visibility") == expected


def test_an_injected_script_is_stopped_by_the_policy(browser, page: str, tmp_path: Path) -> None:
    """The control: were escaping to fail, the policy would stop the script, and the console would say so."""
    opened(
        browser,
        tmp_path,
        page.replace("</main>", "<script>window.pwned = 1</script><img src='x.png' onerror='window.pwned = 1'></main>"),
    )
    assert browser.execute_script("return typeof window.pwned") == "undefined"
    assert any("Content Security Policy" in message for message in severe(browser))


def test_a_missing_asset_is_seen(browser, tmp_path: Path) -> None:
    """The control of "no severe entry": a page with a missing picture has one."""
    opened(browser, tmp_path, "<!DOCTYPE html><img src='absent.png'>")
    assert any("ERR_FILE_NOT_FOUND" in message for message in severe(browser))


def test_the_group_page_opens_clean_and_sorts(browser, tmp_path: Path) -> None:
    rows = [
        {"participant_id": f"sub-{i}", "fa": value, "note": PAYLOADS[0]}
        for i, value in enumerate(("0.4", "n/a", "10", "0.41", "9"))
    ]
    opened(browser, tmp_path, group_report(rows))
    column = "Array.from(document.querySelectorAll('.sortable tbody tr')).map(r => r.cells[1].textContent)"
    browser.find_element("css selector", ".sortable th:nth-child(2)").click()
    assert browser.execute_script(f"return {column}") == ["0.4", "0.41", "9", "10", "n/a"]
    browser.find_element("css selector", ".sortable th:nth-child(2)").click()
    assert browser.execute_script(f"return {column}")[-1] == "0.4"
    assert browser.execute_script("return typeof window.pwned") == "undefined"
    assert severe(browser) == []
