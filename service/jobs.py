"""The child process of one job: reads the model, measures it, tells its worker; knows no database.

``python -m alphalloc_service.jobs FD`` reads one line of JSON from stdin (settings and request) and writes messages to
the descriptor FD: ``progress`` after every matrix, then ``finished``, followed by the document's bytes, or ``failed``
with a problem document. It ends with its worker, whichever way that ends. Spectra go to the content-addressed cache
one by one, so the next attempt goes on where this one was killed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from http import HTTPStatus
from multiprocessing.connection import Connection
from typing import Any

from . import logs
from .confinement import check_download, confine
from .handover import read_line, when_closed
from .settings import Settings
from .statuses import status_of

logger = logging.getLogger("alphalloc_service")

INTERPRETER_BYTES = 2**28  # what Python, numpy, scipy and torch take before any matrix, rounded up; measured

Tell = Callable[[dict[str, Any]], None]


def main() -> None:
    """Run the job that stdin describes."""
    pipe = Connection(int(sys.argv[1]), readable=False)
    settings, job = read_line(sys.stdin.buffer)
    when_closed(sys.stdin.buffer, lambda: os.killpg(0, signal.SIGKILL))
    confine(settings, job["folder"])
    logs.configure(settings.log_format, level=logging.WARNING)
    logs.bind(job_id=job["id"])

    def tell(message: dict[str, Any]) -> None:
        pipe.send_bytes(json.dumps(message).encode())

    try:
        document, found = measure(job["request"], settings, job["backend"], job["ray_address"], tell)
    except Exception as exc:  # whatever it was, the client hears of it
        tell({"kind": "failed", "error": error_document(exc)})
        return
    tell({"kind": "finished", **found})
    pipe.send_bytes(document)


def measure(
    request: dict[str, Any], settings: Settings, backend: str, ray_address: str | None, tell: Tell
) -> tuple[bytes, dict[str, Any]]:
    """Return the ModelAlphas document in canonical JSON, and what the database keeps beside it."""
    import alphalloc
    from alphalloc.checkpoint.hub import remember_branch
    from alphalloc.documents import canonical_json

    arguments = arguments_of(request, backend, ray_address)
    if settings.job_memory_bytes is not None:  # so that a matrix which is too large is named, and does not kill
        arguments["memory"] = max(settings.job_memory_bytes - INTERPRETER_BYTES, INTERPRETER_BYTES // 4)
    asked, commit = request["model"].get("revision"), None
    if "id" in request["model"]:  # what is read is the commit that was checked, though the branch may move meanwhile
        commit = check_download(request["model"]["id"], asked, settings)
        arguments["revision"] = commit or asked

    def progress(state: Any) -> None:
        tell(
            {
                "kind": "progress",
                "done": state.done,
                "total": state.total,
                "name": state.name,
                "cached": state.cached,
                "device": state.device,
                "seconds": state.seconds,
                # One without an alpha may yet be filled: it is told at the end.
                "layer": state.layer.model_dump(mode="json") if state.layer and state.layer.alpha is not None else None,
            }
        )

    # Histograms are what the report draws; they change no number.
    cache = alphalloc.SpectraCache()
    alphas = alphalloc.analyze(**arguments, cache=cache, histograms=True, progress=progress)
    if commit is not None:
        remember_branch(request["model"]["id"], asked or "main", commit)
    alphas = alphas.model_copy(update={"model": alphas.model.model_copy(update={"revision": asked})})
    found = {
        "model": alphas.model.model_dump(mode="json"),
        "summary": alphas.summary(),
        "total": len(alphas.matrices),
        "layers": [layer.model_dump(mode="json") for layer in alphas.layers],
        "spectra": sorted(cache.used),
    }
    return canonical_json(alphas.model_dump(mode="json")).encode(), found


def arguments_of(request: dict[str, Any], backend: str, ray_address: str | None) -> dict[str, Any]:
    """Return the arguments of ``alphalloc.analyze`` for an analysis request as it is stored."""
    model = request["model"]
    names = ("estimator", "hill_fraction", "fill", "stability", "device")
    chosen: dict[str, Any] = {name: request[name] for name in names if name in request}
    globs = request.get("layer_filter") or {}
    chosen |= {name: tuple(globs[name]) for name in ("include", "exclude") if globs.get(name)}
    if backend != "local":
        chosen["backend"] = backend
    if ray_address is not None:
        chosen["ray_address"] = ray_address
    return {"model": model.get("path") or model["id"], "revision": model.get("revision"), **chosen}


def error_document(exc: BaseException) -> dict[str, Any]:
    """Return the problem document of what went wrong: the error's own code, or ``internal`` with a line in the log."""
    from alphalloc.errors import AlphallocError, MemoryBudgetError

    if isinstance(exc, MemoryError):
        exc = MemoryBudgetError("the job needs more memory than it may use; raise job_memory_bytes, or filter layers")
    if isinstance(exc, AlphallocError):
        return problem(exc.code, status_of(exc), str(exc))
    logger.error("a job failed", exc_info=exc)
    return problem("internal", 500, f"the analysis failed with {type(exc).__name__}; the worker's log has the details")


def problem(code: str, status: int, detail: str) -> dict[str, Any]:
    """Return a problem document without a request: what an analysis that failed has as its ``error``.

    Secrets are struck out of ``detail``: an error of the hub quotes the URL that failed, which may be a signed one.
    """
    title = HTTPStatus(status).phrase
    return {
        "type": f"urn:alphalloc:problem:{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": logs.strike_secrets(detail)[:2000],
    }


if __name__ == "__main__":
    main()
