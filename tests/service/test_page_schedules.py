"""The page at /, in Chromium, makes schedules of pasted alphas: controls, comparison, exports, errors, hostile text."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

from alphalloc_service.settings import Settings
from browser import until
from service_page import ALPHAS, copied, expect_bars, expected_problem, hold, paste

from alphalloc import ExpertSchedule
from alphalloc.allocation import allocate


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


def test_a_moving_slider_stays_below_the_default_rate(watched):
    rate = int((Settings().rate_limit or "").removesuffix("/minute"))
    assert watched.page.evaluate("2 * 60000 / PAUSE") < rate  # each setting, and what it is compared with
