"""``alphalloc train``: options, recipes and overrides, what is printed where, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

from alphalloc.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model ``m`` with a tokenizer, eight examples ``d.jsonl`` and a schedule."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from alphalloc.allocation import ExpertSchedule

    folder = tmp_path_factory.mktemp("train")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "m")
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    own = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1", unk_token="w0")
    own.save_pretrained(folder / "m")
    rows = [{"instruction": f"w{i} w{i + 9}", "output": f"w{i % 2 + 2}"} for i in range(4, 12)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ExpertSchedule.from_counts([2, 3]).save(folder / "schedule.json")
    return folder


@pytest.fixture
def alphalloc(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process, in ``place``: (exit code, stdout, stderr)."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(list(arguments))
        return (code, *capfd.readouterr())

    return run


OPTIONS = ("--model", "m", "--schedule", "schedule.json", "--data", "d.jsonl", "--steps", "5")
SMALL = ("data.template=plain", "optim.batch_size=4", "adapter.r=2", "run.device=cpu", "run.picture=false")


def test_options_make_a_run_and_a_summary(alphalloc: Any, place: Path) -> None:
    code, out, err = alphalloc("train", *OPTIONS, *SMALL, "-o", "first")
    assert code == 0, err
    assert "adapter               first/adapter\n" in out
    assert "steps                 5\n" in out
    assert "step 5 of 5, loss " in err
    assert "wrote first/adapter" in err
    recipe = (place / "first" / "recipe.yaml").read_text()
    assert "file: schedule.json" in recipe
    # The recipe it wrote makes the same run again; what the command line says wins over it.
    code, out, err = alphalloc("train", "first/recipe.yaml", "optim.learning_rate=1e-4", "-o", "again", "--json", "-q")
    assert code == 0, err
    document = json.loads(out)
    assert (document["folder"], document["steps"]) == ("again", 5)
    card = json.loads((place / "again" / "card.json").read_text())
    assert card["recipe"]["optim"]["learning_rate"] == 1e-4
    assert document["parameters"] == card["parameters"]["trainable"]


def test_a_finished_run_is_answered_from_its_card(alphalloc: Any, place: Path) -> None:
    arguments = ("train", *OPTIONS, *SMALL, "-o", "third", "--json", "-q")
    code, out, err = alphalloc(*arguments)
    assert code == 0, err
    assert alphalloc(*arguments, "--resume") == (0, out, "")
    code, out, err = alphalloc(*arguments)
    assert (code, out) == (2, "")
    assert "third is not empty; resume what is in it, or choose another output" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a recipe file, or --model and --data"),
        (("--model", "m"), "expected a recipe file, or --model and --data"),
        (("nothing.yaml",), "nothing.yaml: cannot be read as a recipe"),
        ((*OPTIONS, "optim.lerning_rate=1"), "no key 'optim.lerning_rate'; did you mean 'optim.learning_rate'?"),
        ((*OPTIONS, "--preset", "mula"), "no preset 'mula'; did you mean 'mola'?"),
        ((*OPTIONS[:2], "--data", "none.jsonl"), "none.jsonl: cannot be read"),
        ((*OPTIONS, "data.cutoff=4"), "examples is left to train on"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, alphalloc: Any, place: Path
) -> None:
    code, out, err = alphalloc("train", *arguments, "-o", "never", "-q")
    assert (code, out) == (2, "")
    assert message in err
    assert not (place / "never").exists()
