"""Whether the service can do its work now, and if not, why: database, disk, queue.

The database must take a write. No answer is older than a second, and none may hang: a probe that waits is as good as
one that fails.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from alphalloc.errors import AlphallocError, StorageError

from .problems import STORAGE_DETAIL
from .settings import Settings

logger = logging.getLogger("alphalloc_service")

MIN_FREE_BYTES = 64 * 2**20  # chosen here: below it the database's log may not grow through one busy minute
CHECK_SECONDS = 3.0  # chosen here: below the period of the usual probes
REUSE_SECONDS = 1.0  # a probe a second is enough; a flood of them must not write to the database each time

CheckName = Literal["database", "disk", "queue"]


class Probed(Protocol):
    """What this module asks of the store."""

    def ping(self) -> None:
        """Write something. Raises StorageError."""

    def counts(self) -> Any:
        """Return the number of analyses by status."""


@dataclass(frozen=True)
class Check:
    """One thing that has to hold; ``detail`` says what was found."""

    name: CheckName
    ok: bool
    detail: str


class Readiness:
    """The checks of one service; the last answer is given again within REUSE_SECONDS."""

    def __init__(self, settings: Settings, store: Probed) -> None:
        self._settings, self._store = settings, store
        self._last: tuple[float, list[Check]] = (-REUSE_SECONDS, [])
        self._lock = asyncio.Lock()

    async def checks(self) -> list[Check]:
        """Return database, disk and queue, in this order."""
        async with self._lock:
            at, found = self._last
            if time.monotonic() - at >= REUSE_SECONDS:
                found = list(await asyncio.gather(*(_in_time(name, check) for name, check in self._all().items())))
                self._last = (time.monotonic(), found)
            return found

    def _all(self) -> dict[CheckName, Callable[[], Check]]:
        return {"database": self._database, "disk": self._disk, "queue": self._queue}

    def _database(self) -> Check:
        self._store.ping()
        return Check("database", True, "takes writes")

    def _disk(self) -> Check:
        free = shutil.disk_usage(database_folder(self._settings.database_url)).free
        ok = free >= MIN_FREE_BYTES
        return Check("disk", ok, f"{free} bytes left" + ("" if ok else f", expected at least {MIN_FREE_BYTES}"))

    def _queue(self) -> Check:
        waiting = self._store.counts().get("queued", 0)
        return Check("queue", waiting < self._settings.max_queued, f"{waiting} of {self._settings.max_queued} wait")


def database_folder(url: str) -> Path:
    """Return the folder of a SQLite database, the nearest that exists; the current one for any other database."""
    if not url.startswith("sqlite:///"):
        return Path.cwd()
    folder = Path(url.removeprefix("sqlite:///")).absolute().parent
    while not folder.exists():
        folder = folder.parent
    return folder


async def _in_time(name: CheckName, check: Callable[[], Check]) -> Check:
    try:
        return await asyncio.wait_for(asyncio.to_thread(check), CHECK_SECONDS)
    except TimeoutError:
        return Check(name, False, f"no answer within {CHECK_SECONDS:g} s")
    except StorageError as exc:
        logger.warning("not ready, %s: %s", name, exc)
        return Check(name, False, STORAGE_DETAIL)
    except (AlphallocError, OSError) as exc:
        return Check(name, False, str(exc))
