"""``alphalloc allocate --server URL``: the same question, asked of a service."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphalloc.cli import render
from alphalloc.cli.allocation_request import AllocationRequest, BudgetOptions, RankOptions, SignalOptions
from alphalloc.errors import InvalidParameterError

if TYPE_CHECKING:
    from alphalloc.allocation import ExpertSchedule
    from alphalloc.client import AnalysisState

SECONDS_BETWEEN_NOTES = 5.0


def schedule(
    request: AllocationRequest, source: str, estimator: str | None, url: str, key: str | None, *, quiet: bool
) -> ExpertSchedule:
    """Return the schedule that the service at ``url`` gives for ``source``, a model there.

    Raises InvalidParameterError for what only the local command can do, an alphas file among it, and the client's
    errors.
    """
    from alphalloc.client import Client

    arguments = _arguments(request)
    _refuse_alphas(source)
    with Client(url, key) as client:
        return client.allocate(**arguments, model=source, estimator=estimator, progress=None if quiet else _notes(url))


def _refuse_alphas(source: str) -> None:
    """Raise InvalidParameterError for an alphas file of this machine, DocumentError for any other file of it.

    The service takes bare numbers only. The schedule of a file names its model, its analysis and each layer's index and
    stack, and its id is made from these: bare numbers give another schedule, for every file.
    """
    if not Path(source).is_file():
        return
    from alphalloc.alphas import ModelAlphas

    model = ModelAlphas.load(source).model.id
    raise InvalidParameterError(
        f"{source} holds alphas, which a service cannot be given with their model and layers; leave out --server to "
        f"allocate here (it needs no weights), or name the model (here {model}) to have the service analyse it"
    )


def _arguments(request: AllocationRequest) -> dict[str, Any]:
    """Return the client's arguments for ``request``."""
    only_here = {
        "a budget in parameters, megabytes or ranks": request.budget
        != BudgetOptions(experts_per_layer=request.budget.experts_per_layer),
        "ranks": request.ranks != RankOptions(),
        "another signal than alpha": request.signal != SignalOptions(),
        "--level module": request.level != "layer",
        "constraints": request.constraints is not None,
        "--draws": request.draws is not None,
    }
    refused = [what for what, asked in only_here.items() if asked]
    if refused:
        raise InvalidParameterError(f"the service does not offer {refused[0]}; leave it out, or leave out --server")
    given = request.options.given()
    rule, _, inline = str(given.pop("rule", "alpha_power")).partition(":")
    params = dict(request.params)
    if inline:
        raise InvalidParameterError(
            f"--server takes a rule's settings as --param, not behind the name: {rule}:{inline}"
        )
    if "beta" in given:
        params["beta"] = given.pop("beta")
    return {
        "budget": request.options.experts,
        "per_layer_mean": request.budget.experts_per_layer,
        "rule": rule,
        "params": params,
        "confidence": request.confidence,
        **given,
    }


def _notes(url: str) -> Callable[[AnalysisState], None]:
    """Return a progress callback that says every few seconds how the analysis stands."""
    said = -SECONDS_BETWEEN_NOTES

    def tell(state: AnalysisState) -> None:
        nonlocal said
        if time.monotonic() - said >= SECONDS_BETWEEN_NOTES or state.finished:
            said = time.monotonic()
            render.note(f"{url}: {state.id} {state.status}, {state.done} of {state.total} matrices")

    return tell
