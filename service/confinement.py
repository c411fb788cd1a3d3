"""What the child process of a job may use: memory, files, time; and the room that a download needs, before it starts.

Nothing here is a sandbox against code, for none runs: a pickle that carries code is refused. It bounds what a file that
lies about its size can cost, and it keeps a hub id from meaning a folder that happens to lie where the worker started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from alphalloc.errors import CheckpointError, HubUnreachableError, UnsupportedCheckpointError

from .settings import Settings

MAX_OPEN_FILES = 4096  # chosen here: four times the shards of the largest models
SPARE_BYTES = 2**30  # left free on the disk that a download goes to; chosen here
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h


def confine(settings: Settings, folder: Path | str) -> None:
    """Bound the calling process; to be the first thing that a job's child does. ``folder``: an empty one of its own.

    Memory is bounded as data (brk and private writable maps), not as address space: CUDA reserves far more of that than
    it uses. ``job_seconds`` is a bound on processor time too, should the worker that keeps the clock have died; the
    child dies with the worker in any case. It starts in ``folder``, so that "organisation/name" is no path there.
    """
    os.chdir(folder)
    os.umask(0o077)
    _bound(resource.RLIMIT_CORE, 0)  # a core file would hold whatever the environment holds
    _bound(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    _bound(resource.RLIMIT_CPU, int(settings.job_seconds * (os.cpu_count() or 1)) + 1)
    if (memory := memory_limit(settings)) is not None:
        _bound(resource.RLIMIT_DATA, memory)
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def memory_limit(settings: Settings) -> int | None:
    """Return the bytes that a job may take here: ``job_memory_bytes``, else ``job_memory_share`` of what the machine
    has; None without either.
    """
    if settings.job_memory_bytes is not None or settings.job_memory_share is None:
        return settings.job_memory_bytes
    return int(settings.job_memory_share * machine_memory())


def machine_memory(root: Path = Path("/")) -> int:
    """Return the memory of this machine in bytes, or the limit of the smallest control group (version 2 or 1) around
    this process if that is less.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_group_limits(root)])


def _group_limits(root: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):  # no control groups
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            controllers, path = line.split(":", 2)[1:]
            if controllers == "":
                base, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            inner = Path(path.strip("/"))
            for folder in (inner, *inner.parents):
                with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                    yield int((base / folder / name).read_text())


def _bound(which: int, value: int) -> None:
    """Lower the limit ``which`` to ``value``; one that is lower already stays."""
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def check_download(model_id: str, revision: str | None, settings: Settings) -> str | None:
    """Return the commit to analyse, after making sure that its weights fit the disk and ``job_download_bytes``.

    To be called in the job's child, as it asks the hub. What is counted are the files that the reader chooses, less
    those in the cache. None when the hub is not asked (HF_HUB_OFFLINE=1), and when it does not answer but the cache
    holds all of the revision; the child then asks it no more, as nothing may be fetched that was not checked.

    Raises UnsupportedCheckpointError beyond the limit and for weights whose size the hub does not tell, CheckpointError
    when the disk is too full or the model turns out to go by a name that is not allowed, what the reader raises when
    there is nothing to choose, and what it raises for an answer that is none (see ``hub.translated_errors``).
    """
    from huggingface_hub import HfApi, constants

    from alphalloc.checkpoint import hub

    from .model_policy import is_allowed

    if constants.HF_HUB_OFFLINE:
        return None
    asked = hub.check_revision("main" if revision is None else revision)
    try:
        with hub.translated_errors(model_id, asked):
            info = HfApi().model_info(model_id, revision=revision, files_metadata=True, timeout=hub.TIMEOUT_SECONDS)
    except CheckpointError as exc:
        readable = isinstance(exc, HubUnreachableError) or hub.COMMIT.fullmatch(asked)  # as in hub.fetch
        if not readable or hub.cached_snapshot(model_id, asked) is None:
            raise
        constants.HF_HUB_OFFLINE = True
        return None
    if info.id != model_id and not is_allowed(info.id, settings):
        raise CheckpointError(f"{model_id}: the hub calls it {info.id}, which this service does not analyse")
    commit = str(info.sha)
    if not hub.COMMIT.fullmatch(commit):
        raise CheckpointError(f"{model_id}: the hub named no commit for revision {asked!r}")
    if hub.cached_snapshot(model_id, commit) is None:
        sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
        needed = _fetched(model_id, commit, sizes)
        check_room(model_id, needed, Path(constants.HF_HUB_CACHE), settings.job_download_bytes)
    return commit


def check_room(model_id: str, needed: int, folder: Path, limit: int | None) -> None:
    """Raise UnsupportedCheckpointError when ``needed`` bytes pass ``limit``, CheckpointError when they do not fit."""
    if needed <= 0:
        return
    if limit is not None and needed > limit:
        raise UnsupportedCheckpointError(
            f"{model_id}: its weights take {needed} bytes, this service fetches at most {limit} (job_download_bytes)"
        )
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise CheckpointError(
            f"{model_id}: its weights take {needed} bytes and {SPARE_BYTES} stay free, but the disk has {free} left; "
            "free some room, then submit it again"
        )


def _fetched(model_id: str, commit: str, sizes: Mapping[str, int | None]) -> int:
    """Return the bytes that the reader is going to fetch of the repository whose files have ``sizes``."""
    from huggingface_hub import constants

    from alphalloc.checkpoint import hub
    from alphalloc.checkpoint.files import MAX_JSON_BYTES
    from alphalloc.checkpoint.folder import choose

    index = choose(model_id, sizes).index
    if index and (size := _told(model_id, index, sizes)) > MAX_JSON_BYTES:  # fetching it is how its shards become known
        raise UnsupportedCheckpointError(f"{model_id}: {index} has {size} bytes, expected at most {MAX_JSON_BYTES}")
    with hub.translated_errors(model_id, commit):
        wanted = hub.wanted_files(model_id, commit, sizes)
    held = Path(constants.HF_HUB_CACHE) / ("models--" + model_id.replace("/", "--")) / "snapshots" / commit
    return sum(_told(model_id, name, sizes) for name in set(wanted) if not (held / name).exists())


def _told(model_id: str, name: str, sizes: Mapping[str, int | None]) -> int:
    """Return the size of the file ``name``; UnsupportedCheckpointError when the hub did not tell it."""
    size = sizes[name]
    if size is None:
        raise UnsupportedCheckpointError(f"{model_id}: the hub does not tell the size of {name}, so it is not fetched")
    return size
