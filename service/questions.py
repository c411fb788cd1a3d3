"""From a request about a model to the job that answers it: what is asked in full, and the key of its content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from fastapi import Request

from . import logs
from .async_store import AsyncStore
from .conventions import digest, idempotency_key
from .model_policy import AllowedModel, check_model
from .problems import ProblemError
from .schemas import AnalysisRequest, Question
from .settings import Settings
from .store import Analysis, IdempotencyConflictError, QueueFullError, Submitted

MAX_FILES = 10_000  # of a local model; chosen here, the largest releases have some 200


async def submit(question: Question, request: Request) -> Submitted:
    """Return the analysis that answers ``question``: one that is there already, or a new one in the queue. Its id is on
    the request's line of the log from then on, as ``job_id`` like on the job's own lines.

    Raises ProblemError: what ``check_model`` raises, 422 idempotency-key-reused, 429 queue-full.
    """
    settings: Settings = request.app.state.settings
    store: AsyncStore = request.app.state.store
    key, asked = await store.run(content_of, question, settings)
    try:
        submitted = await store.run(
            store.sync.submit,
            key,
            asked,
            priority=asked["priority"],
            max_queued=settings.max_queued,
            idempotency_key=idempotency_key(request),
            request_digest=digest(asked),
        )
    except QueueFullError as exc:
        detail = f"{settings.max_queued} analyses wait already; try again later"
        raise ProblemError(429, "queue-full", detail, {"Retry-After": "30"}) from exc
    except IdempotencyConflictError as exc:
        detail = "this Idempotency-Key came with another request before; use a new one"
        raise ProblemError(422, "idempotency-key-reused", detail) from exc
    logs.bind(job_id=submitted.analysis.id)
    return submitted


async def known(question: Question, request: Request) -> Analysis | None:
    """Return the queued, running or succeeded analysis of this content, without starting one."""
    store: AsyncStore = request.app.state.store
    key, _ = await store.run(content_of, question, request.app.state.settings)
    return await store.run(store.sync.analysis_by_content, key)


def content_of(question: Question, settings: Settings) -> tuple[str, dict[str, Any]]:
    """Return the key of what decides the alphas, and the request with every default, as jobs read it.

    Where and when it is computed (device, priority) is not in the key. A local model enters with the sizes and times of
    its files, so that changed weights are another content. Raises what ``check_model`` raises.
    """
    allowed = check_model(question.model, settings)
    full = question if isinstance(question, AnalysisRequest) else AnalysisRequest(**dict(question))
    asked = full.model_dump(mode="json")
    asked["model"] = {"path": allowed.model} if allowed.is_path else {"id": allowed.model, "revision": allowed.revision}
    content = {name: asked[name] for name in Question.model_fields}
    if asked["estimator"] != "hill_fraction":
        del content["hill_fraction"]
    return digest({**content, "files": _files(allowed)}), asked


def _files(allowed: AllowedModel) -> str | None:
    if not allowed.is_path:
        return None
    path = Path(allowed.model)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    listed = hashlib.sha256()
    for file in files[:MAX_FILES]:
        try:
            status = os.stat(file)
        except OSError:  # a link to nothing: what cannot be read does not count
            continue
        listed.update(f"{file.name!r} {status.st_size} {status.st_mtime_ns}\n".encode())
    return listed.hexdigest()
