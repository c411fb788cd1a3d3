"""Which models a client may have analysed: hub ids that the operator allows, and paths below the operator's folders.

A client can name neither a URL nor a token, nor learn of a path outside whether anything lies there.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .problems import ProblemError
from .settings import Settings

# Narrower than the hub's own rule by what it would take beyond ASCII.
_NAME = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
MODEL_ID = re.compile(rf"(?!.*\.git$)(?:{_NAME}/)?{_NAME}")
# huggingface_hub checks no revision, and one with ".." names a file outside its cache.
REVISION = re.compile(r"(?!.*\.\.)(?!/)[A-Za-z0-9._/-]{1,200}")


@dataclass(frozen=True)
class AllowedModel:
    """What may be opened: a hub ``model`` at ``revision`` (None: the default branch), or a resolved local path."""

    model: str
    revision: str | None = None
    is_path: bool = False


def check_model(request: Any, settings: Settings) -> AllowedModel:
    """Return the model of ``request``, which has ``id`` and ``revision``, or ``path``.

    Raises ProblemError: 422 invalid-request for an id or revision that cannot be one, 403 model-not-allowed and
    path-not-allowed for what the operator did not open, 404 model-not-found for nothing at an allowed path.
    """
    path, model_id = getattr(request, "path", None), getattr(request, "id", None)
    revision = getattr(request, "revision", None)
    if (path is None) == (model_id is None):
        raise ProblemError(422, "invalid-request", "model: expected either id or path")
    if path is not None:
        if revision is not None:
            raise ProblemError(422, "invalid-request", "model: only hub ids have revisions; leave it out beside path")
        return AllowedModel(str(_allowed_path(str(path), settings.model_roots)), is_path=True)
    check_id(str(model_id), settings)
    if revision is not None and not REVISION.fullmatch(revision):
        raise ProblemError(
            422,
            "invalid-request",
            f"model.revision: {revision[:200]!r}: expected a branch, tag or commit of letters, digits and . _ - /, "
            "without '..' and a leading '/'",
        )
    return AllowedModel(str(model_id), revision)


def check_id(model_id: str, settings: Settings) -> None:
    """Raise ProblemError when ``model_id`` is not a hub id (422) or not one that the operator allows (403)."""
    if len(model_id) > 193 or not MODEL_ID.fullmatch(model_id):
        detail = f"model.id: {model_id[:200]!r}: expected a model id of the hub, such as organisation/name"
        raise ProblemError(422, "invalid-request", detail)
    if not is_allowed(model_id, settings):
        detail = f"{model_id}: this service does not analyse it; its operator chooses by --allow-model and --deny-model"
        raise ProblemError(403, "model-not-allowed", detail)


def is_allowed(model_id: str, settings: Settings) -> bool:
    """Whether a pattern of ``allow_models`` fits and none of ``deny_models``. Case does not count, as on the hub."""

    def fits(patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(model_id.lower(), pattern.lower()) for pattern in patterns)

    return fits(settings.allow_models) and not fits(settings.deny_models)


def _allowed_path(text: str, roots: tuple[str, ...]) -> Path:
    """Return the resolved path of a file or folder below one of ``roots``; a relative one is tried in each."""
    refused = ProblemError(
        403, "path-not-allowed", f"{text[:200]!r}: not below a folder that the operator opened with --model-root"
    )
    if not roots or not text or "\0" in text or len(os.fsencode(text.encode("utf-8", "replace"))) > 4096:
        raise refused
    missing = ProblemError(404, "model-not-found", f"{text[:200]!r}: there is no model file or folder of that name")
    found_root = False
    for root in roots:
        resolved_root = Path(root).resolve()
        wanted = Path(os.path.normpath(resolved_root / text))
        unresolved = Path(os.path.normpath(os.path.join(os.path.abspath(root), text)))
        # By spelling first: of anything else not even the existence may show, be it in the time an answer takes.
        if not (wanted.is_relative_to(resolved_root) or unresolved.is_relative_to(os.path.abspath(root))):
            continue
        found_root = True
        target = _target(unresolved if not wanted.is_relative_to(resolved_root) else wanted)
        if target is None:
            continue
        if not target.is_relative_to(resolved_root):
            raise refused
        return target
    raise missing if found_root else refused


def _target(path: Path) -> Path | None:
    """Return what ``path`` leads to through all links when that is a file or a folder; None otherwise."""
    try:
        target = path.resolve(strict=True)
        mode = os.stat(target).st_mode
    except (OSError, RuntimeError, ValueError):  # missing, a loop of links, a name that no path can have
        return None
    return target if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None
