"""Debian's Chromium, headless, driven by Playwright; and axe-core, which finds what keeps people out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 120.0  # seconds that anything may take on a busy machine
SERIOUS = ("serious", "critical")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that is closed afterwards. A missing one is an error, never a skip: `make test` installs it."""
    assert CHROMIUM.exists(), f"{CHROMIUM} is missing: apt-get install -y --no-install-recommends chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS, timeout=1000 * PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page with everything that went wrong on it: errors, console errors, requests to other hosts."""

    def __init__(self, browser: Browser, **options: object) -> None:
        self.page: Page = browser.new_page(**options)
        self.page.set_default_timeout(1000 * PATIENCE)
        self.trouble: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("console", lambda m: self.trouble.append(f"console: {m.text}") if m.type == "error" else None)
        self.page.on("request", lambda request: self.requests.append(request.url))


def until(page: Page, expression: str, arg: object = None, *, seconds: float = PATIENCE) -> None:
    """Wait until the JavaScript ``expression`` holds. Playwright's own waiting needs eval, which our policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression, arg):
        assert time.monotonic() < end, f"still not after {seconds} s: {expression} {arg!r}"
        page.wait_for_timeout(50)


def axe(page: Page, *, rules: tuple[str, ...] = ()) -> list[str]:
    """Return the serious violations on the page as it stands, each with its first element; ``rules``: of these only."""
    script = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    # Evaluated through the protocol, so that the page's own security policy stays as it is.
    page.evaluate(script + "; undefined")
    only = {"runOnly": list(rules)} if rules else {}
    found = page.evaluate("(only) => axe.run(document, { resultTypes: ['violations'], ...only })", only)
    return [
        f"{one['impact']} {one['id']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0]['failureSummary'][:300]}"
        for one in found["violations"]
        if one["impact"] in SERIOUS
    ]
