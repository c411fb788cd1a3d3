"""The report in a real browser: drawn, usable by keyboard, without serious violations, offline, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Watched, axe, chromium
from made_alphas import made_alphas, made_matrix, made_of
from playwright.sync_api import Browser

from alphalloc.allocation import allocate
from alphalloc.report import report_html

ROLES = ("q_proj", "k_proj", "up_proj")
EVIL = "<script>window.hacked = 1</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A live and a light report of one model."""
    where = tmp_path_factory.mktemp("report")
    alphas = made_alphas(2, roles=ROLES)  # axe-core takes its time with large tables
    schedules = [allocate(alphas, 10, confidence=True), allocate(alphas, 10, rule="uniform")]
    for light in (False, True):
        page = report_html(alphas, schedules, others=[made_alphas(2, roles=ROLES, estimator="ks")], light=light)
        (where / f"{'light' if light else 'live'}.html").write_text(page)
    return where


def opened(browser: Browser, path: Path, **options: object) -> Watched:
    watched = Watched(browser, viewport={"width": 1100, "height": 900}, **options)
    watched.page.goto(path.as_uri())
    return watched


def drawn(watched: Watched) -> None:
    watched.page.wait_for_selector("#spectrum-plot .main-svg")


@pytest.mark.parametrize("name", ["live", "light"])
def test_no_serious_violation_no_error_no_request(browser, folder, name):
    watched = opened(browser, folder / f"{name}.html", color_scheme="light")
    if name == "live":
        drawn(watched)
    watched.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert axe(watched.page) == []
    watched.page.emulate_media(color_scheme="dark")
    assert axe(watched.page, rules=("color-contrast",)) == []
    assert watched.trouble == []
    assert [url for url in watched.requests if not url.startswith("file:")] == []
    watched.page.close()


def test_every_chart_is_drawn_and_its_static_twin_hidden_until_printed(browser, folder):
    watched = opened(browser, folder / "live.html")
    drawn(watched)
    page = watched.page
    keys = [place.get_attribute("data-figure") for place in page.query_selector_all("[data-figure]")]
    assert keys == ["alpha-by-layer", "alpha-by-role", "experts-by-layer", "estimators"]
    for key in keys:
        assert page.locator(f"[data-figure={key}] .main-svg").first.is_visible()
        assert page.locator(f"#{key} .static").is_hidden()
    page.emulate_media(media="print")
    for key in keys:
        assert page.locator(f"#{key} .static svg").is_visible()
        assert page.locator(f"[data-figure={key}]").is_hidden()
    page.close()


def test_by_keyboard_alone(browser, folder):
    """Tab to the skip link and on; choose another spectrum with the arrow keys; open its table with Enter."""
    watched = opened(browser, folder / "live.html")
    drawn(watched)
    page = watched.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "spectrum-choice":
            break
    before = page.inner_text("#spectrum-words")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("(old) => document.getElementById('spectrum-words').textContent !== old", arg=before)
    assert "k_proj" in page.inner_text("#spectrum-words")
    assert page.get_attribute("#spectrum-plot", "aria-label") == page.inner_text("#spectrum-words")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    rows = page.locator("#spectrum-rows tr")
    counts = [int(text) for text in rows.locator("td:nth-child(3)").all_inner_texts()]
    matrix = made_alphas(2, roles=ROLES).matrices[1]
    assert sum(counts) == sum(matrix.esd_histogram.counts)
    page.close()


def test_colours_follow_the_reader_and_the_page_fits_a_telephone(browser, folder):
    watched = opened(browser, folder / "live.html", color_scheme="light")
    drawn(watched)
    page = watched.page
    colour = "getComputedStyle(document.querySelector('.xtick text')).fill"
    before = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"(old) => {colour} !== old", arg=before)
    page.set_viewport_size({"width": 380, "height": 800})
    page.wait_for_function("document.documentElement.scrollWidth <= 380")
    page.close()


def test_without_scripts_the_pictures_are_there(browser, folder):
    watched = opened(browser, folder / "live.html", java_script_enabled=False)
    assert watched.page.locator("#alpha-by-layer .static svg").is_visible()
    assert watched.page.locator("[data-figure=alpha-by-layer]").is_hidden()
    watched.page.close()


@pytest.mark.parametrize("light", [True, False])
def test_a_tensor_named_script_is_a_name(browser, tmp_path, light):
    matrices = tuple(
        made_matrix(layer, role).model_copy(update={"name": f"{EVIL}{layer}", "stack": EVIL})
        for layer in range(3)
        for role in (EVIL, "q_proj")
    )
    alphas = made_of(matrices, model=EVIL)
    path = tmp_path / "report.html"
    path.write_text(report_html(alphas, [allocate(alphas, 15)], light=light))
    watched = opened(browser, path)
    if not light:
        drawn(watched)
        assert EVIL in watched.page.inner_text("#spectrum-words")
        assert EVIL in watched.page.locator("[data-figure=alpha-by-layer] .legendtext").all_text_contents()
    assert watched.page.inner_text("h1") == EVIL
    assert watched.page.evaluate("window.hacked") is None
    assert watched.trouble == []
    watched.page.close()
