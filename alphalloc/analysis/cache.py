"""Spectra kept by content, so that another estimator or budget needs no second reading of the weights.

The key of a matrix is the SHA-256 of its file + tensor name + shape + what config.json decided about its values +
transform version + numerics (library versions, BLAS kernels, one thread). A file of the hub's cache is named by its
SHA-256 already; any other is hashed once and remembered by path, size, modification time and inode. An entry carries
its own digest: a damaged one is recomputed. Entries are renamed into place, so several processes may share a cache. It
is bounded: the entries used longest ago go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import platformdirs
from threadpoolctl import threadpool_info

from alphalloc.backends import run_local
from alphalloc.checkpoint.matrices import WeightMatrix
from alphalloc.spectra.eigenvalues import NUMPY_MAX_SIDE
from alphalloc.spectra.esd import ESD

TRANSFORM_VERSION = 2  # raise it when reading or spectra change any bit of a result
MAX_BYTES = 2 * 2**30  # chosen here: 65,000 spectra of 4096 eigenvalues, or 290 models of 7 billion parameters
ABANDONED_SECONDS = 3600.0  # a temporary file this old belongs to a process that was killed
_MAGIC = b"ALPHALLOC-ESD-1\n"
_HEADER = struct.Struct("<qqqd")  # rows, cols, num_zero, frobenius_norm
_DIGEST = 32
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def default_folder() -> Path:
    """Return the user's cache folder for alphalloc (honours XDG_CACHE_HOME on Linux)."""
    return Path(platformdirs.user_cache_dir("alphalloc"))


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds: its folder, spectra and their bytes, remembered file hashes, and the bound on the bytes."""

    folder: Path
    num_spectra: int
    nbytes: int
    num_files: int
    max_bytes: int


class SpectraCache:
    """A folder of spectra; ``get`` and ``put`` by weight matrix. ``warnings`` says what went wrong with the disk.

    ``num_put`` counts what was stored, ``used`` holds the keys of all that was stored or found; ``variant`` names what
    is kept when it is not the spectrum of the whole matrix.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, max_bytes: int = MAX_BYTES, variant: str = ""
    ) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self.max_bytes = max_bytes
        self.variant = variant
        self.warnings: list[str] = []
        self.num_put = 0
        self.used: set[str] = set()
        self._file_digests: dict[str, str] = {}

    def get(self, matrix: WeightMatrix) -> ESD | None:
        """Return the stored spectrum, or None when there is none or the entry is damaged."""
        key = self._key(matrix)
        if key is None:
            return None
        path = self._entry(key)
        try:
            spectrum = _decode(path.read_bytes())
        except (OSError, ValueError):
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read is still a cache
            os.utime(path)  # "used now": what prune goes by
        self.used.add(key)
        return spectrum

    def holds(self, matrix: WeightMatrix) -> bool:
        """Return whether there is an entry; only ``get`` finds out whether it is damaged."""
        key = self._key(matrix)
        return key is not None and self._entry(key).is_file()

    def put(self, matrix: WeightMatrix, spectrum: ESD) -> None:
        """Store the spectrum. A disk that refuses leaves the cache valid and adds one warning."""
        key = self._key(matrix)
        if key is not None:
            self._write(self._entry(key), _encode(spectrum))
            self.num_put += 1
            self.used.add(key)

    def discard(self, keys: Iterable[str], *, used_before: float = math.inf) -> int:
        """Delete the spectra of these keys, as ``used`` had them, and return how many there were.

        Those used since ``used_before`` (Unix seconds) stay; what is no key has no spectrum.
        """
        gone = 0
        for key in filter(_SHA256.fullmatch, keys):
            path = self._entry(key)
            with contextlib.suppress(OSError):  # there is none, or another process was first
                if path.stat().st_mtime < used_before:
                    path.unlink()
                    gone += 1
        return gone

    def digest_files(self, matrices: tuple[WeightMatrix, ...]) -> None:
        """Hash the files the matrices lie in (or recall their hashes), before worker threads need them.

        A matrix put together from several files has their folder as its source: all weights there count.
        """
        parts = {source: _weight_files(Path(source)) for source in sorted({matrix.source for matrix in matrices})}
        files = sorted({path for paths in parts.values() for path in paths})
        digests = {files[position]: digest for position, digest in run_local(self._file_digest, files)}
        for source, paths in parts.items():
            if len(paths) == 1 and source == str(paths[0]):
                self._file_digests[source] = digests[paths[0]]
            elif paths:
                text = "\n".join(f"{path.name} {digests[path]}" for path in paths)
                self._file_digests[source] = hashlib.sha256(text.encode()).hexdigest()

    def info(self) -> CacheInfo:
        """Return what the folder holds now."""
        entries = list(self._entries())
        notes = list((self.folder / "files").glob("*.json"))
        return CacheInfo(self.folder, len(entries), sum(size for _, size, _ in entries), len(notes), self.max_bytes)

    def prune(self, max_bytes: int | None = None) -> tuple[int, int]:
        """Delete the spectra used longest ago until at most ``max_bytes`` (default: the bound) are left.

        Also what killed processes left behind, and with ``max_bytes`` 0 the remembered hashes of files. Returns how
        many spectra and bytes went. Safe beside running analyses: a spectrum that goes is computed again.
        """
        bound = self.max_bytes if max_bytes is None else max_bytes
        entries = sorted(self._entries(), key=lambda entry: (entry[2], entry[0]))
        left, gone, freed = sum(size for _, size, _ in entries), 0, 0
        for path, size, _ in entries:
            if left <= bound:
                break
            with contextlib.suppress(OSError):  # another process may be pruning too
                path.unlink()
                gone, freed = gone + 1, freed + size
            left -= size
        old = time.time() - ABANDONED_SECONDS
        forgotten = [] if bound else (self.folder / "files").glob("*.json")
        for path in (*self.folder.glob("*/**/*.tmp"), *forgotten):
            with contextlib.suppress(OSError):
                if path.suffix != ".tmp" or path.stat().st_mtime < old:
                    path.unlink()
        return gone, freed

    def _entries(self) -> Iterator[tuple[Path, int, int]]:
        """Path, bytes and time of last use of every spectrum."""
        for path in (self.folder / "spectra").glob("*/*.esd"):
            with contextlib.suppress(OSError):  # pruned by another process meanwhile
                status = path.stat()
                yield path, status.st_size, status.st_mtime_ns

    def _entry(self, key: str) -> Path:
        return self.folder / "spectra" / key[:2] / f"{key[2:]}.esd"

    def _key(self, matrix: WeightMatrix) -> str | None:
        digest = self._file_digests.get(matrix.source)
        if digest is None:  # weights in memory have no content address
            return None
        # the recipe is what config.json, which the digest leaves out, decides about the values
        made = (TRANSFORM_VERSION, self.variant, numerics(matrix.shape), matrix.recipe)
        parts = (digest, matrix.name, matrix.shape, *made)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _file_digest(self, path: Path) -> str:
        real = path.resolve()
        if real.parent.name == "blobs" and _SHA256.fullmatch(real.name):
            return real.name  # the hub's cache names large files by their SHA-256
        status = path.stat()
        identity = repr((str(real), status.st_size, status.st_mtime_ns, status.st_ino))
        note = self.folder / "files" / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"
        try:
            digest = json.loads(note.read_text())["sha256"]
            if isinstance(digest, str) and _SHA256.fullmatch(digest):
                return digest
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not hashed before, or a damaged note: hash it now
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self._write(note, json.dumps({"path": str(path), "sha256": digest}).encode())
        return digest

    def _write(self, path: Path, data: bytes) -> None:
        """Rename a finished file into place. Not flushed to disk: after a power cut the digest tells a torn entry."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as exc:
            self._warn_once(f"the spectra cache at {self.folder} cannot be written ({exc.strerror}); nothing is lost")

    def _warn_once(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)


def _weight_files(source: Path) -> list[Path]:
    """The file itself, or the weight files of a folder; none for what is neither."""
    if source.is_dir():
        return sorted(path for path in source.iterdir() if path.suffix in _WEIGHT_SUFFIXES and path.is_file())
    return [source] if source.is_file() else []


def numerics(shape: tuple[int, int]) -> tuple[str, ...]:
    """Return what decides the last bits of a spectrum of this shape here: releases, BLAS kernels, one thread."""
    return _numerics(min(shape) > NUMPY_MAX_SIDE)


@cache
def _numerics(large: bool) -> tuple[str, ...]:
    """torch counts only where it may take the ``large`` matrices."""
    import scipy.linalg.cython_blas  # noqa: F401  (loads the BLAS that is asked about below)

    names = ("numpy", "scipy", "ml_dtypes", "gguf", *(("torch",) if large else ()))
    kernels = {str(pool.get("architecture")) for pool in threadpool_info() if pool["user_api"] == "blas"}
    return (*(f"{name} {_version(name)}" for name in names), *sorted(kernels - {"None"}), "1 thread")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


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
