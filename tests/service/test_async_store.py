"""The store as the routes see it: what counts as stored, and who may have its threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alphalloc_service import async_store
from alphalloc_service.async_store import COMPUTING, MAX_COMPUTING, AsyncStore
from alphalloc_service.problems import ProblemError
from alphalloc_service.store import AllocationRow, Store
from databases import new_url


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AsyncStore]:
    store = AsyncStore(Store.open(new_url("sqlite", tmp_path)))
    yield store
    store.close()


def test_a_schedule_that_was_pruned_is_stored_again(store: AsyncStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def row() -> AllocationRow:
        made.append(1)
        return AllocationRow("al_1", b"{}", {})

    async def keep() -> bool:
        document, new = await store.keep("al_1", row)
        assert document.body == b"{}"
        return new

    async def main() -> None:
        assert await keep()
        assert not await keep()
        assert len(made) == 1  # what is known to be stored is not even made
        monkeypatch.setattr(async_store, "TRUST_SECONDS", 0.0)
        assert not await keep()
        assert store.sync.prune(-1.0, "allocations") == 1
        assert await keep()
        assert store.sync.allocation("al_1") is not None

    asyncio.run(main())


def test_long_computations_leave_the_database_its_threads(store: AsyncStore) -> None:
    done, running = threading.Event(), threading.Semaphore(0)

    def long() -> int:
        running.release()
        assert done.wait(60)
        return 1

    async def main() -> None:
        tasks = [asyncio.create_task(store.compute(long)) for _ in range(MAX_COMPUTING)]
        await asyncio.to_thread(lambda: [running.acquire(timeout=60) for _ in range(COMPUTING)])
        with pytest.raises(ProblemError) as refused:
            await store.compute(long)
        assert (refused.value.status_code, refused.value.code) == (503, "too-busy")
        await asyncio.wait_for(asyncio.gather(*(store.run(store.sync.counts) for _ in range(20))), 30)
        assert not running.acquire(blocking=False)  # no more than COMPUTING at once
        done.set()
        assert sum(await asyncio.gather(*tasks)) == MAX_COMPUTING

    asyncio.run(main())
