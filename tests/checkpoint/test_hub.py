"""Hub ids against a stand-in hub on the loopback; each open runs in a process of its own, with its own cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from alphalloc.checkpoint.hub import check_revision, is_model_id
from alphalloc.errors import RevisionNotFoundError

SCRIPT = """
import json, sys
from alphalloc.checkpoint import open_checkpoint
from alphalloc.errors import AlphallocError


def describe(model, options):
    try:
        found = open_checkpoint(model, **options)
    except AlphallocError as exc:
        return {"error": type(exc).__name__, "message": str(exc), "cause": type(exc.__cause__).__name__}
    return {
        "model_id": found.model_id, "revision": found.revision, "commit": found.commit, "format": found.format,
        "files": [path.name for path in found.files], "matrices": len(found.matrices), "notes": list(found.notes),
        "sums": {m.name: float(m.load().astype("float64").sum()) for m in found.matrices},
        "architecture": found.architecture,
    }


print(json.dumps([describe(*call) for call in json.loads(sys.argv[1])]))
"""


@dataclass(frozen=True)
class Opener:
    """Opens a model in a new process whose cache and hub are this test's."""

    endpoint: str
    home: Path

    def __call__(self, model: str, environment: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
        return self.all([(model, options)], environment)[0]

    def all(
        self, calls: list[tuple[str, dict[str, Any]]], environment: dict[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Open several in one process."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE_"))}
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(calls)],
            env=inherited | settings | (environment or {}), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return result


@pytest.fixture
def opened(hub: Any, tmp_path: Path) -> Opener:
    return Opener(hub.endpoint, tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path, llama_state: Callable[..., dict[str, Any]]) -> Path:
    """A sharded model as repositories hold it: with weights in a second format, a README and a subfolder."""
    path = tmp_path / "repository"
    (path / "onnx").mkdir(parents=True)
    state = llama_state(4)
    names = sorted(state)
    weight_map = {name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        save_file({name: state[name] for name in names if weight_map[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    for other in ("README.md", "pytorch_model.bin", "onnx/model.onnx", "tokenizer.json"):
        (path / other).write_bytes(b"not needed")
    return path


def test_a_sharded_model_is_fetched_read_and_kept(
    hub: Any, opened: Opener, folder: Path, llama_state: Callable[..., dict[str, Any]]
) -> None:
    commit = hub.add_model("org/model", folder)
    first = opened("org/model")
    assert first["commit"] == commit
    assert (first["model_id"], first["revision"], first["format"]) == ("org/model", None, "safetensors")
    assert first["files"] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert first["architecture"] == "LlamaForCausalLM"
    state = llama_state(4)
    assert len(first["sums"]) == first["matrices"] == 28
    for name, total in first["sums"].items():
        assert total == pytest.approx(float(np.sum(state[name], dtype=np.float64)), abs=1e-9)
    fetched = {path.rsplit("/", 1)[1] for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    assert fetched == {*first["files"], "model.safetensors.index.json", "config.json"}

    hub.requests.clear()
    assert opened("org/model") == first
    assert not [path for _, path in hub.requests if "/resolve/" in path]

    hub.requests.clear()
    offline, pinned = opened.all([("org/model", {}), ("org/model", {"revision": commit})], {"HF_HUB_OFFLINE": "1"})
    assert offline["notes"] == ["org/model: the hub was not asked, the cached commit is read"]
    assert offline | {"notes": []} == first
    assert pinned == first | {"revision": commit}
    assert hub.requests == []

    hub.status = 503
    assert opened("org/model")["commit"] == commit


def test_branches_are_pinned_to_their_commit(hub: Any, opened: Opener, folder: Path) -> None:
    commit = hub.add_model("org/model", folder, branches=("main", "refs/pr/3", "v1.0"))
    calls = [("org/model", {"revision": revision}) for revision in ("v1.0", "refs/pr/3")]
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        found = opened.all(calls, environment)
        assert [(one["revision"], one["commit"]) for one in found] == [("v1.0", commit), ("refs/pr/3", commit)]


def test_a_gated_model_names_page_and_token(hub: Any, opened: Opener, folder: Path) -> None:
    hub.add_model("meta/gated", folder, gated=True)
    refused = opened("meta/gated")
    assert refused["error"] == "GatedModelError"
    assert refused["cause"] == "GatedRepoError"
    for word in (f"accept its licence at {hub.endpoint}/meta/gated", "HF_TOKEN"):
        assert word in refused["message"]
    assert opened("meta/gated", {"HF_TOKEN": "hf_test"})["matrices"] == 28


def test_an_unknown_model_and_an_unknown_revision(hub: Any, opened: Opener, folder: Path) -> None:
    hub.add_model("org/model", folder)
    missing, revision = opened.all([("org/nothing", {}), ("org/model", {"revision": "v9"})])
    assert missing["error"] == "CheckpointNotFoundError"
    assert "org/nothing: neither a local path nor a model on the hub" in missing["message"]
    assert revision["error"] == "RevisionNotFoundError"
    assert "org/model has no revision 'v9'" in revision["message"]


def test_offline_and_not_cached(hub: Any, opened: Opener, folder: Path) -> None:
    hub.add_model("org/model", folder)
    refused = opened("org/model", {"HF_HUB_OFFLINE": "1"})
    assert refused["error"] == "HubUnreachableError"
    assert "HF_HUB_OFFLINE is set; unset it, or run once online" in refused["message"]
    assert hub.requests == []


def test_an_incomplete_cache_does_not_pass_for_the_model(hub: Any, opened: Opener, folder: Path) -> None:
    commit = hub.add_model("org/model", folder)
    opened("org/model")
    snapshot = opened.home / "hub" / "models--org--model" / "snapshots" / commit
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    assert opened("org/model", {"HF_HUB_OFFLINE": "1"})["error"] == "HubUnreachableError"
    assert opened("org/model")["matrices"] == 28


def test_a_hub_that_is_down_or_absent(hub: Any, opened: Opener) -> None:
    hub.status = 500
    assert opened("org/model")["error"] == "HubUnreachableError"
    hub.status = 403
    assert opened("org/model")["error"] == "CheckpointError"
    refused = Opener("http://127.0.0.1:1", opened.home)("org/model")
    assert refused["error"] == "HubUnreachableError"
    assert "http://127.0.0.1:1 did not answer" in refused["message"]


def test_a_repository_in_another_layout_is_refused_before_any_download(
    hub: Any, opened: Opener, tmp_path: Path
) -> None:
    layouts = {
        "consolidated.01.pth": ("CorruptCheckpointError", "rank 0 is missing"),
        "README.md": ("CheckpointNotFoundError", "expected .safetensors"),
    }
    for at, name in enumerate(layouts):
        path = tmp_path / f"r{at}"
        path.mkdir()
        (path / name).write_bytes(b"")
        hub.add_model(f"org/m{at}", path)
    answers = opened.all([(f"org/m{at}", {}) for at in range(len(layouts))])
    for refused, (error, word) in zip(answers, layouts.values(), strict=True):
        assert refused["error"] == error
        assert word in refused["message"]
    assert not [path for _, path in hub.requests if "/resolve/" in path]


def test_an_original_release_is_fetched_with_its_params(hub: Any, opened: Opener, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "llama"
    path.mkdir()
    (path / "params.json").write_text('{"dim": 8, "n_heads": 2}')
    for rank in range(2):
        part = {f"layers.{i}.attention.w{p}.weight": torch.ones(4, 8) for i in range(2) for p in "qkv"}
        torch.save(part, path / f"consolidated.0{rank}.pth")
    for other in ("checklist.chk", "tokenizer.model", "README.md"):
        (path / other).write_bytes(b"not needed")
    hub.add_model("meta/llama", path)
    found = opened("meta/llama")
    assert found["files"] == ["consolidated.00.pth", "consolidated.01.pth"]
    assert set(found["sums"].values()) == {64.0}
    fetched = {path.rpartition("/")[2] for _, path in hub.requests if "/resolve/" in path}
    assert fetched == {"consolidated.00.pth", "consolidated.01.pth", "params.json"}


def test_an_index_that_leads_elsewhere_is_refused(hub: Any, opened: Opener, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../../etc/passwd"}}')
    hub.add_model("org/model", folder)
    refused = opened("org/model")
    assert refused["error"] == "CheckpointNotFoundError"
    assert "'../../../etc/passwd', which the repository does not hold" in refused["message"]


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", "a" * 40, "feature_x-1", "x" * 200])
def test_good_revisions(revision: str) -> None:
    assert check_revision(revision) == revision


@pytest.mark.parametrize(
    "revision",
    ["../../../etc/hostname", "a/../b", "..", "/etc", "", "x" * 201, "a b", "a\n", "a\0b", "main?x=1", "é", "a\\b", 3],
)
def test_bad_revisions_never_reach_the_hub(revision: Any) -> None:
    with pytest.raises(RevisionNotFoundError, match="expected a branch, tag or commit"):
        check_revision(revision)


@pytest.mark.parametrize(
    ("text", "good"),
    [("gpt2", True), ("org/model", True), ("a/b/c", False), ("../x", False), ("a b", False), ("x" * 97, False)],
)
def test_model_ids(text: str, good: bool) -> None:
    assert is_model_id(text) is good
