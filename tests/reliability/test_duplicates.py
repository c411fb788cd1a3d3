"""Eight hundred requests for twenty things, two hundred at a time: twenty analyses, whichever way they are sent."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from databases import DATABASES, new_url
from running_service import RunningService
from safetensors.numpy import save_file

CLIENTS, MODELS, AT_ONCE = 800, 20, 200


@pytest.mark.parametrize("kind", DATABASES)
def test_equal_requests_are_one_job(kind: str, tmp_path: Path) -> None:
    for number in range(MODELS):
        weights = np.full((2, 2), float(number + 1), np.float32)
        save_file({"model.layers.0.mlp.up_proj.weight": weights}, tmp_path / f"{number}.safetensors")
    own = {"ALPHALLOC_DATABASE_URL": new_url(kind, tmp_path)}
    options = ("--no-worker", "--model-root", str(tmp_path))
    with RunningService(tmp_path, *options, environment=own, rate_limit="off") as service:

        def ask(client: int) -> tuple[int, int, str]:
            model = client % MODELS
            headers = {"Idempotency-Key": f"model-{model}"} if client % 3 == 0 else {}  # with a key and without
            body = {"model": {"path": f"{model}.safetensors"}}
            status, analysis = service.json("POST", "/v1/analyses", body, headers)
            return status, model, analysis["id"]

        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(ask, range(CLIENTS)))
        assert Counter(status for status, _, _ in answers) == {202: CLIENTS}
        assert len({(model, id) for _, model, id in answers}) == MODELS
        _, page = service.json("GET", "/v1/analyses?limit=100")
        assert len(page["data"]) == len({id for _, _, id in answers}) == MODELS
