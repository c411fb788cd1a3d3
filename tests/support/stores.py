"""What the tests of the store share: a request, a clock that stands still, and an analysis that runs."""

from __future__ import annotations

from alphalloc_service.store import Store

REQUEST = {"model": {"id": "org/model", "revision": "main"}, "estimator": "ks", "priority": 0}


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def running(store: Store, content: str = "a", owner: str = "w", **submit) -> str:
    id = store.submit(content, REQUEST, **submit).analysis.id
    assert store.claim(owner, 30).id == id
    return id
