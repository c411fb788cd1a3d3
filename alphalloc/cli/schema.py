"""``alphalloc schema``: the JSON Schema of the documents that this program writes."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from alphalloc.cli import output


class Document(enum.StrEnum):
    """A kind of document."""

    schedule = "schedule"
    alphas = "alphas"


Which = Annotated[Document, typer.Argument(help="schedule.json or alphas.json.")]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(document: Which = Document.schedule) -> None:
    """Print the JSON Schema of a document."""
    from alphalloc.allocation import schedule_schema
    from alphalloc.alphas import ModelAlphas
    from alphalloc.documents import pretty_json

    if document is Document.schedule:
        text = pretty_json(schedule_schema())
    else:
        text = pretty_json({"$schema": DIALECT, **ModelAlphas.model_json_schema(mode="serialization")})
    output.print_json(text)
