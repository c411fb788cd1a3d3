"""Who can use the page at /, in Chromium: by keyboard alone, without a serious violation, and with a key.

The tests of the module use one server; the last one gives it a key.
"""

from __future__ import annotations

import pytest
from alphalloc_service.keys import digest, new_key
from alphalloc_service.store import Store
from browser import Watched, axe, until
from playwright.sync_api import Page
from service_page import ALPHAS, copied, expect_bars, expected_problem, paste

from alphalloc import ExpertSchedule
from alphalloc.allocation import allocate


def test_by_keyboard_alone(watched):
    page = watched.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the schedule"
    reach(page, "pasted")
    page.keyboard.type("2.5 3.5 3")
    expect_bars(page, allocate([2.5, 3.5, 3.0], 15))
    reach(page, "budget-range")
    page.keyboard.press("ArrowRight")
    expect_bars(page, allocate([2.5, 3.5, 3.0], 16))
    reach(page, "rule")
    page.keyboard.type("uniform")
    expect_bars(page, allocate([2.5, 3.5, 3.0], 16, rule="uniform"))
    reach(page, "copy-json")
    page.keyboard.press("Enter")
    assert ExpertSchedule.from_json(copied(page)).rule.name == "uniform"


def reach(page: Page, id: str) -> None:
    """Press Tab until the element has the focus, which must be visible."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == id:
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            return
    raise AssertionError(f"{id} cannot be reached with Tab")


def test_no_serious_violation_light_and_dark_and_on_a_telephone(watched):
    page = watched.page
    paste(page, " ".join(map(str, ALPHAS)))
    expect_bars(page, allocate(ALPHAS, 30))
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    page.click("#copy-json")
    copied(page)
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    assert axe(page) == []
    page.emulate_media(color_scheme="dark")
    page.check("input[value=start]")
    assert axe(page, rules=("color-contrast",)) == []
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


@pytest.mark.usefixtures("analysed")  # known analyses to choose from
def test_with_a_key(browser, server):
    """Last of all: from here on the server asks for a key."""
    key = new_key()
    store = Store.open(server.database_url)
    store.add_key("page", digest(key), ("write",))
    store.close()
    watched = Watched(browser)
    page = watched.page
    page.wait_for_timeout(3500)  # the server remembers for three seconds that there was no key
    page.goto(server.url)
    expected_problem(watched, "unauthorized")
    page.fill("#key", key)
    page.press("#key", "Enter")
    page.wait_for_selector("#exports button")
    paste(page, "2 3 4")
    expect_bars(page, allocate([2.0, 3.0, 4.0], 15))
    page.check("input[value=known]")
    until(page, "document.getElementById('analysis-note').textContent.includes('layers by')")
    assert "Bearer $ALPHALLOC_API_KEY" in page.evaluate("curlLine()")
    assert key not in page.evaluate("curlLine()")
    assert watched.trouble == []
    page.close()
