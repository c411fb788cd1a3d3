"""The shell of every report: one self-contained HTML file; everything that came from outside is escaped here."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from alphalloc.errors import MissingExtraError
from alphalloc.report import svg, tables
from alphalloc.report.axes import HEIGHT
from alphalloc.report.charts import AnyChart

EMPTY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"


def section(key: str, title: str, body: str, words: str = "") -> str:
    """Return a section with its heading; ``body`` is HTML, ``title`` and ``words`` are text."""
    lead = f"<p>{escape(words)}</p>" if words else ""
    head = f'<h2 id="{key}-title">{escape(title)}</h2>'
    return f'<section aria-labelledby="{key}-title" id="{key}">{head}{lead}{body}</section>'


def chart_section(chart: AnyChart, *, live: bool, more: str = "") -> str:
    """Return a section that shows ``chart``: drawn, in a sentence, and as a table."""
    return section(chart.key, chart.title, figure(chart, live=live) + more, chart.summary)


def figure(chart: AnyChart, *, live: bool, height: int = HEIGHT) -> str:
    """Return the chart as a static picture and a table; ``live`` adds the place where a script draws it instead."""
    place = (
        f'<div class="plot" data-figure="{chart.key}" role="img" aria-label="{escape(chart.title)}. '
        f'{escape(chart.summary)}" hidden></div>'
        if live
        else ""
    )
    picture = f'<div class="static">{svg.picture(chart, height=height)}</div>'
    return f"<figure>{picture}{place}</figure>{folded('As a table', tables.to_html(tables.chart_table(chart)))}"


def folded(title: str, body: str) -> str:
    """Return ``body`` behind a title that opens it."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def definitions(pairs: Sequence[tuple[str, str]], kind: str) -> str:
    """Return names with their values as a list of class ``kind``."""
    entries = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="{kind}">{entries}</dl>'


def made_again(commands: Sequence[str]) -> str:
    """Return the commands that make a report again."""
    text = escape("\n".join(commands))
    return f'<h3>Made again by</h3><pre tabindex="0" aria-label="Commands"><code>{text}</code></pre>'


def bullets(sentences: Sequence[str], kind: str = "") -> str:
    """Return the sentences as a list."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def document(
    title: str, subtitle: str, sections: Sequence[tuple[str, str, str]], data: Mapping[str, Any] | None = None
) -> str:
    """Return the whole file. ``sections`` are (key, short name, HTML); ``data`` is what the script draws.

    With ``data`` plotly and our own script are written into the file, and a policy allows those two and nothing else;
    without, no script is in it. Nothing is loaded from anywhere. Raises MissingExtraError when plotly is needed and not
    installed.
    """
    scripts = () if data is None else (plotly_script(), _text("report.js"))
    policy = content_policy() if scripts else EMPTY_POLICY
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name, _ in sections)
    carried = "" if data is None else f'<script type="application/json" id="report-data">{_json(data)}</script>'
    return "".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title><style>{_text('style.css')}</style></head>\n<body>",
            '<a class="skip" href="#content">Skip to the content</a>',
            f'<header><p class="kind">{escape(subtitle)}</p><h1>{escape(title)}</h1>',
            f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n<main id="content">',
            "\n".join(html for _, _, html in sections),
            f"</main>\n{carried}",
            *(f"<script>{script}</script>" for script in scripts),
            "</body></html>\n",
        ]
    )


def content_policy() -> str:
    """Return the Content-Security-Policy of a report with scripts: those two, by their hashes, and nothing else.

    A server that hands out a report sends the same one. Raises MissingExtraError without plotly.
    """
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in (plotly_script(), _text("report.js")))
    return f"{EMPTY_POLICY}; script-src {allowed}"


@cache
def plotly_script() -> str:
    """Return plotly.min.js as the installed plotly wheel has it. Raises MissingExtraError without one."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as exc:
        raise MissingExtraError(
            "an interactive report needs plotly: pip install 'alphalloc[report]'; or --light, which needs nothing"
        ) from exc
    text: str = get_plotlyjs()
    return text.replace("\r\n", "\n")  # as an HTML parser reads it, which is what the hash is of


def has_plotly() -> bool:
    """Return whether plotly is installed."""
    from importlib.util import find_spec

    return find_spec("plotly") is not None


@cache
def _text(name: str) -> str:
    return (resources.files("alphalloc.report") / name).read_text(encoding="utf-8")


@cache
def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
