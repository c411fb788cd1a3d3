"""A schedule in the words of the trainer that people already run. One file a target; EXPORTERS: name -> function.

Nothing here needs torch or PEFT, but :func:`write_init_adapter`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from alphalloc.allocation import ExpertSchedule
from alphalloc.errors import InvalidParameterError
from alphalloc.export.alphalloc_peft import export_alphalloc_peft
from alphalloc.export.axolotl import export_axolotl
from alphalloc.export.init_adapter import write_init_adapter
from alphalloc.export.llamafactory import export_llamafactory
from alphalloc.export.mola import export_mola
from alphalloc.export.ms_swift import export_ms_swift
from alphalloc.export.options import Export, ExportOptions
from alphalloc.export.peft import export_peft
from alphalloc.export.plain import export_csv, export_json, export_toml, export_yaml
from alphalloc.export.single_number import export_mixlora, export_moe_peft
from alphalloc.export.trl import export_trl
from alphalloc.export.unsloth import export_unsloth
from alphalloc.export.yaml_text import edit_yaml

__all__ = ["EXPORTERS", "YAML_TARGETS", "Export", "ExportOptions", "edit_yaml", "export", "write_init_adapter"]

Exporter = Callable[[ExpertSchedule, ExportOptions], Export]

EXPORTERS: dict[str, Exporter] = {
    "peft": export_peft,
    "alphalloc-peft": export_alphalloc_peft,
    "mola": export_mola,
    "axolotl": export_axolotl,
    "llamafactory": export_llamafactory,
    "ms-swift": export_ms_swift,
    "trl": export_trl,
    "unsloth": export_unsloth,
    "mixlora": export_mixlora,
    "moe-peft": export_moe_peft,
    "json": export_json,
    "yaml": export_yaml,
    "toml": export_toml,
    "csv": export_csv,
}

ASSUMED_BLOCKS = (
    "the keys take the blocks to be called 'layers', as in Llama; others (GPT-2 'h', BERT 'layer', T5 'block') need "
    "--model or --block-list"
)

YAML_TARGETS = ("axolotl", "llamafactory")  # whose settings can be put into a user's YAML file


def export(
    schedule: ExpertSchedule, target: str, options: ExportOptions | None = None, *, into: str | None = None
) -> Export:
    """Return ``schedule`` in the words of ``target``, a key of EXPORTERS.

    ``into`` is the text of an existing YAML file: the result's text is that file with the target's keys set. Raises
    InvalidParameterError for an unknown target or one without YAML, AdapterError when the target cannot express the
    schedule, DocumentError when ``into`` is no YAML mapping.
    """
    if target not in EXPORTERS:
        raise InvalidParameterError(f"no export target is called {target!r}; there are: {', '.join(EXPORTERS)}")
    if into is not None and target not in YAML_TARGETS:
        raise InvalidParameterError(f"{target} is not written into YAML files; those are: {', '.join(YAML_TARGETS)}")
    chosen = options or ExportOptions()
    result = EXPORTERS[target](schedule, chosen)
    # A backslash behind the name: keys by layer, in JSON, YAML and Python alike.
    if "layers\\" in result.text and chosen.block_list is None and not chosen.module_paths:
        result = replace(result, notes=(*result.notes, ASSUMED_BLOCKS))
    if into is None or result.settings is None:
        return result
    text = edit_yaml(into, result.settings, remove=result.stale, keep=result.keep)
    return replace(result, text=text)
