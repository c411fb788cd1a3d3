"""serve: what is particular to the command; the server itself is tested with the service."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_missing_extra_is_named(environment: dict[str, str], missing: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; from alphalloc.cli import main; sys.exit(main(['serve']))"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: the service needs {missing}: pip install 'alphalloc[server]'\n"


def test_environment_counts_and_is_checked(run: Run) -> None:
    done = run("serve", ALPHALLOC_PORT="eight")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "ALPHALLOC_PORT: expected a whole number from 0 to 65535, found 'eight'" in done.stderr
    assert "0.0.0.0 can be reached by other machines" in run("serve", ALPHALLOC_HOST="0.0.0.0").stderr
