"""``alphalloc keys``: the API keys of the service on this machine's database: make one, list them, revoke one."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Annotated, Any

import typer

from alphalloc.cli import options, output
from alphalloc.cli.text import plain
from alphalloc.errors import MissingExtraError, SettingsError

app = typer.Typer(
    name="keys",
    help="Make, list and revoke the API keys of the service.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="What the key is called in lists and logs.")]
NameOrId = Annotated[str, typer.Argument(metavar="NAME", help="The name or id of the key.")]
Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        metavar="SCOPE",
        help="read (see), write (analyse and allocate too) or admin (purge too).  [default: write]",
    ),
]
Database = Annotated[
    str | None,
    typer.Option("--database", metavar="URL", help="Another database than ALPHALLOC_DATABASE_URL or the user's own."),
]


@app.command("create")
def create(name: Name, scope: Scopes = None, database: Database = None, as_json: options.AsJson = False) -> None:
    """Make a key and print it. It is shown this once: the database keeps only its SHA-256.

    As soon as a database has had one key, the service wants a key for everything but its page and its health. A
    running service sees a new or revoked key within seconds.
    """
    keys, store = _open(database)
    scopes = keys.check_scopes(scope or ["write"])
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise SettingsError(f"{name[:100]!r}: expected a name of 1 to 100 printable characters")
    key = keys.new_key()
    try:
        row = store.add_key(name, keys.digest(key), scopes)
    except import_module("alphalloc_service.store").KeyNameTakenError as exc:
        raise SettingsError(f"a key {name!r} is in use; revoke it first, or choose another name") from exc
    finally:
        store.close()
    if as_json:
        _print_json({"key": key, **_facts(row)})
    else:
        output.print_text(f"{key}\n")


@app.command("list")
def list_(database: Database = None, as_json: options.AsJson = False) -> None:
    """Print all keys, revoked ones too: id, name, scopes, when made, when revoked. No key can be seen again."""
    _, store = _open(database)
    try:
        rows = [_facts(row) for row in store.list_keys()]
    finally:
        store.close()
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        state = f"revoked {row['revoked_at']}" if row["revoked_at"] else "in use"
        text = f"{row['id']}  {plain(row['name'])}  {','.join(row['scopes'])}  made {row['created_at']}  {state}"
        output.print_text(text + "\n")


@app.command("revoke")
def revoke(name: NameOrId, database: Database = None) -> None:
    """Revoke a key for good. A running service refuses it within seconds."""
    _, store = _open(database)
    try:
        if not store.revoke_key(name):
            raise SettingsError(f"no key {name!r} is in use; `alphalloc keys list` shows all")
    finally:
        store.close()
    output.print_text(f"revoked {plain(name)}\n")


def _open(database: str | None) -> tuple[Any, Any]:
    """Return the module of keys and the open store; a SQLite database is made if there is none yet."""
    try:
        # By name, as a shell would: this room and the service do not know each other's insides.
        store = import_module("alphalloc_service.store")
        keys = import_module("alphalloc_service.keys")
        settings = import_module("alphalloc_service.settings").Settings
    except ImportError as exc:
        raise MissingExtraError(f"keys need {exc.name}: pip install 'alphalloc[server]'") from exc
    url = settings.from_environment(database_url=database).database_url
    if url.startswith("sqlite"):
        store.upgrade(url)
    return keys, store.Store.open(url)


def _facts(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "scopes": list(row.scopes),
        "created_at": _when(row.created_at),
        "revoked_at": None if row.revoked_at is None else _when(row.revoked_at),
    }


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _print_json(value: Any) -> None:
    from alphalloc.documents import pretty_json

    output.print_json(pretty_json(value))
