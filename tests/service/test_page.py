"""The page at /, in Chromium, served by `alphalloc serve`: schedules, an analysis, exports, errors, keyboard, keys.

The tests of the module use one server and one browser; the last one gives the server a key.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from alphalloc_service.keys import digest, new_key
from alphalloc_service.settings import Settings
from alphalloc_service.store import Store
from browser import Watched, axe, chromium, until
from playwright.sync_api import Browser, Page
from running_service import RunningService
from safetensors.numpy import save_file

from alphalloc import ExpertSchedule
from alphalloc.allocation import allocate
from alphalloc.alphas import ModelAlphas

ALPHAS = [2.1, 2.9, 3.4, 2.6, 2.2, 3.0]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small checkpoints of 3, 4 and 5 layers."""
    folder = tmp_path_factory.mktemp("models")
    for layers in (3, 4, 5):
        draw = np.random.default_rng(layers)
        tensors = {f"layers.{i}.weight": draw.standard_t(3 + i, (40, 60)).astype(np.float32) for i in range(layers)}
        save_file(tensors, folder / f"{layers}.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_file: Path, models: Path) -> Iterator[RunningService]:
    roots = ["--model-root", str(smollm2_file.parent), "--model-root", str(models)]
    with RunningService(tmp_path_factory.mktemp("service"), *roots) as running:
        yield running


@pytest.fixture(scope="module")
def analysed(server: RunningService, models: Path) -> dict[str, ModelAlphas]:
    """The alphas of the models of 4 and 5 layers, by the ids of their analyses."""
    asked = [
        server.json("POST", "/v1/analyses", {"model": {"path": str(models / f"{layers}.safetensors")}})[1]["id"]
        for layers in (4, 5)
    ]
    assert {server.finished(one)["status"] for one in asked} == {"succeeded"}
    return {
        one: ModelAlphas.from_json(server.request("GET", f"/v1/analyses/{one}/alphas")[1].decode()) for one in asked
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def watched(browser: Browser, server: RunningService) -> Iterator[Watched]:
    """The page, ready to be used."""
    opened = Watched(
        browser, viewport={"width": 1200, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    opened.page.goto(server.url)
    opened.page.wait_for_selector("#exports button")
    yield opened
    assert opened.trouble == []
    assert [url for url in opened.requests if not url.startswith((server.url, "data:"))] == []
    opened.page.close()


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


def choose_known(page: Page, analysed: dict[str, ModelAlphas]) -> None:
    """Choose the known analysis of 5 layers, and wait for its schedule."""
    last, alphas = list(analysed.items())[-1]
    page.check("input[value=known]")
    until(page, "document.querySelectorAll('#analysis option').length > 1")
    page.select_option("#analysis", last)
    expect_bars(page, allocate(alphas, 25))


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


def test_pasted_alphas_become_bars_and_the_budget_slider_moves_them(watched):
    page = watched.page
    paste(page, ", ".join(map(str, ALPHAS)))
    expect_bars(page, allocate(ALPHAS, 30))
    until(page, "document.getElementById('difference').textContent !== ''")
    even = allocate(ALPHAS, 30, rule="uniform").num_experts
    more = sum(a > b for a, b in zip(allocate(ALPHAS, 30).num_experts, even, strict=True))
    assert page.inner_text("#difference").startswith(f"Against uniform: {more} layers have more")
    slider = page.locator("#budget-range")
    slider.focus()
    for _ in range(6):
        slider.press("ArrowRight")
    assert page.input_value("#budget") == "36"
    expect_bars(page, allocate(ALPHAS, 36))
    assert page.locator("#experts-chart svg").get_attribute("aria-label").startswith("36 experts in 6 layers")


def test_every_control_reaches_the_schedule(watched):
    page = watched.page
    paste(page, json.dumps(ALPHAS))
    page.fill("#param-beta", "1.5")
    page.fill("#min", "2")
    page.fill("#max", "7")
    page.fill("#top-k", "3")
    page.select_option("#rounding", "min1_largest_remainder")
    page.fill("#budget", "33")
    settings = {"beta": 1.5, "min_experts": 2, "max_experts": 7, "top_k": 3, "rounding": "min1_largest_remainder"}
    expected = allocate(ALPHAS, 33, **settings)
    expect_bars(page, expected)
    page.click("#copy-json")
    assert ExpertSchedule.from_json(copied(page)) == expected
    page.select_option("#rule", "pattern")
    page.fill("#param-pattern", "4, 2, 1")
    page.locator("#param-pattern").blur()
    expect_bars(page, allocate(ALPHAS, 33, rule="pattern:4,2,1", **{k: v for k, v in settings.items() if k != "beta"}))


def test_a_kept_schedule_is_compared_with_the_next_one(watched):
    page = watched.page
    paste(page, " ".join(map(str, ALPHAS)))
    first, second = allocate(ALPHAS, 30), allocate(ALPHAS, 40)
    expect_bars(page, first)
    page.click("#keep")
    assert page.inner_text("#difference") == "The same as kept: alpha_power, 30 experts in every layer."
    page.fill("#budget", "40")
    expect_bars(page, second)
    changes = [b - a for a, b in zip(first.num_experts, second.num_experts, strict=True)]
    assert page.inner_text("#difference") == (
        f"Against kept: alpha_power, 30 experts: {sum(c > 0 for c in changes)} layers have more, "
        f"{sum(c < 0 for c in changes)} fewer, +10 in all."
    )
    page.click("#result summary")
    cells = [row.locator("th, td").all_inner_texts() for row in page.locator("#rows tr").all()]
    assert [row[2] for row in cells] == [str(n) for n in second.num_experts]
    assert [row[4] for row in cells] == [str(n) for n in first.num_experts]


def test_a_peft_configuration_that_loads_and_a_curl_line_that_runs(watched):
    import peft

    page = watched.page
    paste(page, " ".join(map(str, ALPHAS)))
    expect_bars(page, allocate(ALPHAS, 30))
    page.fill("#rank", "4")
    page.click("#exports button[data-format=peft]")
    config = peft.LoraConfig(**json.loads(copied(page)))
    found = [config.rank_pattern.get(rf"layers\.{layer}\..*", config.r) for layer in range(6)]
    assert found == [4 * experts for experts in allocate(ALPHAS, 30).num_experts]
    page.evaluate("document.getElementById('copied').textContent = ''")
    page.click("#copy-curl")
    command = shlex.split(copied(page).replace("\\\n", " "))
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert ExpertSchedule.from_json(done.stdout) == allocate(ALPHAS, 30)


def test_errors_are_said_as_the_api_says_them(watched):
    page = watched.page
    paste(page, "2, 3, 4")
    expect_bars(page, allocate([2.0, 3.0, 4.0], 15))
    page.fill("#budget", "2")
    text = expected_problem(watched, "infeasible-budget")
    assert "a budget of 2 experts is below 3 layers x min_experts 1 = 3: raise the budget to at least 3" in text
    assert re.search(r"request [0-9a-f]{32}", text)
    assert page.locator("#copy-json").is_disabled()
    page.fill("#budget", "9")
    expect_bars(page, allocate([2.0, 3.0, 4.0], 9))
    assert page.locator("#problem").is_hidden()
    paste(page, "2, three, 4")
    assert page.inner_text("#pasted-note") == "“three” is not a number."
    paste(page, "2, -3, 4")
    assert "/source/alphas/1" in expected_problem(watched, "invalid-request")


def test_an_answer_to_what_was_taken_back_is_dropped(watched):
    page = watched.page
    paste(page, "2, 3, 4")
    expect_bars(page, allocate([2.0, 3.0, 4.0], 15))
    until(page, "document.getElementById('difference').textContent !== ''")  # both answers are here
    page.evaluate("""() => {
        const pasted = document.getElementById("pasted");
        window.type = (text) => { pasted.value = text; pasted.dispatchEvent(new Event("input")); };
        const real = window.fetch;
        window.answers = 0;
        window.fetch = async (...asked) => {
            const answer = await real(...asked);
            window.answers += 1;
            if (window.answers === 2) window.type("2, three"); // what is compared with is under way
            return answer;
        };
        window.type("2, 3, 5");
    }""")
    until(page, "window.answers === 2")
    page.evaluate("window.type('2, 3, 6'); window.type('')")  # the question waits, then there is nothing to ask
    page.wait_for_timeout(400)
    assert page.evaluate("window.answers") == 2
    assert page.inner_text("#totals") == "Give some alphas to see a schedule."
    assert page.locator("#experts-chart [data-layer]").count() == 0


def test_hostile_text_stays_text(watched):
    page = watched.page
    evil = "<img/src=x/onerror=window.hacked=1>"
    paste(page, evil)
    assert page.inner_text("#pasted-note") == f"“{evil}” is not a number."
    page.evaluate(
        "(evil) => drawAlphas({ alphas: [2, 3], labels: [layerLabel({ stack: evil, layer: 0 }), '1'] })", evil
    )
    assert evil in page.locator("#alphas-chart title").first.text_content()
    page.check("input[value=start]")
    page.fill("#model", evil)
    page.click("#start-form button[type=submit]")
    expected_problem(watched, "invalid-request")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0


def test_an_analysis_is_followed_to_its_end_and_becomes_a_schedule(watched, server, smollm2_file, tmp_path):
    page = watched.page
    page.check("input[value=start]")
    page.fill("#model", str(smollm2_file))
    page.click("#start-form summary")
    page.fill("#include", "k_proj, v_proj")
    page.evaluate(
        "window.said = []; new MutationObserver(() => said.push(document.getElementById('job-note').textContent))"
        ".observe(document.getElementById('job-note'), { childList: true, characterData: true, subtree: true })"
    )
    page.click("#start-form button[type=submit]")
    until(page, "document.getElementById('job-note').textContent.startsWith('succeeded')", seconds=120)
    said = page.evaluate("window.said")
    assert any(text.startswith(("queued", "running")) for text in said), said
    assert said[-1] == "succeeded: 60 of 60 matrices"
    page.check("input[value=known]")
    until(page, "document.getElementById('analysis-note').checkVisibility()")
    until(page, "document.getElementById('analysis-note').textContent === '30 layers by xmin_peak_robust'")
    document = page.evaluate(
        "fetch(`v1/analyses/${document.getElementById('analysis').value}/alphas`).then((answer) => answer.text())"
    )
    alphas = ModelAlphas.from_json(document)
    expect_bars(page, allocate(alphas, 150))
    page.check("#confidence")
    until(page, "document.getElementById('totals').textContent.includes('draws change it')")
    assert page.locator("#experts-chart .whisker").count() > 0
    with page.expect_download() as download:
        page.click("#report")
    report = tmp_path / "report.html"
    download.value.save_as(report)
    assert "SmolLM2-135M-Instruct" in report.read_text()
    assert "schedule-1.json" in report.read_text()  # the schedule on the page is in it
    assert "window.hacked" not in report.read_text()


def test_the_report_opens_in_an_origin_of_its_own(browser, server):
    """The analysis of the test above; the answer's policy gives it a sandbox, and its charts are drawn there."""
    answer = browser.new_context().request.get(f"{server.url}/v1/analyses?status=succeeded")
    analysis = answer.json()["data"][0]
    watched = Watched(browser)
    response = watched.page.goto(f"{server.url}/v1/analyses/{analysis['id']}/report")
    assert response is not None
    assert response.header_value("content-security-policy").startswith("sandbox allow-scripts")
    watched.page.wait_for_selector("#spectrum-plot .main-svg")
    assert watched.trouble == []
    light = browser.new_context().request.get(f"{server.url}/v1/analyses/{analysis['id']}/report?light=true").text()
    assert "<script" not in light
    watched.page.close()


def test_an_alphas_document_gives_its_numbers_where_a_list_can_stand_for_it(watched, analysed):
    page = watched.page
    alphas = next(iter(analysed.values()))
    paste(page, alphas.to_json())
    expect_bars(page, allocate(alphas.per_layer, 5 * len(alphas.layers)))
    assert page.inner_text("#pasted-note").startswith(f"{len(alphas.layers)} layers; its numbers alone")
    page.wait_for_timeout(300)  # the comparison's answer
    hold(page, "v1/allocations")
    later = json.loads(alphas.to_json())
    for layer in later["layers"]:
        layer["layer"] += 4
    paste(page, json.dumps(later))
    assert page.inner_text("#pasted-note").startswith("The layers of this document are not 0, 1, 2")
    settle(page)
    assert page.evaluate("window.sent") == 0
    assert page.inner_text("#totals") == "Give some alphas to see a schedule."
    paste(page, "{}")
    assert page.inner_text("#pasted-note") == "This JSON is neither a list of numbers nor an alphas document."


def test_pasted_alphas_outlast_an_analysis_under_way(watched, models):
    page = watched.page
    page.check("input[value=start]")
    page.fill("#model", str(models / "3.safetensors"))
    hold(page, "/events")
    page.click("#start-form button[type=submit]")
    until(page, "window.held === 1")
    page.check("input[value=paste]")
    paste(page, json.dumps(ALPHAS))
    expect_bars(page, allocate(ALPHAS, 30))
    page.check("input[value=start]")  # where the job runs nothing is allocated
    assert page.inner_text("#totals") == "Give some alphas to see a schedule."
    page.check("input[value=paste]")
    expect_bars(page, allocate(ALPHAS, 30))
    page.evaluate("window.release()")
    until(page, "document.getElementById('job-note').textContent === 'succeeded: 3 of 3 matrices'")
    settle(page)
    assert page.evaluate("state.source.alphas") == ALPHAS
    assert page.locator("#alphas-chart [data-layer]").count() == len(ALPHAS)
    expect_bars(page, allocate(ALPHAS, 30))
    page.check("input[value=start]")
    until(page, "state.source.alphas.length === 3")
    assert page.evaluate("state.source.id").startswith("an_")


def test_the_analysis_chosen_last_is_the_one_shown(watched, analysed):
    page = watched.page
    first, last = analysed
    choose_known(page, analysed)
    hold(page, f"{first}/layers")
    page.select_option("#analysis", first)
    until(page, "window.held === 1")
    page.evaluate("document.getElementById('analysis-note').textContent = ''")
    page.select_option("#analysis", last)
    until(page, "document.getElementById('analysis-note').textContent.startsWith('5 layers')")
    page.evaluate("window.release()")
    settle(page)
    assert page.evaluate("state.source.id") == last == page.input_value("#analysis")
    expect_bars(page, allocate(analysed[last], 25))


def test_an_export_is_of_the_settings_as_they_stand(watched):
    page = watched.page
    paste(page, json.dumps(ALPHAS))
    expect_bars(page, allocate(ALPHAS, 30))
    hold(page, "v1/allocations", '"store":false')
    page.fill("#budget", "37")
    until(page, "window.held === 1")
    page.fill("#rank", "4")
    page.click("#exports button[data-format=peft]")
    config = json.loads(copied(page))
    found = [config["rank_pattern"].get(rf"layers\.{layer}\..*", config["r"]) for layer in range(6)]
    assert found == [4 * experts for experts in allocate(ALPHAS, 37).num_experts]
    page.evaluate("window.release()")
    expect_bars(page, allocate(ALPHAS, 37))


def test_one_answer_with_ranges_at_a_time(watched, analysed):
    page = watched.page
    choose_known(page, analysed)
    hold(page, "v1/allocations", '"confidence":true')
    page.check("#confidence")
    until(page, "window.held === 1")
    for budget in ("26", "27", "28"):
        page.fill("#budget", budget)
        settle(page)
    assert page.evaluate("window.sent") == 1
    page.evaluate("window.release()")
    expect_bars(page, allocate(list(analysed.values())[-1], 28))
    until(page, "document.getElementById('totals').textContent.includes('draws change it')")
    assert page.evaluate("window.sent") == 2


def test_a_moving_slider_stays_below_the_default_rate(watched):
    rate = int((Settings().rate_limit or "").removesuffix("/minute"))
    assert watched.page.evaluate("2 * 60000 / PAUSE") < rate  # each setting, and what it is compared with


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
