"""Log lines: JSON with ids, text on a terminal, and no secret in either."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator

import pytest
import structlog
from alphalloc_service import logs
from alphalloc_service.keys import new_key


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_time_level_and_ids() -> None:
    stream = io.StringIO()
    logs.configure("json", stream)
    logs.bind(job_id="an_1")
    logging.getLogger("alphalloc_service").warning("analysis %s: %s", "an_1", "lease lost", extra={"attempt": 2})
    structlog.get_logger().info("request", status=200)
    first, second = lines(stream)
    assert (first["event"], first["level"], first["job_id"], first["attempt"]) == (
        "analysis an_1: lease lost", "warning", "an_1", 2,
    )  # fmt: skip
    assert str(first["timestamp"]).endswith("Z")
    assert (second["event"], second["status"], second["job_id"]) == ("request", 200, "an_1")


def test_auto_is_json_unless_a_person_reads() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    pipe, terminal = io.StringIO(), Terminal()
    for stream in (pipe, terminal):
        logs.configure("auto", stream)
        logging.getLogger("x").error("said")
    assert lines(pipe)[0]["event"] == "said"
    assert "said" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


SECRETS = {
    new_key(): "key",
    "hf_abcdefghijklmnopqrstuvwxyz012345": "hub token",
    "postgresql+psycopg://me:hunter2secret@db/alphalloc": "password of a URL",
    "Bearer abc.def-ghi": "any bearer token",
}


@pytest.mark.parametrize("secret", SECRETS, ids=SECRETS.values())
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_secret_is_ever_written(secret: str, log_format: str) -> None:
    stream = io.StringIO()
    logs.configure(log_format, stream)
    logger = logging.getLogger("anything")
    logger.error("plain %s", secret)
    logger.error("extra", extra={"header": {"authorization": [secret]}})
    structlog.get_logger().error("structured", value=secret, nested={"a": [secret]})
    try:
        raise RuntimeError(f"could not use {secret}")
    except RuntimeError:
        logger.exception("failed")
    text = stream.getvalue()
    assert text.count(logs.STRUCK) >= 4
    hidden = secret.removeprefix("Bearer ").removeprefix("postgresql+psycopg://me:").removesuffix("@db/alphalloc")
    assert hidden not in text


# What must be gone, and the text it came in.
FORMS = [
    ("hunter2", "Authorization: BEARER hunter2"),
    ("hunter2", "bearer  hunter2"),
    ("hunter2", "Bearer\thunter2"),
    ("hunter2", "?authorization=Bearer%20hunter2"),
    ("bWU6aHVudGVyMg", "Authorization: Basic bWU6aHVudGVyMg=="),
    ("eyJh", "hf_jwt_eyJhbGciOi.eyJhdWQ.c2ln-natu_re"),
    ("eyJh", "hf_oauth_eyJhbGciOi.eyJhdWQ.c2ln-natu_re"),
    ("Abcdefgh", "api_org_AbcdefghIjkl"),
    ("hunter2", "postgresql+psycopg://host/alphalloc?user=u&password=hunter2"),
    ("hunter2", "postgresql+psycopg://u:hun/ter2/hunter2@host/alphalloc"),
    ("hunter2", "postgresql+psycopg://u:hun@ter2@hunter2@host/alphalloc"),
    ("hunter2", "postgresql+psycopg://:hunter2@host/alphalloc"),
    ("hunter2", "http://host/a,postgresql://u:hunter2@host"),
    ("hunter2", "PGPASSWORD=hunter2 alphalloc serve"),
    ("hunter2", "host=db password='hunter2' dbname=x"),
    ("hunter2", "{'HF_TOKEN': 'hunter2'}"),
    ("ä/hunter2", "password=ä/hunter2"),
    ("0af1", "https://cdn.example/f?X-Amz-Credential=0af1%2Fus&X-Amz-Signature=0af1&X-Amz-Security-Token=0af1"),
    ("0af1", "https://cdn.example/f?Expires=1&Policy=eyJ&Signature=0af1~&Key-Pair-Id=K1"),
    ("0af1", "https://cdn.example/f?X-Goog-Signature=0af1"),
    ("0af1", "https://cdn.example/f?sv=1&sig=0af1"),
]


@pytest.mark.parametrize(("hidden", "text"), FORMS)
def test_secrets_of_every_form_are_struck(hidden: str, text: str) -> None:
    assert hidden not in logs.strike_secrets(text)
    for log_format in ("json", "text"):
        stream = io.StringIO()
        logs.configure(log_format, stream)
        logging.getLogger("anything").error('it said "%s"', text, extra={"nested": {"a": [text, f"'{text}'"]}})
        assert hidden not in stream.getvalue()
        if log_format == "json":
            assert hidden not in str(lines(stream))  # and the line is still JSON


HOSTILE = (
    "://:", "://a:b", "://a:b@", "bearer ", "Basic\t", "password", "password=", "password=\\", '"token" : ', "=", "\\",
    "alph_", "hf_jwt_", "hf_jwt_.", "%20",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_long_hostile_line_costs_no_more_than_its_length(piece: str) -> None:
    """A megabyte takes tenths of a second; what grew with the square would take hours."""
    for text in (piece * (2**20 // len(piece)), piece + " " * 2**20, piece + "@" * 2**20, piece + "x" * 2**20):
        began = time.process_time()
        logs.strike_secrets(text)
        assert time.process_time() - began < 10


def test_what_is_no_secret_stays() -> None:
    for text in (
        "al_0123456789abcdef",
        "alphalloc_jobs",
        "https://host/a/b@main",
        "alpha 2.5 of hf_home",
        "an_12:34@x",
        "alphalloc serves http://127.0.0.1:8000 (Ctrl-C stops it)",
        "https://host:8080/org/model/resolve/main/config.json?download=true",
        '{"key": "prometheus", "seconds": 0.1, "path": "/v1/analyses"}',
        "pad_token_id, hf_hub_download and 4 tokens: basics",
    ):
        assert logs.strike_secrets(text) == text


def test_chatty_libraries_are_quiet() -> None:
    stream = io.StringIO()
    logs.configure("json", stream)
    logging.getLogger("httpx").info("HTTP Request: GET https://host/?token=1")
    assert stream.getvalue() == ""
