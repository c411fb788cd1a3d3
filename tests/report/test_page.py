"""The report as a file: self-contained, escaped, small, the same bytes twice, and with all that it promises."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from made_alphas import made_alphas, made_matrix, made_of

from alphalloc import ModelAlphas
from alphalloc.allocation import ExpertSchedule, allocate
from alphalloc.alphas import SkippedMatrix
from alphalloc.report import content_policy, picture_svg, report_html
from alphalloc.report.agreement import agreement_table, document_names, rank_correlation
from alphalloc.report.html import plotly_script
from alphalloc.report.provenance import analyze_command

EVIL = '</script><script>alert(1)</script>"><img src=x onerror=alert(2)>'
MIB = 2**20


class Outline(HTMLParser):
    """Every tag with its attributes, and the text of scripts and headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._within and self._within.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._within:
            self.text.setdefault(self._within[-1], []).append(data)


@pytest.fixture(scope="module")
def alphas() -> ModelAlphas:
    return made_alphas(8)


@pytest.fixture(scope="module", params=[True, False], ids=["light", "live"])
def light(request) -> bool:
    return request.param


def test_it_loads_nothing_and_its_policy_allows_nothing_else(alphas, light):
    page = report_html(alphas, [allocate(alphas, 40)], light=light)
    outline = Outline(page)
    loading = [
        (tag, name, value)
        for tag, attributes in outline.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster") and not (value or "").startswith("#")
    ]
    assert loading == []
    policy = next(a["content"] for tag, a in outline.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:")
    scripts = [
        body
        for kind, body in re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
        if "application/json" not in kind
    ]
    if light:
        assert scripts == []
        assert "script-src" not in policy
    else:
        digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
        assert len(digests) == 2
        assert policy == content_policy()
        assert policy.endswith("script-src " + " ".join(f"'sha256-{digest}'" for digest in digests))


def test_same_input_same_bytes(alphas, light):
    assert report_html(alphas, light=light) == report_html(ModelAlphas.from_json(alphas.to_json()), light=light)


def test_hostile_names_stay_text(light):
    matrices = tuple(
        made_matrix(layer, role).model_copy(update={"name": EVIL, "module": EVIL, "stack": EVIL, "reason": EVIL})
        for layer in range(2)
        for role in (EVIL, "q_proj")
    )
    alphas = made_of(matrices, model=EVIL).model_copy(
        update={"warnings": (EVIL,), "skipped": (SkippedMatrix(name=EVIL, shape=(1,), reason=EVIL),)}
    )
    page = report_html(alphas, [allocate(alphas, 10)], others=[alphas], light=light, files=[EVIL, EVIL])
    ours = page.replace(plotly_script(), "")
    assert "<script>alert" not in ours
    assert "<img" not in ours
    outline = Outline(ours)
    assert not [a for _, attributes in outline.tags for a in attributes if a.startswith("on")]
    assert sum(tag == "script" for tag, _ in outline.tags) == (0 if light else 3)


@pytest.mark.parametrize("layers", [32, 80])
def test_the_report_of_a_large_model_stays_under_6_mb(layers, light):
    alphas = made_alphas(layers)
    schedules = [allocate(alphas, 5 * layers), allocate(alphas, 5 * layers, rule="uniform")]
    page = report_html(alphas, schedules, others=[made_alphas(layers, estimator="ks")], light=light)
    assert len(page.encode()) < 6 * 10**6


def test_a_mixture_with_thousands_of_experts_shows_one_a_layer_and_role():
    experts = tuple(
        made_matrix(layer, "up_proj", side=80).model_copy(update={"name": f"layers.{layer}.experts.{expert}.up_proj"})
        for layer in range(4)
        for expert in range(400)
    )
    page = report_html(made_of(experts), light=False)
    data = json.loads(Outline(page).text["script"][0])
    assert len(data["spectra"]["items"]) == 4
    assert "1596 more were left out" in page
    assert "The first 1200; 400 more stand in the alphas document." in page


def test_every_chart_has_words_and_a_table(alphas, light):
    page = report_html(alphas, [allocate(alphas, 40)], others=[made_alphas(8, estimator="ks")], light=light)
    outline = Outline(page)
    for key in (
        "summary",
        "alpha-by-layer",
        "alpha-by-role",
        "experts-by-layer",
        "spectra",
        "estimators",
        "matrices",
        "origin",
    ):
        assert ("section", {"aria-labelledby": f"{key}-title", "id": key}) in outline.tags
        assert ("a", {"href": f"#{key}"}) in outline.tags
    pictures = [a for tag, a in outline.tags if a.get("role") == "img"]
    assert all(picture["aria-label"] for picture in pictures)
    captions = outline.text["caption"]
    for title in ("Alpha by layer", "Alpha by layer and role", "Experts by layer", "Every matrix"):
        assert title in captions


def test_the_words_say_what_the_numbers_say(alphas):
    page = report_html(alphas, [allocate(alphas, 40)], light=True)
    least, most = min(alphas.per_layer), max(alphas.per_layer)
    found = Outline(page).text["li"]
    assert any(
        f"Layer {alphas.per_layer.index(most)} has the largest alpha ({most:.3f})" in sentence
        and f"layer {alphas.per_layer.index(least)} has the smallest ({least:.3f})" in sentence
        for sentence in found
    )
    assert any(sentence.startswith("alpha_power, 40 experts:") for sentence in found)


def test_skipped_matrices_and_those_without_alpha_have_their_reasons():
    bad = made_matrix(1, "q_proj").model_copy(
        update={"alpha": None, "status": "flat_spectrum", "reason": "all eigenvalues are equal"}
    )
    alphas = made_of((made_matrix(0, "q_proj"), bad))
    lost = SkippedMatrix(name="model.layers.0.odd", shape=(3, 3, 3), reason="3-D", by_design=False)
    page = report_html(alphas.model_copy(update={"skipped": (*alphas.skipped, lost)}), light=True)
    cells = Outline(page).text["td"]
    for expected in ("all eigenvalues are equal", "unexpected", "as intended", "model.layers.0.odd"):
        assert expected in cells
    assert "1 matrix has no alpha" in page
    assert "1 tensor was left out that one would expect" in page


def test_without_histograms_it_says_how_to_get_them(alphas, light):
    plain = alphas.model_copy(
        update={"matrices": tuple(m.model_copy(update={"esd_histogram": None}) for m in alphas.matrices)}
    )
    assert "Analyse again with --histograms" in report_html(plain, light=light)


def test_a_document_with_nothing_in_it_has_a_report(light):
    assert "No layer has an alpha." in report_html(made_of(()), light=light)


def test_the_script_gets_every_spectrum_and_the_light_page_draws_it(alphas):
    data = json.loads(Outline(report_html(alphas)).text["script"][0])
    items = data["spectra"]["items"]
    assert len(items) == len(alphas.matrices)
    for item, matrix in zip(items, alphas.matrices, strict=True):
        assert sum(item["counts"]) == sum(matrix.esd_histogram.counts)
        assert item["tail"]["name"] == f"fitted tail, alpha {matrix.alpha:.3f}"
        assert len(item["marks"]) == 2
    assert set(data["figures"]) == {"alpha-by-layer", "alpha-by-role"}
    assert report_html(alphas, light=True).count("<svg ") == 2 + len(alphas.matrices)


def test_the_commands_that_make_it_again(alphas):
    settings = {
        "include": ["a b"], "exclude": [], "fill": "median", "stability": True, "embeddings": False,
        "split_fused": False, "sampling": "farms", "farms": {"rows": 10, "ratio": 1, "windows": 3}, "base": "org/base",
    }  # fmt: skip
    analysis = alphas.analysis.model_copy(update={"settings": settings})
    model = alphas.model.model_copy(update={"commit": "abc123"})
    command = analyze_command(alphas.model_copy(update={"analysis": analysis, "model": model}))
    assert command == (
        "alphalloc analyze made-up/model --revision abc123 --estimator xmin_peak_robust --include 'a b' --fill median "
        "--base org/base --sampling farms --farms-rows 10 --farms-ratio 1 --farms-windows 3 --stability --keep-fused "
        "--histograms -o alphas.json"
    )
    page = report_html(alphas, files=["my alphas.json", "s.json"])
    assert "alphalloc report &#x27;my alphas.json&#x27; s.json -o report.html" in page


def test_agreement_of_documents(alphas):
    turned = alphas.model_copy(
        update={"layers": tuple(a.model_copy(update={"alpha": 10 - a.alpha}) for a in alphas.layers)}
    )
    table = agreement_table([alphas, turned], ["a", "b"])
    assert table.rows[0][:2] == ("a and b", "-1")
    assert table.rows[0][3] == "8"
    assert rank_correlation([(1.0, 2.0), (2.0, 2.0), (3.0, 5.0)]) == pytest.approx(0.8660254)
    assert rank_correlation([(1.0, 2.0), (1.0, 3.0)]) is None
    assert rank_correlation([(1.0, 2.0)]) is None
    assert document_names([alphas, turned], ["x.json", "y.json"]) == (
        "x.json (xmin_peak_robust)", "y.json (xmin_peak_robust)",
    )  # fmt: skip


def test_the_picture_of_a_readme(alphas):
    picture = picture_svg(alphas, [ExpertSchedule.from_counts([5] * 8)])
    assert "Alpha by layer" in picture
    assert "Experts by layer" in picture
    assert "<script" not in picture
