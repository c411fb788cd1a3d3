"""The README is true: its code runs, its table is what the demo prints, its rooms and paths exist."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import transformers
from file_list import file_list, shown
from floors import FLOORS
from hub_server import HubServer
from tiny_llama import save_tiny_llama

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MODEL = "meta-llama/Llama-2-7b-hf"
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


BASH = [block for block in blocks("bash") if "make demo" not in block]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):
    """A loopback stand-in of the hub that serves a sharded tiny Llama under the id the README uses."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    save_tiny_llama(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    _tokenizer().save_pretrained(folder)
    with HubServer() as server:
        server.add_model(MODEL, folder)
        yield server


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A word-level tokenizer with the words of the README's training example."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "Is", "an", "even", "number", "?", "yes", "no", *"12345678"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("home")
    return {
        **os.environ,
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "NO_COLOR": "1",
    }


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all blocks: later ones read what earlier ones wrote."""
    return tmp_path_factory.mktemp("readme")


def run(command: list[str], environment: dict[str, str], folder: Path) -> str:
    result = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def test_every_python_block_runs_in_order(environment, workplace):
    output = run([sys.executable, "-c", "\n".join(blocks("python"))], environment, workplace)
    assert "trainable params" in output
    assert {"alphas.json", "schedule.json"} <= {path.name for path in workplace.iterdir()}


@pytest.mark.parametrize("block", BASH, ids=lambda block: block.split("\n")[0])
def test_every_shell_block_runs(block, environment, workplace):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = "set -e -m\n" + block.replace("8000", str(port))
    assert run(["bash", "-c", script], environment, workplace)


def test_the_table_is_what_the_demo_prints(environment, smollm2_file, tmp_path):
    printed = run(
        [str(BIN / "alphalloc"), "analyze", str(smollm2_file), "--experts", "150", "--quiet"], environment, tmp_path
    )
    shown = README.split("<!-- demo output -->\n```text\n")[1].split("```")[0]
    assert shown == printed, "the README's table is out of date: paste what `make demo` prints"


def test_the_rooms_are_those_of_the_floor_test():
    listed: dict[str, int] = {}
    for floor, rooms in re.findall(r"^\| (\d) \| (.*?) \|", README, re.MULTILINE):
        for room in re.findall(r"`alphalloc/(\w+)(?:\.py|/)`", rooms):
            listed[room] = int(floor)
    here = {
        path.stem for path in (ROOT / "alphalloc").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    expected = {room: floor for room, floor in FLOORS.items() if room in here and room != "__main__"}
    assert listed == expected


def test_every_file_is_listed_in_one_line():
    assert shown(README) == file_list(), "run: python tests/support/file_list.py"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:alphalloc|service|tests|reports)/[\w/.]*)`", README))))
def test_every_path_named_exists(path):
    assert (ROOT / path).exists()
