"""Settings in a user's YAML: comments, order and quotes stay; what is written is what is read."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from laws import EXAMPLES
from ruamel.yaml import YAML

from alphalloc.allocation import allocate
from alphalloc.errors import DocumentError, InvalidParameterError
from alphalloc.export import ExportOptions, edit_yaml, export
from alphalloc.export.yaml_text import plain_yaml

USER_FILE = """\
# my run
base_model: HuggingFaceTB/SmolLM2-135M   # small
adapter: lora  # was qlora

lora_r: 8
lora_rank_pattern:
  old_key: 3  # from another model
datasets:
  - path: data.jsonl
    type: "alpaca"
learning_rate: 3e-4
"""

leaves = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
values = st.recursive(
    leaves | texts,
    lambda inner: st.lists(leaves | texts, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(document=st.dictionaries(texts.filter(bool), values, min_size=1, max_size=4))
@settings(max_examples=EXAMPLES)
def test_what_is_written_is_what_is_read(document: dict[str, Any]) -> None:
    assert YAML(typ="safe").load(plain_yaml(document)) == document


def test_an_edit_touches_its_own_keys_only() -> None:
    schedule = allocate([2.0, 3.0, 4.0], 15)
    result = export(schedule, "axolotl", ExportOptions(r=2), into=USER_FILE)
    assert result.settings is not None
    read = YAML(typ="safe").load(result.text)
    assert {key: read[key] for key in result.settings} == dict(result.settings)
    for line in ("# my run", "base_model: HuggingFaceTB/SmolLM2-135M   # small", '    type: "alpaca"'):
        assert line in result.text.splitlines()
    assert "learning_rate: 3e-4" in result.text  # not rewritten as 0.0003
    assert "old_key" not in result.text  # another model's layers must not stay
    order = [line.partition(":")[0] for line in result.text.splitlines() if line[:1].isalpha()]
    assert order[:6] == ["base_model", "adapter", "lora_r", "lora_rank_pattern", "datasets", "learning_rate"]


def test_keys_that_would_contradict_are_taken_out() -> None:
    uniform = export(allocate([2.0, 3.0], 10, rule="uniform"), "axolotl", into=USER_FILE).text
    assert "lora_rank_pattern" not in uniform  # another schedule's
    assert uniform.splitlines()[0] == "# my run"
    options = ExportOptions(target_modules=("q_proj",))
    listed = export(allocate([2.0, 3.0], 10), "axolotl", options, into="lora_target_linear: true\nseed: 1\n").text
    assert "lora_target_linear" not in listed
    assert YAML(typ="safe").load(listed)["lora_target_modules"] == ["q_proj"]


def test_a_quantised_base_stays_quantised() -> None:
    text = "adapter: qlora\nload_in_4bit: true\n"
    assert export(allocate([2.0, 3.0], 10), "axolotl", into=text).text.startswith(text)


def test_editing_twice_changes_nothing_more() -> None:
    schedule = allocate([2.0, 3.0, 4.0], 15)
    once = export(schedule, "axolotl", into=USER_FILE).text
    assert export(schedule, "axolotl", into=once).text == once


def test_lists_keep_their_indentation() -> None:
    for text in ("a:\n- 1\n- 2\nb: 3\n", "a:\n  - 1\n  - 2\nb: 3\n", "a:\n    - 1\nb: 3\n"):
        assert edit_yaml(text, {"b": 4}) == text.replace("b: 3", "b: 4")


def test_an_empty_file_gets_the_settings() -> None:
    assert edit_yaml("", {"lora_r": 8}) == "lora_r: 8\n"
    assert edit_yaml("# nothing yet", {"lora_r": 8}) == "# nothing yet\nlora_r: 8\n"


@pytest.mark.parametrize("text", ["a: [1", "a: 1\n  b: 2", "- 1\n- 2\n", "just text", "a: 1\na: 2\n"])
def test_what_is_no_settings_file(text: str) -> None:
    with pytest.raises(DocumentError, match=r"the YAML file: (not valid YAML|expected a mapping)"):
        edit_yaml(text, {"lora_r": 8})


def test_only_yaml_targets_are_written_into_yaml() -> None:
    with pytest.raises(InvalidParameterError, match="trl is not written into YAML files; those are: axolotl"):
        export(allocate([2.0, 3.0], 8), "trl", into="a: 1\n")


def test_keys_that_yaml_would_read_otherwise_are_quoted() -> None:
    text = plain_yaml({"on": "yes", "3": "null", "a": "x: y", "p": r"layers\.3\..*", "e": []})
    assert YAML(typ="safe").load(text) == {"on": "yes", "3": "null", "a": "x: y", "p": r"layers\.3\..*", "e": []}
    assert json.dumps(r"layers\.3\..*") in text
