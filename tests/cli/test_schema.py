"""schema: JSON Schemas that real documents satisfy and spoiled ones do not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

import alphalloc

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_documents_satisfy_their_schemas(run: Run, tiny: Path) -> None:
    alphas = alphalloc.analyze(tiny, cache=False)
    documents = {"alphas": alphas.to_json(), "schedule": alphalloc.allocate(alphas, 20).to_json()}
    for kind, text in documents.items():
        schema = json.loads(run("schema", kind).stdout)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        jsonschema.Draft202012Validator.check_schema(schema)
        value = json.loads(text)
        jsonschema.validate(value, schema)
        for spoiled in ({**value, "kind": "Other"}, {**value, "layers": None}, {}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(spoiled, schema)


def test_schedule_is_the_default(run: Run) -> None:
    assert run("schema").stdout == run("schema", "schedule").stdout
