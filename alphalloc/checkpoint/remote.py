"""A model of the hub seen through its headers alone: a few range requests instead of a download.

The headers are laid into sparse files of the right sizes, in a temporary folder that looks like the repository. So the
same readers with the same checks make the Checkpoint; only its values are not there. PyTorch's files keep their
structure at both ends and cannot be read so: a repository that has nothing else is downloaded, as for an analysis.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from alphalloc.checkpoint import gguf, hub, safetensors
from alphalloc.checkpoint.adapter import ADAPTER_CONFIG
from alphalloc.checkpoint.files import MAX_JSON_BYTES
from alphalloc.checkpoint.folder import CONFIG_NAME, choose, index_shards
from alphalloc.checkpoint.matrices import Array, Checkpoint
from alphalloc.checkpoint.meta import PARAMS_NAME
from alphalloc.checkpoint.unpack import needs_values
from alphalloc.errors import CheckpointError, CorruptCheckpointError, HubUnreachableError

FIRST_BYTES = 2**20  # of every file with weights: holds the header of all but the largest shards
_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)")


def open_headers(model_id: str, revision: str | None, assemble: Callable[[hub.Snapshot], Checkpoint]) -> Checkpoint:
    """Return what ``assemble`` makes of a folder with the headers, index and config of ``model_id`` at ``revision``.

    The folder is deleted afterwards: files become bare names, and matrices refuse to load. What lies complete in the
    cache is taken from there instead, as is everything when the hub does not answer. Raises as :func:`hub.fetch`.
    """
    wanted = hub.check_revision(revision) if revision is not None else "main"
    with tempfile.TemporaryDirectory(prefix="alphalloc-") as name:
        folder = Path(name)
        try:
            with hub.translated_errors(model_id, wanted):
                snapshot = _headers(model_id, wanted, folder)
        except HubUnreachableError:
            snapshot = hub.fetch(model_id, revision)
        checkpoint = assemble(snapshot)
    return _without_values(checkpoint) if snapshot.folder == folder else checkpoint


def _without_values(checkpoint: Checkpoint) -> Checkpoint:
    name = checkpoint.model_id
    matrices = tuple(
        replace(m, source=Path(m.source).name, load=NotDownloaded(name, m.load)) for m in checkpoint.matrices
    )
    return replace(checkpoint, matrices=matrices, files=tuple(Path(path.name) for path in checkpoint.files))


@dataclass(frozen=True)
class NotDownloaded:
    """Stands for the values of a matrix of which only the header was read; ``load`` is how they would be loaded."""

    model_id: str
    load: Callable[[], Array]

    def __call__(self) -> Array:
        raise CheckpointError(f"{self.model_id}: only headers were read; open it without headers_only to load weights")


def _headers(model_id: str, revision: str, folder: Path) -> hub.Snapshot:
    commit, names = hub.listing(model_id, revision)
    held = hub.cached_snapshot(model_id, commit)
    if held is not None:
        return held
    choice = choose(model_id, names)
    if choice.format not in ("safetensors", "gguf"):
        return hub.fetch(model_id, revision)
    read = _Reader(model_id, commit, folder)
    files = choice.files
    if choice.index:
        read.whole(choice.index)
        files = index_shards(folder / choice.index)
        hub.require_listed(model_id, files, names)
    for name in (CONFIG_NAME, PARAMS_NAME, ADAPTER_CONFIG):
        if name in names:
            read.whole(name)
    for name in files:
        if choice.format == "gguf":
            read.gguf(name)
        else:
            read.safetensors(name)
    if choice.format == "safetensors" and _needs_values(folder, files):
        return hub.fetch(model_id, revision)
    return hub.Snapshot(folder, commit, (f"{model_id}: only headers were read, nothing was downloaded",))


def _needs_values(folder: Path, files: Iterable[str]) -> bool:
    """Whether small tensors say what packed weights look like (bitsandbytes' 4 bits, compressed-tensors' shapes)."""
    return any(needs_values(tensor.name) for name in files for tensor in safetensors.read_headers(folder / name))


class _Reader:
    """Reads parts of the files of one commit into ``folder``."""

    def __init__(self, model_id: str, commit: str, folder: Path) -> None:
        self.model_id, self.commit, self.folder = model_id, commit, folder

    def whole(self, name: str) -> None:
        """Fetch a small file (an index, a configuration)."""
        data, size = self._range(name, 0, MAX_JSON_BYTES)
        if len(data) != size:
            raise CorruptCheckpointError(f"{self.model_id}: {name} has {size} bytes, expected {MAX_JSON_BYTES} at most")
        (self.folder / name).write_bytes(data)

    def safetensors(self, name: str) -> None:
        """Fetch the header, whose length is its first 8 bytes; the reader refuses one that is too long."""
        data, size = self._range(name, 0, FIRST_BYTES)
        end = 8 + int.from_bytes(data[:8], "little")
        if len(data) < end <= min(size, 8 + safetensors.MAX_HEADER_BYTES):
            data += self._range(name, len(data), end - len(data))[0]
        self._write(name, data, size)

    def gguf(self, name: str) -> None:
        """Fetch twice as much until the first tensor's values begin inside of it: then the header is complete."""
        data, size = self._range(name, 0, FIRST_BYTES)
        while True:
            self._write(name, data, size)
            try:
                tensors = gguf.read_header(self.folder / name).tensors
                complete = len(data) >= min((tensor.offset or 0 for tensor in tensors), default=size)
            except CorruptCheckpointError:
                complete = False  # zeros where the rest of the header belongs
            if complete or len(data) >= min(size, gguf.MAX_HEADER_BYTES):
                return
            data += self._range(name, len(data), len(data))[0]

    def _write(self, name: str, data: bytes, size: int) -> None:
        with (self.folder / name).open("wb") as stream:
            stream.write(data)
            stream.truncate(size)  # sparse: takes no space on disk

    def _range(self, name: str, start: int, count: int) -> tuple[bytes, int]:
        """Return at most ``count`` bytes of a file from ``start`` on, and the size of the file."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        url = hf_hub_url(self.model_id, name, revision=self.commit)
        headers = build_hf_headers() | {"Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=headers, timeout=hub.TIMEOUT_SECONDS) as response:
            if response.status_code == 416:  # an empty file has no range
                return b"", 0
            if response.status_code >= 400:
                response.read()  # its text goes into the error
            hf_raise_for_status(response)
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status_code != 206 or match is None or int(match[1]) != start:
                raise CheckpointError(f"{self.model_id}: the hub did not answer a request for a part of {name}")
            return response.read()[:count], int(match[3])
