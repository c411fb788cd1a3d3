"""Fixtures of the training tests: a tiny Llama with a tokenizer and a chat template, instruction files, recipes."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("peft")

CHAT = (
    "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The builders of tests/peft/tiny_models.py."""
    path = Path(__file__).parents[1] / "peft" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("tiny_models", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test asks a hub or writes to the user's cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))  # its list of fonts takes seconds


@pytest.fixture(scope="session")
def model_folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved tiny Llama of 3 layers with a word tokenizer (w3 .. w63) that has a chat template."""
    folder = tmp_path_factory.mktemp("model")
    tiny.llama().save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tokenizer(model_folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def data_file(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """22 instructions of 5 to 11 words; the answer is one of two words, by the first word of the prompt."""
    rows = [
        {"instruction": text, "input": "", "output": "w5" if int(text.split()[0][1:]) % 2 else "w6"}
        for text in tiny.sentences(22)
    ]
    return str(write_jsonl(tmp_path_factory.mktemp("data") / "tiny.jsonl", rows))


@pytest.fixture
def recipe(model_folder: str, data_file: str, tmp_path: Path) -> Callable[..., Any]:
    """``recipe("optim.steps=3", adapter={...})``: a recipe of 5 steps of 4 examples on the tiny model."""
    from alphalloc.training.recipe import Recipe

    def build(*overrides: str, **sections: Any) -> Any:
        base = Recipe.of(
            {
                "model": model_folder,
                "data": {"train": data_file, "template": "plain"},
                "output": str(tmp_path / "run"),
                "schedule": {"counts": [2, 1, 4]},
                "adapter": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]},
                "optim": {"steps": 5, "batch_size": 4, "learning_rate": 0.01},
                "run": {"log_every": 1, "picture": False, "device": "cpu"},
            }
        )
        return base.changed(*overrides, **sections)

    return build
