"""The typed client of the allocation service.

::

    client = Client("http://127.0.0.1:8000", key="alph_...")
    schedule = client.allocate(model="meta-llama/Llama-2-7b-hf", budget=160)  # waits, whatever it takes
    alphas = client.analyze("meta-llama/Llama-2-7b-hf", progress=print)

Everything it sends may be sent again: the same question has the same answer and is never computed twice at once. So it
tries again by itself when nothing answers, and when the service says that it is busy or away (429, 503).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from alphalloc.errors import (
    AnalysisFailedError,
    DocumentError,
    MissingExtraError,
    ServiceError,
    ServiceRefusedError,
    ServiceUnreachableError,
    SettingsError,
)

if TYPE_CHECKING:
    import httpx2

    from alphalloc.allocation import ExpertSchedule
    from alphalloc.alphas import ModelAlphas

T = TypeVar("T")

WAIT_SECONDS = 30  # of one long poll; the service allows 60, proxies sometimes less
TRIES = 8  # chosen here: with the pauses below a restart of the service of half a minute is sat out
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds; doubled each time, or what Retry-After says
BUSY = (429, 502, 503, 504)


@dataclass(frozen=True)
class AnalysisState:
    """How an analysis stands: ``status`` is queued, running, succeeded, failed or cancelled; ``done`` of ``total``
    matrices are measured; ``document`` is the whole answer.
    """

    id: str
    status: str
    done: int
    total: int
    document: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the status will not change any more."""
        return self.status in ("succeeded", "failed", "cancelled")


Progress = Callable[[AnalysisState], None]


class Client:
    """A connection to the service at ``url``. ``key``: an API key (default: the variable ALPHALLOC_KEY).

    ``timeout``: seconds until the end of one answer (long polls apart). Raises SettingsError for a URL that is none,
    MissingExtraError without the extra ``client``. Every method raises ServiceUnreachableError when nothing answers
    through all tries, and ServiceRefusedError, with the problem document, when the service refuses. Safe to share
    between threads; ``close`` it, or use it in a ``with`` block.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 60.0, tries: int = TRIES) -> None:
        try:
            import httpx2
        except ImportError as exc:
            raise MissingExtraError("the client needs httpx2: pip install 'alphalloc[client]'") from exc
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"expected the service's URL, such as http://127.0.0.1:8000, found {url!r}")
        key = key or os.environ.get("ALPHALLOC_KEY")
        self.url, self._tries = url.rstrip("/"), tries
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        try:
            self._http = httpx2.Client(
                base_url=self.url, headers=headers, timeout=httpx2.Timeout(timeout, connect=10.0)
            )
        except (httpx2.InvalidURL, ValueError) as exc:
            raise SettingsError(f"{url!r} is not a URL, or the key is not one: {exc}") from exc
        self._timeout = timeout

    def allocate(
        self,
        *,
        model: str | None = None,
        alphas: Sequence[float] | None = None,
        analysis_id: str | None = None,
        budget: int | None = None,
        per_layer_mean: float | None = None,
        revision: str | None = None,
        estimator: str | None = None,
        rule: str = "alpha_power",
        params: Mapping[str, Any] | None = None,
        rounding: str = "largest_remainder",
        min_experts: int = 1,
        max_experts: int | None = None,
        top_k: int = 2,
        confidence: bool = False,
        store: bool = True,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> ExpertSchedule:
        """Return the schedule for a ``model`` (hub id, or a path on the service's machine), for ``alphas`` (one a
        layer) or for a finished analysis. Bare ``alphas`` are of layers 0, 1, .. of no named model, as in the library.

        A model that the service does not know is analysed first; ``progress`` is called with each new state. ``budget``
        counts experts in all, ``per_layer_mean`` a layer on average; five a layer when neither is given. The other
        arguments are those of ``alphalloc.allocate``. Raises AnalysisFailedError when the analysis has no result, and
        ServiceError after ``timeout`` seconds in all (default: wait for ever).
        """
        from alphalloc.allocation import ExpertSchedule

        source = _source(model, alphas, analysis_id, revision, estimator)
        question: dict[str, Any] = {
            "source": source,
            "budget": _budget(budget, per_layer_mean),
            "method": rule,
            "params": dict(params or {}),
            "rounding": rounding,
            "bounds": {"min": min_experts, "max": max_experts},
            "top_k": top_k,
            "confidence": confidence,
            "store": store,
        }
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            answer = self._request("POST", "/v1/allocations", json=question)
            if answer.status_code != 202:
                return self._read(ExpertSchedule.from_json, answer)
            self.wait(answer.json()["id"], progress=progress, timeout=_left(deadline))

    def analyze(
        self,
        model: str,
        *,
        revision: str | None = None,
        estimator: str | None = None,
        device: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        fill: str | None = None,
        stability: bool = False,
        priority: int = 0,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> ModelAlphas:
        """Return the alphas of ``model`` (hub id, or a path on the service's machine), analysed there if need be.

        Arguments as of ``alphalloc.analyze``; a higher ``priority`` is taken first. Raises AnalysisFailedError when it
        has no result, and ServiceError after ``timeout`` seconds in all.
        """
        question = _question(model, revision, estimator)
        question |= {"layer_filter": {"include": list(include), "exclude": list(exclude)}} if include or exclude else {}
        given = {"device": device, "fill": fill, "stability": stability or None, "priority": priority or None}
        question |= {name: value for name, value in given.items() if value is not None}
        state = _state(self._request("POST", "/v1/analyses", json=question).json())
        if not state.finished:
            self.wait(state.id, progress=progress, timeout=timeout)
        return self.alphas(state.id)

    def wait(self, id: str, *, progress: Progress | None = None, timeout: float | None = None) -> AnalysisState:
        """Return the state of a succeeded analysis, after waiting for its end by long polls.

        ``progress`` is called with each new state. Raises AnalysisFailedError when it ends otherwise, ServiceError
        after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        etag: str | None = None
        while True:
            left = _left(deadline)
            seconds = WAIT_SECONDS if left is None else max(0, min(WAIT_SECONDS, int(left)))
            headers = {"Prefer": f"wait={seconds}"} | ({"If-None-Match": etag} if etag else {})
            answer = self._request("GET", f"/v1/analyses/{id}", headers=headers, wait=seconds)
            if answer.status_code != 304:
                etag, state = answer.headers.get("ETag"), _state(answer.json())
                if progress is not None:
                    progress(state)
                if state.finished:
                    return _succeeded(state)
            if left is not None and left <= 0:
                raise ServiceError(f"{self.url}: the analysis {id} did not end in time; it goes on there")

    def alphas(self, analysis_id: str) -> ModelAlphas:
        """Return the alphas of a succeeded analysis."""
        from alphalloc.alphas import ModelAlphas

        return self._read(ModelAlphas.from_json, self._request("GET", f"/v1/analyses/{analysis_id}/alphas"))

    def schedule(self, id: str) -> ExpertSchedule:
        """Return a stored schedule."""
        from alphalloc.allocation import ExpertSchedule

        return self._read(ExpertSchedule.from_json, self._request("GET", f"/v1/allocations/{id}"))

    def export(self, id: str, format: str, **options: Any) -> str:
        """Return a stored schedule in the words of a trainer: ``format`` and ``options`` as of GET /v1/methods and
        `alphalloc export`.
        """
        given = {"format": format, **options}
        return self._request("GET", f"/v1/allocations/{id}/export", params=given).text

    def analysis(self, id: str) -> AnalysisState:
        """Return how an analysis stands."""
        return _state(self._request("GET", f"/v1/analyses/{id}").json())

    def cancel(self, id: str) -> AnalysisState:
        """Cancel an analysis and return how it stands."""
        return _state(self._request("POST", f"/v1/analyses/{id}/cancel").json())

    def delete(self, id: str, *, purge: bool = False) -> None:
        """Delete a finished analysis; with ``purge`` its measured spectra too, which needs a key of scope admin."""
        self._request("DELETE", f"/v1/analyses/{id}", params={"purge": "true"} if purge else {})

    def methods(self) -> dict[str, Any]:
        """Return all that can be chosen by name: rules, roundings, estimators, presets, exports."""
        found: dict[str, Any] = self._request("GET", "/v1/methods").json()
        return found

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, method: str, path: str, *, wait: float = 0, **options: Any) -> httpx2.Response:
        """Return the answer, tried again while nothing answers or the service is busy."""
        import httpx2

        pause, trouble = FIRST_PAUSE, ""
        for attempt in range(self._tries):
            if attempt:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            try:
                answer = self._http.request(
                    method, path, timeout=httpx2.Timeout(self._timeout + wait, connect=10.0), **options
                )
            except httpx2.TransportError as exc:
                trouble = f"{type(exc).__name__}: {exc}"
                continue
            if answer.status_code not in BUSY:
                return self._checked(answer)
            trouble = _detail(answer)
            pause = _pause(answer, pause)
        raise ServiceUnreachableError(f"{self.url}: no usable answer in {self._tries} tries; the last: {trouble}")

    def _checked(self, answer: httpx2.Response) -> httpx2.Response:
        if answer.is_success or answer.status_code == 304:
            return answer
        problem = _problem(answer)
        if problem.get("code") == AnalysisFailedError.code:
            raise AnalysisFailedError(f"{self.url}: {_detail(answer)}")
        raise ServiceRefusedError(f"{self.url}: {_detail(answer)}", problem)

    def _read(self, reader: Callable[[str], T], answer: httpx2.Response) -> T:
        try:
            return reader(answer.text)
        except DocumentError as exc:
            raise ServiceError(f"{self.url}: the answer is not what was asked for: {exc}") from exc


def _source(
    model: str | None,
    alphas: Sequence[float] | None,
    analysis_id: str | None,
    revision: str | None,
    estimator: str | None,
) -> dict[str, Any]:
    given = [
        name
        for name, value in (("model", model), ("alphas", alphas), ("analysis_id", analysis_id))
        if value is not None
    ]
    if len(given) != 1:
        raise SettingsError(f"expected one of model, alphas and analysis_id, found {' and '.join(given) or 'none'}")
    if model is not None:
        return _question(model, revision, estimator)
    if revision is not None or estimator is not None:
        raise SettingsError("revision and estimator belong to model; leave them out beside alphas or analysis_id")
    return {"analysis_id": analysis_id} if alphas is None else {"alphas": [float(alpha) for alpha in alphas]}


def _question(model: str, revision: str | None, estimator: str | None) -> dict[str, Any]:
    """Return the request's part about the model; what starts like a path is one, on the service's machine."""
    if model.startswith(("/", "./", "../", "~")):
        if revision is not None:
            raise SettingsError("only hub ids have revisions; leave it out beside a path")
        named: dict[str, Any] = {"path": model}
    else:
        named = {"id": model} | ({} if revision is None else {"revision": revision})
    return {"model": named} | ({} if estimator is None else {"estimator": estimator})


def _budget(total: int | None, per_layer_mean: float | None) -> dict[str, Any]:
    if total is not None and per_layer_mean is not None:
        raise SettingsError("expected one budget, found budget and per_layer_mean; keep one")
    if total is not None:
        return {"total": total}
    from alphalloc.allocation import DEFAULT_EXPERTS_PER_LAYER

    return {"per_layer_mean": float(DEFAULT_EXPERTS_PER_LAYER if per_layer_mean is None else per_layer_mean)}


def _state(document: dict[str, Any]) -> AnalysisState:
    progress = document["progress"]
    return AnalysisState(document["id"], document["status"], progress["done"], progress["total"], document)


def _succeeded(state: AnalysisState) -> AnalysisState:
    if state.status == "succeeded":
        return state
    error = state.document.get("error") or {}
    why = f": {error.get('code')}: {error.get('detail')}" if error else ""
    raise AnalysisFailedError(f"the analysis {state.id} {state.status}{why}")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _problem(answer: httpx2.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _detail(answer: httpx2.Response) -> str:
    problem = _problem(answer)
    return f"{answer.status_code} {problem.get('code', '')}: {problem.get('detail', answer.text[:200])}"


def _pause(answer: httpx2.Response, pause: float) -> float:
    given = answer.headers.get("Retry-After", "")
    return min(float(given), LONGEST_PAUSE) if given.isascii() and given.isdigit() else pause
