"""The JSON Schema of a saved schedule, for programs in other languages."""

from __future__ import annotations

from typing import Any

from alphalloc.allocation.schedule import ID_PREFIX, KIND, ExpertSchedule


def schedule_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a saved schedule."""
    schema = ExpertSchedule.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = KIND
    schema["required"] = sorted({*schema["required"], "kind", "schema_version", "id", "created_by"})
    schema["properties"]["id"] = {"type": "string", "pattern": f"^{ID_PREFIX}[0-9a-f]{{32}}$", "title": "Id"}
    return schema
