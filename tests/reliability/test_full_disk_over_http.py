"""A full disk as a client sees it: 503 with Retry-After for what must be written, answers for what is known."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from running_service import RunningService
from small_disk import fill, small_disk

MIB = 2**20  # /readyz wants 64 MiB, so the disk has more


def question(number: int) -> dict[str, object]:
    return {"source": {"alphas": [2.0, 2.5, 3.0]}, "budget": {"total": 3 + number}}


def until(condition: Callable[[], bool]) -> None:
    """Wait for it; /readyz looks anew every few seconds only."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_full_disk_is_503_until_there_is_room(tmp_path):
    with small_disk(tmp_path / "disk", 96 * MIB) as disk:
        if disk is None:
            pytest.skip("mounting a small disk needs root")
        own = {"ALPHALLOC_DATABASE_URL": f"sqlite:///{disk}/service.db"}
        with RunningService(tmp_path, "--no-worker", environment=own, rate_limit="off") as service:

            def allocate(number: int):
                return service.request("POST", "/v1/allocations", question(number))

            assert service.request("GET", "/readyz")[0].status == 200
            known = [json.loads(allocate(0)[1])["id"]]
            filler = fill(disk)
            refused = []
            for number in range(1, 2000):  # what the log still holds is soon used up
                answer, body = allocate(number)
                if answer.status == 201:
                    known.append(json.loads(body)["id"])
                    continue
                refused.append((answer.status, json.loads(body)["code"], answer.getheader("Retry-After")))
                if len(refused) == 20:
                    break
            assert set(refused) == {(503, "storage-unavailable", "5")}
            assert len(refused) == 20
            until(lambda: service.request("GET", "/readyz")[0].status == 503)
            assert {service.request("GET", f"/v1/allocations/{id}")[0].status for id in known} == {200}
            filler.unlink()
            until(lambda: allocate(5000)[0].status in (200, 201))
            until(lambda: service.request("GET", "/readyz")[0].status == 200)
            assert {service.request("GET", f"/v1/allocations/{id}")[0].status for id in known} == {200}
        assert "Traceback" not in service.log
