"""`alphalloc keys`: made once, listed without secrets, revoked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alphalloc_service.keys import FORM, digest
from alphalloc_service.store import Store
from typer.testing import CliRunner, Result

from alphalloc.cli.app import build_app
from alphalloc.errors import SettingsError


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/keys.db"


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), ["keys", *arguments], catch_exceptions=True)


def test_a_key_is_printed_once_and_works(url: str) -> None:
    made = keys("create", "me", "--scope", "read", "--scope", "write", "--database", url)
    assert made.exit_code == 0, made.output
    key = made.output.strip()
    assert FORM.fullmatch(key)
    store = Store.open(url)
    row = store.key_by_hash(digest(key))
    store.close()
    assert row is not None
    assert (row.name, row.scopes) == ("me", ("read", "write"))
    listed = keys("list", "--database", url).output
    assert "me" in listed
    assert "read,write" in listed
    assert key not in listed
    assert digest(key) not in listed


def test_it_may_be_json(url: str) -> None:
    made = json.loads(keys("create", "me", "--json", "--database", url).output)
    assert FORM.fullmatch(made["key"])
    assert made["scopes"] == ["write"]
    listed = json.loads(keys("list", "--json", "--database", url).output)
    assert listed == [{name: value for name, value in made.items() if name != "key"}]


def test_a_revoked_key_stays_listed_and_frees_its_name(url: str) -> None:
    first = keys("create", "me", "--database", url).output.strip()
    assert keys("revoke", "me", "--database", url).output == "revoked me\n"
    store = Store.open(url)
    assert store.key_by_hash(digest(first)) is None
    store.close()
    assert keys("create", "me", "--database", url).exit_code == 0
    states = [row["revoked_at"] is None for row in json.loads(keys("list", "--json", "--database", url).output)]
    assert states == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "me", "--scope", "root"), "expected scopes out of read, write, admin, found root"),
        (("create", ""), "1 to 100 printable"),
        (("create", "a\nb"), "1 to 100 printable"),
        (("create", "x" * 101), "1 to 100 printable"),
        (("revoke", "nobody"), "no key 'nobody' is in use"),
    ],
)
def test_mistakes_are_named(url: str, arguments: tuple[str, ...], message: str) -> None:
    answer = keys(*arguments, "--database", url)
    assert isinstance(answer.exception, SettingsError)
    assert message in str(answer.exception)


def test_a_name_in_use_is_refused(url: str) -> None:
    keys("create", "me", "--database", url)
    answer = keys("create", "me", "--database", url)
    assert isinstance(answer.exception, SettingsError)
    assert "in use; revoke it first" in str(answer.exception)


def test_the_environment_names_the_database(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPHALLOC_DATABASE_URL", url)
    assert keys("create", "me").exit_code == 0
    assert "me" in keys("list", "--database", url).output
