"""Spectra kept by content, so that another estimator or budget needs no second reading of the weights.

The key of a matrix is the SHA-256 of its file + tensor name + shape + transform version + numerics versions. A file is
hashed once and remembered by path, size, modification time and inode. An entry carries its own digest: a damaged one
is recomputed. Entries are written atomically, so several processes may share a cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import platformdirs

from alphalloc.checkpoint.matrices import WeightMatrix
from alphalloc.documents import write_atomic
from alphalloc.spectra.esd import ESD

TRANSFORM_VERSION = 1  # raise it when reading or spectra change any bit of a result
_MAGIC = b"ALPHALLOC-ESD-1\n"
_HEADER = struct.Struct("<qqqd")  # rows, cols, num_zero, frobenius_norm
_DIGEST = 32


def default_folder() -> Path:
    """Return the user's cache folder for alphalloc (honours XDG_CACHE_HOME on Linux)."""
    return Path(platformdirs.user_cache_dir("alphalloc"))


class SpectraCache:
    """A folder of spectra; ``get`` and ``put`` by weight matrix. ``warnings`` says what went wrong with the disk."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self.warnings: list[str] = []
        self._file_digests: dict[str, str] = {}

    def get(self, matrix: WeightMatrix) -> ESD | None:
        """Return the stored spectrum, or None when there is none or the entry is damaged."""
        path = self._entry(matrix)
        try:
            return None if path is None else _decode(path.read_bytes())
        except (OSError, ValueError):
            return None

    def put(self, matrix: WeightMatrix, spectrum: ESD) -> None:
        """Store the spectrum. A disk that refuses leaves the cache valid and adds one warning."""
        path = self._entry(matrix)
        if path is None:
            return
        try:
            write_atomic(path, _encode(spectrum))
        except OSError as exc:
            self._warn_once(f"the spectra cache at {self.folder} cannot be written ({exc.strerror}); nothing is lost")

    def digest_files(self, matrices: tuple[WeightMatrix, ...]) -> None:
        """Hash the files the matrices lie in (or recall their hashes), before worker threads need them."""
        for source in sorted({matrix.source for matrix in matrices}):
            path = Path(source)
            if path.is_file():
                self._file_digests[source] = self._file_digest(path)

    def _entry(self, matrix: WeightMatrix) -> Path | None:
        digest = self._file_digests.get(matrix.source)
        if digest is None:  # weights in memory have no content address
            return None
        parts = (digest, matrix.name, matrix.shape, TRANSFORM_VERSION, _numerics_versions())
        key = hashlib.sha256(repr(parts).encode()).hexdigest()
        return self.folder / "spectra" / key[:2] / f"{key[2:]}.esd"

    def _file_digest(self, path: Path) -> str:
        status = path.stat()
        identity = repr((str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino))
        note = self.folder / "files" / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"
        try:
            digest = json.loads(note.read_text())["sha256"]
            if isinstance(digest, str) and len(digest) == 64:
                return digest
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not hashed before, or a damaged note: hash it now
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        try:
            write_atomic(note, json.dumps({"path": str(path), "sha256": digest}))
        except OSError as exc:
            self._warn_once(f"the spectra cache at {self.folder} cannot be written ({exc.strerror}); nothing is lost")
        return digest

    def _warn_once(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)


@cache
def _numerics_versions() -> tuple[str, ...]:
    """Other releases may round the last bits otherwise."""
    return tuple(f"{name} {version(name)}" for name in ("numpy", "scipy", "ml_dtypes"))


def _encode(spectrum: ESD) -> bytes:
    header = _HEADER.pack(spectrum.rows, spectrum.cols, spectrum.num_zero, spectrum.frobenius_norm)
    body = header + spectrum.eigs.astype("<f8").tobytes()
    return _MAGIC + hashlib.sha256(body).digest() + body


def _decode(data: bytes) -> ESD:
    start = len(_MAGIC) + _DIGEST
    body = data[start:]
    if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != data[len(_MAGIC) : start]:
        raise ValueError("damaged cache entry")
    rows, cols, num_zero, norm = _HEADER.unpack(body[: _HEADER.size])
    eigs = np.frombuffer(body, dtype="<f8", offset=_HEADER.size).astype(np.float64)
    eigs.flags.writeable = False
    return ESD(eigs, rows, cols, num_zero, norm)
