"""Files as untrusted input: regular ones only, inside their folder, sizes checked before reading."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from alphalloc.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError

MAX_JSON_BYTES = 16 * 2**20  # chosen here: the index of a 1,000-shard model stays under 10 MB
MAX_TENSORS = 100_000  # chosen here: ten times the tensors of the largest published MoE models


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Yield a read-only descriptor of the regular file at ``path``.

    Opened without blocking, so that a FIFO cannot hang the reader. Raises CheckpointNotFoundError when there is no
    such file, CorruptCheckpointError for a symlink loop or anything but a regular file, CheckpointError when the
    system refuses to open it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise _as_checkpoint_error(path, exc) from exc
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorruptCheckpointError(f"{path}: expected a regular file, found {_kind(descriptor)}; it is not read")
        yield descriptor
    finally:
        os.close(descriptor)


def file_size(path: Path) -> int:
    """Return the bytes of the regular file at ``path``; raises as :func:`open_regular`."""
    with open_regular(path) as descriptor:
        return os.fstat(descriptor).st_size


def read_into(descriptor: int, target: memoryview, offset: int, path: Path | str) -> None:
    """Fill ``target`` with the bytes of ``descriptor`` from ``offset`` on; CorruptCheckpointError when short."""
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], offset + done)
        if count == 0:
            raise CorruptCheckpointError(
                f"{path}: ends at byte {offset + done}, {len(target) - done} bytes too early; copy it again"
            )
        done += count


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the whole file when it is at most ``limit`` bytes; CorruptCheckpointError otherwise."""
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise CorruptCheckpointError(f"{path}: expected at most {limit} bytes, found {size}; it is not read")
        buffer = bytearray(size)
        read_into(descriptor, memoryview(buffer), 0, path)
    return bytes(buffer)


def read_json_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object in ``path``; CorruptCheckpointError when it is not one or names a key twice."""
    return parse_json_object(read_bytes(path, limit), str(path))


def parse_json_object(text: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in ``text``; CorruptCheckpointError naming ``where`` otherwise."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError, MemoryError) as exc:
        raise CorruptCheckpointError(f"{where}: not valid JSON: {exc or type(exc).__name__}") from exc
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def inside(folder: Path, name: str) -> Path:
    """Return the path of file ``name`` of ``folder``, after making sure that it does not lead out of it.

    The Hugging Face cache links its snapshots into ``blobs/`` of the same repository, so that folder is allowed
    too. Raises CorruptCheckpointError for absolute names, ``..``, links to elsewhere and symlink loops, and
    CheckpointNotFoundError when the file is missing.
    """
    pure = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts:
        raise CorruptCheckpointError(f"{folder}: expected the name of a file in this folder, found {name!r}")
    path = folder / name
    try:
        target = path.resolve(strict=True)
        root = folder.resolve(strict=True)
    except RuntimeError as exc:  # Python below 3.13 reports a symlink loop this way
        raise CorruptCheckpointError(f"{path}: is a loop of symbolic links; it is not read") from exc
    except OSError as exc:
        raise _as_checkpoint_error(path, exc) from exc
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    if not any(target.is_relative_to(allowed) for allowed in roots):
        raise CorruptCheckpointError(f"{path}: leads outside its folder, to {target}; copy the file into the folder")
    return path


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:200]!r} stands there twice")
    return result


def _as_checkpoint_error(path: Path, exc: OSError) -> CheckpointError:
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return CheckpointNotFoundError(f"{path}: no such file; check the path")
    if exc.errno == errno.ELOOP:
        return CorruptCheckpointError(f"{path}: is a loop of symbolic links; it is not read")
    if exc.errno == errno.ENXIO:
        return CorruptCheckpointError(f"{path}: expected a regular file, found a device or socket; it is not read")
    return CheckpointError(f"{path}: cannot be opened: {exc.strerror or exc}")


def _kind(descriptor: int) -> str:
    mode = os.fstat(descriptor).st_mode
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((text for test, text in kinds if test(mode)), "something else")
