"""Fixtures of the PEFT tests: the tiny models as a module, and a saved base model and adapter."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("peft")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The builders of tiny_models.py."""
    return _load("tiny_models")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks a hub: the variable is for processes that a test starts, the constant for this one."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def base_folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved tiny Llama with a tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tiny.llama().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def base(base_folder: str) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(base_folder)


@pytest.fixture(scope="session")
def adapter_folder(tiny: Any, base_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter that changes the output of ``base_folder``."""
    import peft
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    peft.get_peft_model(LlamaForCausalLM.from_pretrained(base_folder), tiny.moe_config()).save_pretrained(str(folder))
    return str(folder)
