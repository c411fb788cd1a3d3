"""Log lines: JSON with ids, text on a terminal, and no secret in either."""

from __future__ import annotations

import io
import json
import logging
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


def test_what_is_no_secret_stays() -> None:
    for text in (
        "al_0123456789abcdef",
        "alphalloc_jobs",
        "https://host/a/b@main",
        "alpha 2.5 of hf_home",
        "an_12:34@x",
    ):
        assert logs.strike_secrets(text) == text


def test_chatty_libraries_are_quiet() -> None:
    stream = io.StringIO()
    logs.configure("json", stream)
    logging.getLogger("httpx").info("HTTP Request: GET https://host/?token=1")
    assert stream.getvalue() == ""
