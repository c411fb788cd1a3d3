"""The page at /, in Chromium, follows analyses, shows the one chosen last, and opens reports and alphas documents."""

from __future__ import annotations

import json

from browser import Watched, until
from playwright.sync_api import Page
from service_page import ALPHAS, expect_bars, hold, paste, settle

from alphalloc.allocation import allocate
from alphalloc.alphas import ModelAlphas


def choose_known(page: Page, analysed: dict[str, ModelAlphas]) -> None:
    """Choose the known analysis of 5 layers, and wait for its schedule."""
    last, alphas = list(analysed.items())[-1]
    page.check("input[value=known]")
    until(page, "document.querySelectorAll('#analysis option').length > 1")
    page.select_option("#analysis", last)
    expect_bars(page, allocate(alphas, 25))


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
