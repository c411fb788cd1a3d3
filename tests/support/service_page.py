"""What the tests of the service's page do on it: paste alphas, wait for a schedule or a problem, hold answers back."""

from __future__ import annotations

import json

from browser import Watched, until
from playwright.sync_api import Page

from alphalloc import ExpertSchedule

ALPHAS = [2.1, 2.9, 3.4, 2.6, 2.2, 3.0]


def paste(page: Page, text: str) -> None:
    page.fill("#pasted", text)


def expect_bars(page: Page, schedule: ExpertSchedule) -> None:
    """Wait until the chart shows ``schedule``, then hold the words and the table against it."""
    until(
        page,
        "(wanted) => JSON.stringify([...document.querySelectorAll('#experts-chart [data-layer]')]"
        ".map((one) => Number(one.dataset.value))) === wanted",
        json.dumps(list(schedule.num_experts), separators=(",", ":")),
    )
    totals = schedule.totals
    assert page.inner_text("#totals").startswith(
        f"{totals.num_experts} experts in {totals.num_layers} layers, "
        f"{totals.fewest_experts} to {totals.most_experts} a layer"
    )


def copied(page: Page) -> str:
    until(page, "document.getElementById('copied').textContent.startsWith('Copied')")
    return str(page.evaluate("navigator.clipboard.readText()"))


HOLD = """([path, body]) => {
    const real = window.fetch;
    const released = new Promise((resolve) => { window.release = resolve; });
    Object.assign(window, { sent: 0, held: 0 });
    window.fetch = async (url, asked = {}) => {
        const meant = url.includes(path) && (asked.body || "").includes(body);
        if (meant) window.sent += 1;
        const answer = await real(url, asked);
        if (meant) window.held += 1;
        if (meant) await released;
        return answer;
    };
}"""


def hold(page: Page, path: str, body: str = "") -> None:
    """From now on answers to such requests (``window.sent``) wait (``window.held``) until ``window.release()``."""
    page.evaluate(HOLD, [path, body])


def settle(page: Page) -> None:
    """Give what would be sent or drawn in error the time for it."""
    page.wait_for_timeout(2 * page.evaluate("PAUSE"))


def expected_problem(watched: Watched, code: str) -> str:
    """Wait for the problem and return its text; the browser's own console line about the status is expected."""
    until(
        watched.page,
        "(code) => Boolean(document.querySelector('#problem:not([hidden]) .code')?.textContent.includes(code))",
        code,
    )
    assert watched.trouble
    assert all("Failed to load resource" in one for one in watched.trouble)
    watched.trouble.clear()
    return watched.page.inner_text("#problem")
