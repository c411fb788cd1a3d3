"""Registration: idempotent, refusing, loud when missing."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from typing import Any

import peft
import pytest
from peft import PeftType, mapping

from alphalloc.errors import AdapterError, MissingExtraError
from alphalloc.peft import MoELoraConfig, MoELoraModel, register

NAME = "ALPHALLOC_MOLORA"


def test_the_lookup_dictionaries_answer_to_the_plain_name() -> None:
    assert mapping.PEFT_TYPE_TO_CONFIG_MAPPING[NAME] is MoELoraConfig  # type: ignore[index]
    assert mapping.PEFT_TYPE_TO_TUNER_MAPPING[NAME] is MoELoraModel  # type: ignore[index]
    assert mapping.PEFT_TYPE_TO_PREFIX_MAPPING[NAME] == "alphalloc_molora_"  # type: ignore[index]


def test_the_key_answers_as_a_member_of_the_enum() -> None:
    key: Any = register.peft_type()
    assert (key.value, key.name, str(key)) == (NAME, NAME, f"PeftType.{NAME}")
    assert (PeftType.LORA.value, PeftType.LORA.name, str(PeftType.LORA)) == ("LORA", "LORA", "PeftType.LORA")
    assert json.dumps(key) == json.dumps(NAME)
    assert copy.deepcopy(key) == pickle.loads(pickle.dumps(key)) == NAME


def test_registering_again_changes_nothing() -> None:
    before = dict(mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
    register.register(MoELoraConfig, MoELoraModel)
    assert before == mapping.PEFT_TYPE_TO_CONFIG_MAPPING


def test_a_name_held_by_another_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mapping.PEFT_TYPE_TO_CONFIG_MAPPING, NAME, peft.LoraConfig)  # type: ignore[misc]
    with pytest.raises(AdapterError, match=r"expected the PEFT type ALPHALLOC_MOLORA to be free, but .*LoraConfig"):
        register.register(MoELoraConfig, MoELoraModel)


def test_a_prefix_held_by_another_type_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mapping.PEFT_TYPE_TO_PREFIX_MAPPING, PeftType.LORA, "alphalloc_molora_")
    with pytest.raises(AdapterError, match="expected the parameter prefix 'alphalloc_molora_' to be free"):
        register.register(MoELoraConfig, MoELoraModel)


@pytest.mark.parametrize("version", ["0.17.1", "0.18.0", "0.22.0", "0.22.0.dev0", "1.0"])
def test_an_untested_peft_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft, "__version__", version)
    with pytest.raises(AdapterError, match=rf"expected peft>=0.18.1,<0.22.*peft {version} is installed; run: pip"):
        register.installed_peft()


@pytest.mark.parametrize("version", ["0.18.1", "0.20.0", "0.21.2", "0.21.3.dev0"])
def test_a_tested_peft_is_accepted(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft, "__version__", version)
    assert register.installed_peft() == version


def test_a_missing_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'alphalloc\[peft\]'"):
        register.installed_peft()


def test_saved_keys_lose_the_adapter_name_and_nothing_else() -> None:
    key = "base_model.model.default.q_proj.alphalloc_molora_adapters.default.experts_a.weight"
    assert register.saved_key(key, "default") == (
        "base_model.model.default.q_proj.alphalloc_molora_adapters.experts_a.weight"
    )
    assert register.saved_key(key, "other") is None
    assert register.saved_key("base_model.model.q_proj.base_layer.weight", "default") is None


def test_loading_without_the_import_fails_loudly(adapter_folder: str, base_folder: str) -> None:
    script = (
        "import sys, peft, transformers\n"
        f"base = transformers.LlamaForCausalLM.from_pretrained({base_folder!r})\n"
        "try:\n"
        f"    peft.PeftModel.from_pretrained(base, {adapter_folder!r})\n"
        "except KeyError as exc:\n"
        "    print('refused', exc)\n"
        "assert 'alphalloc' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert run.stdout.strip() == f"refused '{NAME}'", run.stderr
