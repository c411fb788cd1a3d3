"""A hub model by its headers alone: the same checkpoint as after a download, and nothing downloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer
from safetensors.numpy import save_file

SCRIPT = """
import json, sys
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import AlphallocError

def describe(model, options):
    try:
        found = open_checkpoint(model, **options)
    except AlphallocError as exc:
        return {"error": type(exc).__name__, "message": str(exc)}
    try:
        load = "values" if found.matrices[0].load().size else ""
    except AlphallocError as exc:
        load = str(exc)
    return {
        "same": [found.model_id, found.revision, found.commit, found.fingerprint, found.format, found.architecture,
                 [path.name for path in found.files],
                 [[m.name, m.layer, m.role, m.shape, m.dtype, m.nbytes, m.offset] for m in found.matrices],
                 [[s.name, s.reason] for s in found.skipped]],
        "files": [str(path) for path in found.files], "notes": list(found.notes), "load": load,
    }

print(json.dumps([describe(*call) for call in json.loads(sys.argv[1])]))
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def opened(hub: HubServer, home: Path, *calls: tuple[str, dict[str, Any]], **environment: str) -> list[dict[str, Any]]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE_"))}
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(calls)]
    done = subprocess.run(
        command, env=inherited | settings | environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def sharded(folder: Path, side: int = 400) -> Path:
    """A model of two shards, 9 MB; the second has a header of more than 1 MiB."""
    rng = np.random.default_rng(0)
    names = [f"model.layers.{layer}.mlp.{role}.weight" for layer in range(4) for role in ("up_proj", "down_proj")]
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    folder.mkdir()
    for file in sorted(set(weight_map.values())):
        tensors = {n: rng.standard_normal((side, 2 * side)).astype(np.float32) for n in names if weight_map[n] == file}
        notes = {"note": "x" * (3 * 2**19)} if file.startswith("model-00002") else None
        save_file(tensors, folder / file, metadata=notes)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return folder


HEADERS = {"headers_only": True}


def test_headers_alone_give_the_checkpoint_that_a_download_gives(hub, tmp_path):
    commit = hub.add_model("org/model", sharded(tmp_path / "model"))
    (seen,) = opened(hub, tmp_path / "home", ("org/model", HEADERS))
    assert seen["same"][2] == commit
    assert seen["files"] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert seen["notes"] == ["org/model: only headers were read, nothing was downloaded"]
    assert "only headers were read" in seen["load"]
    assert bytes_under(tmp_path / "home") < 10_000 < bytes_under(tmp_path / "model")
    downloaded, again = opened(hub, tmp_path / "home", ("org/model", {}), ("org/model", HEADERS))
    assert downloaded["same"] == seen["same"]
    assert again == downloaded | {"notes": again["notes"]}  # what lies in the cache is taken from there
    assert again["load"] == "values"


def test_a_gguf_header_of_several_megabytes(hub, tmp_path, smollm2_file):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / smollm2_file.name).symlink_to(smollm2_file)
    hub.add_model("org/small", tmp_path / "model")
    (seen,) = opened(hub, tmp_path / "home", ("org/small", HEADERS))
    assert len(seen["same"][7]) == 210
    assert bytes_under(tmp_path / "home") < 10_000
    assert 1 < sum(method == "GET" and path.endswith(".gguf") for method, path in hub.requests) < 6


def test_pytorch_files_are_downloaded(hub, tmp_path):
    import torch

    (tmp_path / "model").mkdir()
    state = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(8, 9) for i in range(2)}
    torch.save(state, tmp_path / "model" / "pytorch_model.bin")
    hub.add_model("org/old", tmp_path / "model")
    (seen,) = opened(hub, tmp_path / "home", ("org/old", HEADERS))
    assert seen["load"] == "values"


def test_what_the_hub_refuses_has_its_name(hub, tmp_path):
    folder = sharded(tmp_path / "model", side=20)
    hub.add_model("org/gated", folder, gated=True)
    hub.add_model("org/open", folder)
    calls = [("org/gated", HEADERS), ("org/none", HEADERS), ("org/open", {**HEADERS, "revision": "v9"})]
    calls.append(("org/open", {**HEADERS, "revision": "../x"}))
    answers = opened(hub, tmp_path / "home", *calls)
    errors = ["GatedModelError", "CheckpointNotFoundError", "RevisionNotFoundError", "RevisionNotFoundError"]
    assert [answer["error"] for answer in answers] == errors
    (offline,) = opened(hub, tmp_path / "home", ("org/open", HEADERS), HF_HUB_OFFLINE="1")
    assert offline["error"] == "HubUnreachableError"


@pytest.mark.parametrize("damage", ["cut", "length", "json"])
def test_a_damaged_header_is_refused_as_from_disk(hub, tmp_path, damage):
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "model.safetensors"
    tensors = {f"layers.{i}.up.weight": np.zeros((20, 30), np.float32) for i in range(2)}
    save_file(tensors, path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-100]
    elif damage == "length":
        data[0:8] = (2**40).to_bytes(8, "little")
    else:
        data[8:10] = b"]]"
    path.write_bytes(data)
    hub.add_model("org/bad", folder)
    seen, downloaded = opened(hub, tmp_path / "home", ("org/bad", HEADERS), ("org/bad", {}))
    assert seen["error"] == downloaded["error"] == "CorruptCheckpointError"
    assert seen["message"].partition("model.safetensors")[2] == downloaded["message"].partition("model.safetensors")[2]
