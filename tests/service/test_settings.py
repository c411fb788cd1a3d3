"""Settings: what is given wins over the environment, the environment over the defaults."""

from __future__ import annotations

import pytest
from alphalloc_service.settings import Settings

from alphalloc.errors import SettingsError


def test_defaults() -> None:
    assert Settings.from_environment({}) == Settings("127.0.0.1", 8000, 2**20, False)


def test_order_of_precedence() -> None:
    environ = {"ALPHALLOC_HOST": "::1", "ALPHALLOC_PORT": "9000", "ALPHALLOC_MAX_BODY_BYTES": "2048"}
    assert Settings.from_environment(environ) == Settings("::1", 9000, 2048)
    assert Settings.from_environment(environ, port=0, host=None) == Settings("::1", 0, 2048)


@pytest.mark.parametrize("value", ["-1", "65536", "8000.0", "eight", "٨٠", "1" * 50, " 80"])
def test_unusable_port(value: str) -> None:
    with pytest.raises(SettingsError, match="ALPHALLOC_PORT: expected a whole number from 0 to 65535, found"):
        Settings.from_environment({"ALPHALLOC_PORT": value})


def test_unusable_limit() -> None:
    with pytest.raises(SettingsError, match="ALPHALLOC_MAX_BODY_BYTES: expected a whole number from 1024"):
        Settings.from_environment({"ALPHALLOC_MAX_BODY_BYTES": "0"})
