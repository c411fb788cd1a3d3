"""``alphalloc db``: the service's database: make or upgrade it, delete what is old, check that it is sound."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer

from alphalloc.cli import output
from alphalloc.errors import MissingExtraError, SettingsError, StorageError

app = typer.Typer(
    name="db",
    help="Make or upgrade the service's database, delete what is old in it, check it.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Database = Annotated[
    str | None,
    typer.Option("--database", metavar="URL", help="Another database than ALPHALLOC_DATABASE_URL or the user's own."),
]
Jobs = Annotated[
    float | None,
    typer.Option("--jobs-older-than", metavar="DAYS", min=0, help="Finished analyses.  [default: the setting's]"),
]
Allocations = Annotated[
    float | None,
    typer.Option("--allocations-older-than", metavar="DAYS", min=0, help="Schedules.  [default: the setting's]"),
]
DAY = 24 * 3600.0


@app.command("upgrade")
def upgrade(database: Database = None) -> None:
    """Bring the database to the schema of this release; nothing is done when it is there already.

    Several processes may run this at once. Needed once before the service is scaled out, and after an upgrade of
    alphalloc; `alphalloc serve` does it itself for an SQLite database.
    """
    store, settings = _service(database)
    store.upgrade(settings.database_url)
    output.print_text("the database is at the schema of this release\n")


@app.command("prune")
def prune(jobs: Jobs = None, allocations: Allocations = None, database: Database = None) -> None:
    """Delete finished analyses and schedules that are older than so many days.

    Without options what ALPHALLOC_RETAIN_JOBS_SECONDS and ALPHALLOC_RETAIN_ALLOCATIONS_SECONDS say, as workers do every
    hour. Spectra on disk are kept: see `alphalloc cache prune`.
    """
    store, settings = _service(database)
    ages = {
        "analyses": settings.retain_jobs_seconds if jobs is None else jobs * DAY,
        "allocations": settings.retain_allocations_seconds if allocations is None else allocations * DAY,
    }
    if set(ages.values()) == {None}:
        raise SettingsError("nothing is old: give --jobs-older-than or --allocations-older-than, or set a retention")
    opened = store.Store.open(settings.database_url)
    try:
        gone = {what: 0 if age is None else opened.prune(age, what) for what, age in ages.items()}
    finally:
        opened.close()
    output.print_text(", ".join(f"deleted {number} {what}" for what, number in gone.items()) + "\n")


@app.command("check")
def check(database: Database = None) -> None:
    """Check the database: its file (SQLite's integrity check), and rows that have to agree with each other."""
    store, settings = _service(database)
    opened = store.Store.open(settings.database_url)
    try:
        wrong = opened.check()
        counts = opened.counts()
    finally:
        opened.close()
    if wrong:
        raise StorageError(f"{len(wrong)} things are wrong in the database:\n" + "\n".join(wrong))
    output.print_text("sound; " + ", ".join(f"{number} {status}" for status, number in counts.items()) + "\n")


def _service(database: str | None) -> tuple[Any, Any]:
    """Return the module of the store and the settings."""
    try:
        # By name, as a shell would: this room and the service do not know each other's insides.
        store = import_module("alphalloc_service.store")
        settings = import_module("alphalloc_service.settings").Settings
    except ImportError as exc:
        raise MissingExtraError(f"the database needs {exc.name}: pip install 'alphalloc[server]'") from exc
    return store, settings.from_environment(database_url=database)
