"""Models on the Hugging Face hub: the id checked, the revision pinned to a commit, only weights and config fetched.

All transport, authentication and caching is huggingface_hub's, with its own environment variables (HF_TOKEN,
HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE). What is in its cache is read without the network.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from alphalloc.checkpoint.adapter import ADAPTER_CONFIG
from alphalloc.checkpoint.folder import CONFIG_NAME, choose, index_shards
from alphalloc.checkpoint.meta import PARAMS_NAME
from alphalloc.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    GatedModelError,
    HubUnreachableError,
    RevisionNotFoundError,
)

# huggingface_hub does not check revisions, and one with ".." would name a file outside its cache.
_REVISION = re.compile(r"(?!.*\.\.)(?!/)[A-Za-z0-9._/-]{1,200}")
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_SECONDS = 30.0  # for a request that lists or reads a header; chosen here


@dataclass(frozen=True)
class Snapshot:
    """A folder of the local cache that holds one commit of a model."""

    folder: Path
    commit: str
    notes: tuple[str, ...] = ()


def is_model_id(text: str) -> bool:
    """Whether ``text`` has the form of a hub model id ("name" or "organisation/name")."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not re-exported

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def check_revision(revision: str) -> str:
    """Return ``revision`` when it can be a branch, tag or commit; RevisionNotFoundError otherwise."""
    if not isinstance(revision, str) or not _REVISION.fullmatch(revision):
        raise RevisionNotFoundError(
            f"revision {str(revision)[:200]!r}: expected a branch, tag or commit of letters, digits and . _ - /, "
            "without '..' and a leading '/'"
        )
    return revision


def fetch(model_id: str, revision: str | None = None) -> Snapshot:
    """Return a folder with the weights, index and config of ``model_id`` at ``revision``, downloading what is missing.

    ``revision`` defaults to "main" and is pinned to its commit before any file is read. A commit that lies complete
    in the cache needs no network; nor does anything cached with HF_HUB_OFFLINE=1 or when the hub does not answer.

    Raises CheckpointNotFoundError, RevisionNotFoundError, GatedModelError and HubUnreachableError, each saying what
    to do, and CheckpointError for any other answer of the hub.
    """
    wanted = check_revision(revision) if revision is not None else "main"
    if COMMIT.fullmatch(wanted):
        held = cached_snapshot(model_id, wanted)
        if held is not None:
            return held
    return _online(model_id, wanted)


def _online(model_id: str, revision: str) -> Snapshot:
    try:
        with translated_errors(model_id, revision):
            return _download(model_id, revision)
    except HubUnreachableError:
        held = cached_snapshot(model_id, revision)
        if held is None:
            raise
        return replace(held, notes=(f"{model_id}: the hub was not asked, the cached commit is read",))


@contextlib.contextmanager
def translated_errors(model_id: str, revision: str) -> Iterator[None]:
    """Around requests to the hub: what huggingface_hub raises becomes an error of this project."""
    from huggingface_hub import constants, errors

    # HfHubHTTPError derives from the HTTP library's own base class, which differs between releases.
    failures: tuple[type[BaseException], ...] = (errors.HfHubHTTPError.__mro__[1], OSError, errors.HFValidationError)
    try:
        if constants.HF_HUB_OFFLINE:
            raise errors.OfflineModeIsEnabled("HF_HUB_OFFLINE=1 is set")
        yield
    except CheckpointError:
        raise
    except failures as exc:
        raise _translate(model_id, revision, exc) from exc


def listing(model_id: str, revision: str) -> tuple[str, list[str]]:
    """Return the commit that ``revision`` is now, and the names of the files there."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(model_id, revision=revision, timeout=TIMEOUT_SECONDS)
    if info.sha is None or not COMMIT.fullmatch(info.sha):
        raise CheckpointError(f"{model_id}: the hub named no commit for revision {revision!r}")
    return info.sha, [sibling.rfilename for sibling in info.siblings or []]


def _download(model_id: str, revision: str) -> Snapshot:
    """List the repository at its commit, choose the files as for a local folder, and fetch those."""
    from huggingface_hub import snapshot_download

    commit, names = listing(model_id, revision)
    files = wanted_files(model_id, commit, names)
    folder = Path(snapshot_download(model_id, revision=commit, allow_patterns=[glob.escape(f) for f in files]))
    remember_branch(model_id, revision, commit)
    return Snapshot(folder, folder.name)


def remember_branch(model_id: str, revision: str, commit: str) -> None:
    """Record in the cache which commit a branch or tag was, as downloads by its name do: for later offline use."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if COMMIT.fullmatch(revision):
        return
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model_id, repo_type="model")
    reference = folder / "refs" / check_revision(revision)
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)


def wanted_files(model_id: str, commit: str, names: Iterable[str]) -> list[str]:
    """Return which files of the repository with ``names`` are downloaded: weights, index, config. An index is fetched
    at once, as only it names its shards. Raises what ``choose`` and ``index_shards`` raise, and for shards that are
    not there.
    """
    from huggingface_hub import hf_hub_download

    names = list(names)
    choice = choose(model_id, names)
    files = list(choice.files)
    if choice.index:
        index = hf_hub_download(model_id, choice.index, revision=commit)
        files = [choice.index, *index_shards(Path(index))]
        require_listed(model_id, files, names)
    return files + [name for name in names if name in (CONFIG_NAME, PARAMS_NAME, ADAPTER_CONFIG)]


def require_listed(model_id: str, files: Sequence[str], names: Sequence[str]) -> None:
    """Raise CheckpointNotFoundError when one of ``files`` is not among the ``names`` that the repository holds."""
    missing = [name for name in files if name not in names]
    if missing:
        raise CheckpointNotFoundError(f"{model_id}: the index names {missing[0]!r}, which the repository does not hold")


def cached_snapshot(model_id: str, revision: str) -> Snapshot | None:
    """Return the commit of ``revision`` in huggingface_hub's cache when all its weights are there, else None."""
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE) / ("models--" + model_id.replace("/", "--"))
    commit = revision
    if not COMMIT.fullmatch(revision):
        reference = root / "refs" / PurePosixPath(revision)
        if not reference.is_file():
            return None
        commit = reference.read_text(encoding="utf-8").strip()
    folder = root / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not folder.is_dir():
        return None
    names = [entry.name for entry in os.scandir(folder)]
    try:
        choice = choose(model_id, names)
        files = index_shards(folder / choice.index) if choice.index else choice.files
    except CheckpointError:
        return None
    return Snapshot(folder, commit) if all((folder / name).is_file() for name in files) else None


def _translate(model_id: str, revision: str, exc: BaseException) -> CheckpointError:
    """The project's error for an error of huggingface_hub; the order matters, as gated derives from not found."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{model_id}"
    if isinstance(exc, errors.GatedRepoError):
        return GatedModelError(
            f"{model_id} is gated: accept its licence at {page}, then set HF_TOKEN to a token of that account"
        )
    if isinstance(exc, errors.RevisionNotFoundError):
        return RevisionNotFoundError(f"{model_id} has no revision {revision!r}; see the branches and tags at {page}")
    if isinstance(exc, errors.DisabledRepoError):
        return GatedModelError(f"{model_id} has been disabled on the hub; its page {page} may say why")
    if isinstance(exc, errors.RepositoryNotFoundError):
        return CheckpointNotFoundError(
            f"{model_id}: neither a local path nor a model on the hub at {constants.ENDPOINT}; check the spelling, and "
            "set HF_TOKEN if the model is private"
        )
    if isinstance(exc, errors.HFValidationError):
        return CheckpointNotFoundError(f"{model_id[:200]!r}: neither a local path nor a hub model id")
    if isinstance(exc, errors.OfflineModeIsEnabled):
        return HubUnreachableError(
            f"{model_id} (revision {revision!r}) is not complete in the cache and HF_HUB_OFFLINE is set; unset it, or "
            "run once online"
        )
    if isinstance(exc, errors.HfHubHTTPError) and exc.response.status_code < 500 and exc.response.status_code != 429:
        return CheckpointError(f"{model_id}: the hub answered {exc.response.status_code}: {_short(exc)}")
    return HubUnreachableError(
        f"{model_id}: the hub at {constants.ENDPOINT} did not answer ({_short(exc)}) and the model is not in the "
        "cache; check the network, then run again"
    )


def _short(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"
