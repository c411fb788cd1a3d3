"""The application: routes, middleware, and the store with everything that lives as long as the process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from alphalloc.documents import package_version

from . import observability, openapi, problems, security
from .async_store import AsyncStore
from .head_requests import HeadMiddleware
from .readiness import Readiness
from .request_ids import RequestIdMiddleware
from .routes import (
    allocations,
    analyses,
    docs,
    documents,
    events,
    exports,
    health,
    layers,
    methods,
    page,
    report,
    schedules,
)
from .settings import Settings
from .store import Store
from .waiting import Waiters

ROUTES = (allocations, exports, analyses, events, layers, report, schedules, methods, documents, health, page, docs)


def create_app(settings: Settings | None = None, store: Store | None = None) -> FastAPI:
    """Return the application for ``settings`` (default: those of the environment) on ``store``.

    Without a store it opens that of ``settings.database_url``; it closes either when it stops. Raises StorageError when
    the database cannot be opened or was not migrated.
    """
    settings = Settings.from_environment() if settings is None else settings
    store = Store.open(settings.database_url) if store is None else store
    app = FastAPI(
        title="alphalloc",
        version=package_version(),
        summary="Expert schedules from the power-law exponents of a pretrained model's layers.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.store = AsyncStore(store)
    app.state.waiters = Waiters(settings.max_streams)
    app.state.readiness = Readiness(settings, store)
    app.include_router(allocations.reading)  # first: routes are tried in order, and this one is asked for most
    for module in ROUTES:
        app.include_router(module.router)
    app.add_exception_handler(events.NothingMoreError, events.nothing_more)
    problems.install(app)
    # The last one added sees a request first: its id, the log, the checks, the method, the routes.
    app.add_middleware(HeadMiddleware)
    security.install(app, settings, store)
    observability.install(app, settings, store)
    app.add_middleware(RequestIdMiddleware)
    openapi.install(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.store.close()
