"""The report of a model: its alphas and schedules as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from alphalloc.allocation import ExpertSchedule
from alphalloc.alphas import MatrixAlpha, ModelAlphas
from alphalloc.report import agreement, figures, html, model_charts, provenance, svg, tables, words
from alphalloc.report.charts import AnyChart, Chart

MAX_SPECTRA = 1200  # chosen here: an 80-layer model of 7 to 14 matrices a layer fits, and the file stays under 6 MB

Sections = list[tuple[str, str, str]]  # key, short name, HTML


def report_html(
    alphas: ModelAlphas,
    schedules: Sequence[ExpertSchedule] = (),
    *,
    others: Sequence[ModelAlphas] = (),
    light: bool = False,
    files: Sequence[str] = ("alphas.json",),
) -> str:
    """Return the report of ``alphas`` as one HTML document that loads nothing.

    ``schedules`` are shown side by side; ``others`` are alphas of the same model by other estimators or settings.
    ``light``: static pictures and no script (no plotly needed). ``files``: the arguments the report was made from, for
    the command that remakes it, the alphas documents first. Same input, same bytes.

    Raises MissingExtraError when plotly is not installed and ``light`` is False.
    """
    live = not light
    charts: list[AnyChart] = [model_charts.alpha_by_layer(alphas), model_charts.alpha_by_role(alphas)]
    sections: Sections = [("summary", "Summary", _summary(alphas, schedules))]
    sections += [
        (charts[0].key, "Alpha", html.chart_section(charts[0], live=live)),
        (charts[1].key, "Roles", html.chart_section(charts[1], live=live)),
    ]
    if schedules:
        charts.append(_expert_chart(schedules))
        origins = "".join(
            html.folded(f"Schedule {name}", html.definitions(provenance.schedule_origin(schedule), "origin"))
            for schedule, name in zip(schedules, model_charts.schedule_names(schedules), strict=True)
        )
        sections.append((charts[-1].key, "Experts", html.chart_section(charts[-1], live=live, more=origins)))
    spectra = _spectra(alphas, bins=64 if live else 32)  # every one of them is drawn in a light report
    sections.append(("spectra", "Spectra", _spectra_section(alphas, spectra, live=live)))
    if others:
        documents = [alphas, *others]
        names = agreement.document_names(documents, files[: len(documents)])
        charts.append(model_charts.estimators(documents, names))
        table = tables.to_html(agreement.agreement_table(documents, names))
        sections.append((charts[-1].key, "Estimators", html.chart_section(charts[-1], live=live, more=table)))
    sections.append(("matrices", "Matrices", _matrices_section(alphas)))
    sections.append(("origin", "Origin", _origin_section(alphas, files, light=light)))
    data = None
    if live:
        drawn = {chart.key: figures.specification(chart) for chart in charts}
        data = {"figures": drawn, "spectra": _spectra_data(spectra)}
    kind = f"Alphas by {alphas.analysis.estimator}" + (" of quantised weights" if alphas.model.quantized else "")
    return html.document(alphas.model.id, kind, sections, data)


def picture_svg(alphas: ModelAlphas, schedules: Sequence[ExpertSchedule] = ()) -> str:
    """Return alpha and experts by layer as one SVG, light or dark as its reader prefers: the picture of a README."""
    charts: list[AnyChart] = [model_charts.alpha_by_layer(alphas)]
    charts += [_expert_chart(schedules)] if schedules else []
    return svg.standalone(charts, height=260)


def _summary(alphas: ModelAlphas, schedules: Sequence[ExpertSchedule]) -> str:
    notes = html.bullets(alphas.warnings, "notes")
    sentences = html.bullets(words.summary(alphas, schedules), "findings")
    body = html.definitions(words.facts(alphas), "facts") + sentences
    if notes:
        body += f"<h3>Warnings of the analysis</h3>{notes}"
    return html.section("summary", "Summary", body)


def _expert_chart(schedules: Sequence[ExpertSchedule]) -> Chart:
    chart = model_charts.experts_by_layer(schedules)
    alone = len(schedules) == 1 and schedules[0].budget.unit != "ranks"
    return model_charts.with_uniform(chart, schedules[0]) if alone else chart


def _spectra(alphas: ModelAlphas, bins: int) -> list[tuple[MatrixAlpha, Chart]]:
    """The matrices whose histogram was saved, with their charts; one a layer and role where there are too many."""
    held = [matrix for matrix in alphas.matrices if matrix.esd_histogram is not None]
    if len(held) > MAX_SPECTRA:
        held = list({(m.stack, m.layer, m.role): m for m in reversed(held)}.values())[::-1][:MAX_SPECTRA]
    order = {name: i for i, name in enumerate(model_charts.roles(alphas))}
    places = {(layer.stack, layer.layer): i for i, layer in enumerate(alphas.layers)}
    held.sort(key=lambda m: (places.get((m.stack, m.layer), len(places)), order.get(m.role, len(order)), m.name))
    return [(matrix, chart) for matrix in held if (chart := model_charts.spectrum(matrix, bins)) is not None]


def _spectra_section(alphas: ModelAlphas, spectra: Sequence[tuple[MatrixAlpha, Chart]], *, live: bool) -> str:
    title = "Spectrum of a matrix" if live else "Spectra"
    if not spectra:
        hint = (
            "No histograms were saved with these alphas. Analyse again with --histograms: spectra come from the cache."
        )
        return html.section("spectra", title, "", hint)
    all_of_them = sum(matrix.esd_histogram is not None for matrix in alphas.matrices)
    left_out = all_of_them - len(spectra)
    note = (
        f"<p>{left_out} more were left out, to keep this file small: one a layer and role is here.</p>"
        if left_out
        else ""
    )
    body = _chooser(spectra) if live else _all_spectra(spectra)
    lead = (
        "Density of the eigenvalues of W Wᵀ, both axes logarithmic. The straight line is the power law that was fitted "
        "from xmin on; beyond the bulk edge a random matrix of the same shape has no eigenvalues."
    )
    return html.section("spectra", title, note + body, lead)


def _chooser(spectra: Sequence[tuple[MatrixAlpha, Chart]]) -> str:
    groups: dict[str, list[str]] = {}
    for i, (matrix, _) in enumerate(spectra):
        text = f"{matrix.role} · {matrix.name}"
        groups.setdefault(_layer_name(matrix), []).append(f'<option value="{i}">{escape(text)}</option>')
    options = "".join(f'<optgroup label="{escape(name)}">{"".join(of)}</optgroup>' for name, of in groups.items())
    table = tables.to_html(
        tables.Table("Histogram of the chosen spectrum", ("from λ", "to λ", "eigenvalues", "density"), ()),
        body_id="spectrum-rows",
    )
    select = f'<select id="spectrum-choice">{options}</select>'
    return (
        f'<p class="control"><label for="spectrum-choice">Matrix</label> {select}</p>'
        '<p id="spectrum-words" role="status"></p>'
        '<figure><div class="plot" id="spectrum-plot" role="img" aria-label="Spectrum"></div></figure>'
        "<noscript><p>Choosing a spectrum needs a script; a report made with --light shows all without.</p></noscript>"
        f"{html.folded('As a table', table)}"
    )


def _all_spectra(spectra: Sequence[tuple[MatrixAlpha, Chart]]) -> str:
    groups: dict[str, list[str]] = {}
    for matrix, chart in spectra:
        caption = f"<h3>{escape(matrix.role)}</h3><p>{escape(chart.summary)}</p>"
        small = f"<figure>{svg.picture(chart, height=260)}</figure>"
        table = html.folded("As a table", tables.to_html(tables.chart_table(chart)))
        groups.setdefault(_layer_name(matrix), []).append(f"<div>{caption}{small}{table}</div>")
    return "".join(
        html.folded(f"{name} ({len(of)})", f'<div class="many">{"".join(of)}</div>') for name, of in groups.items()
    )


def _spectra_data(spectra: Sequence[tuple[MatrixAlpha, Chart]]) -> dict[str, Any]:
    """What the script needs to draw any of them: one figure as the pattern, and the numbers of each."""
    if not spectra:
        return {}
    items = []
    for matrix, chart in spectra:
        assert matrix.esd_histogram is not None
        histogram = model_charts.merged(matrix.esd_histogram, matrix.num_eigs)
        item = {
            "words": chart.summary,
            "low": _digits(histogram.log10_low),
            "high": _digits(histogram.log10_high),
            "counts": list(histogram.counts),
            "density": [None if value is None else _digits(value) for value in chart.series[0].y],
            "marks": [[_digits(mark.x), mark.name] for mark in chart.marks],
        }
        if len(chart.series) > 1:
            tail = chart.series[1]
            ends = [_digits(value) for value in tail.y if value is not None]
            item["tail"] = {"name": tail.name, "x": [_digits(value) for value in tail.x], "y": ends}
        items.append(item)
    colours = [series.colour for series in max(spectra, key=lambda one: len(one[1].series))[1].series]
    pattern = figures.specification(Chart("", "", "", "eigenvalue λ of W Wᵀ", "density", (), x_log=True, y_log=True))
    return {"pattern": pattern, "colours": colours, "items": items}


def _matrices_section(alphas: ModelAlphas) -> str:
    shown = alphas.matrices[:MAX_SPECTRA]
    more = len(alphas.matrices) - len(shown)
    note = f"<p>The first {len(shown)}; {more} more stand in the alphas document.</p>" if more else ""
    body = note + html.folded(f"All {len(shown)} matrices", tables.to_html(tables.matrix_table(shown)))
    without = [matrix for matrix in alphas.matrices if matrix.alpha is None]
    if without:
        reasons = tables.Table(
            "Matrices without an alpha",
            ("tensor", "status", "reason"),
            tuple((matrix.name, matrix.status, matrix.reason or "") for matrix in without[:MAX_SPECTRA]),
        )
        body += f"<h3>Without an alpha</h3>{tables.to_html(reasons)}"
    skipped = tables.skipped_table(alphas)
    if skipped.rows:
        body += f"<h3>Left out</h3>{tables.to_html(skipped)}"
    return html.section("matrices", "Matrices", body)


def _origin_section(alphas: ModelAlphas, files: Sequence[str], *, light: bool) -> str:
    body = html.definitions(provenance.origin(alphas), "origin")
    body += html.made_again([provenance.analyze_command(alphas), provenance.report_command(files, light=light)])
    return html.section("origin", "Where this comes from", body)


def _layer_name(matrix: MatrixAlpha) -> str:
    return f"layer {model_charts.label(matrix.stack, matrix.layer)}" if matrix.layer >= 0 else "outside the blocks"


def _digits(value: float) -> float:
    """Four significant digits: all that a picture shows."""
    return float(f"{value:.4g}")
