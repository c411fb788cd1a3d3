"""Settings: what is given wins over the environment, the environment over the defaults; nonsense is refused by name."""

from __future__ import annotations

from dataclasses import fields

import pytest
from alphalloc_service.settings import Settings

from alphalloc.errors import SettingsError

# One usable text of the environment for every setting, and what it means.
USABLE = {
    "host": ("::1", "::1"),
    "port": ("9000", 9000),
    "max_body_bytes": ("2048", 2048),
    "insecure_no_auth": ("true", True),
    "database_url": ("postgresql+psycopg://user:secret@db/alphalloc", "postgresql+psycopg://user:secret@db/alphalloc"),
    "lease_seconds": ("2.5", 2.5),
    "max_attempts": ("5", 5),
    "worker": ("no", False),
    "backend": ("ray", "ray"),
    "ray_address": ("head:6379", "head:6379"),
    "model_roots": ("/models, /more", ("/models", "/more")),
    "allow_models": ("meta-llama/*,mistralai/*", ("meta-llama/*", "mistralai/*")),
    "deny_models": ("*/secret", ("*/secret",)),
    "allowed_hosts": ("alphas.example.org", ("alphas.example.org",)),
    "cors_origins": ("https://example.org", ("https://example.org",)),
    "rate_limit": ("off", None),
    "max_header_bytes": ("8192", 8192),
    "job_seconds": ("60", 60.0),
    "job_memory_bytes": ("4294967296", 2**32),
    "job_memory_share": ("0.5", 0.5),
    "job_download_bytes": ("none", None),
    "max_queued": ("7", 7),
    "max_streams": ("3", 3),
    "retain_jobs_seconds": ("86400", 86400.0),
    "retain_allocations_seconds": ("86400", 86400.0),
    "log_format": ("json", "json"),
    "metrics": ("0", False),
}


def test_defaults() -> None:
    settings = Settings.from_environment({})
    assert settings == Settings()
    assert (settings.host, settings.port, settings.max_body_bytes) == ("127.0.0.1", 8000, 2**20)
    assert settings.database_url.startswith("sqlite:///")
    assert settings.hosts == ("127.0.0.1", "localhost", "[::1]")


def test_a_job_has_limits_by_default_and_each_can_be_taken_away() -> None:
    names = ("job_seconds", "job_memory_share", "job_download_bytes")
    assert [getattr(Settings(), name) for name in names] == [3600, 0.8, 500 * 10**9]
    without = Settings.from_environment({f"ALPHALLOC_{name.upper()}": "none" for name in names[1:]})
    assert [getattr(without, name) for name in names[1:]] == [None, None]


def test_every_setting_has_its_variable() -> None:
    assert set(USABLE) == {field.name for field in fields(Settings)}
    environ = {f"ALPHALLOC_{name.upper()}": text for name, (text, _) in USABLE.items()}
    assert Settings.from_environment(environ) == Settings(**{name: value for name, (_, value) in USABLE.items()})


def test_order_of_precedence() -> None:
    environ = {"ALPHALLOC_HOST": "::1", "ALPHALLOC_PORT": "9000", "ALPHALLOC_BACKEND": ""}
    assert Settings.from_environment(environ) == Settings("::1", 9000)
    assert Settings.from_environment(environ, port=0, host=None) == Settings("::1", 0)


@pytest.mark.parametrize(("host", "name"), [("::", "[::]"), ("0.0.0.0", "0.0.0.0"), ("box.lan", "box.lan")])
def test_the_own_host_is_an_allowed_name(host: str, name: str) -> None:
    assert Settings(host=host).hosts == ("127.0.0.1", "localhost", "[::1]", name)


def test_the_database_password_is_not_shown() -> None:
    url = "postgresql+psycopg://user:hunter2@db/alphalloc"
    assert "hunter2" not in repr(Settings(database_url=url))
    with pytest.raises(SettingsError) as refused:
        Settings(database_url="mysql://user:hunter2@db/alphalloc")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("value", ["-1", "65536", "8000.0", "eight", "٨٠", "1" * 50, " 80"])
def test_unusable_port(value: str) -> None:
    with pytest.raises(SettingsError, match="ALPHALLOC_PORT: expected a whole number from 0 to 65535, found"):
        Settings.from_environment({"ALPHALLOC_PORT": value})


UNUSABLE = [
    ("MAX_BODY_BYTES", "0", "expected a whole number from 1 to"),
    ("LEASE_SECONDS", "nan", "expected seconds from 0.2 to 3600"),
    ("LEASE_SECONDS", "0.1", "expected seconds from 0.2 to 3600"),
    ("JOB_MEMORY_SHARE", "80", "expected a share from 0.01 to 1"),
    ("JOB_MEMORY_SHARE", "0.001", "expected a share from 0.01 to 1"),
    ("WORKER", "perhaps", "expected true or false"),
    ("BACKEND", "dask", "expected one of auto, local, batched, ray"),
    ("DATABASE_URL", "mysql://db/alphalloc", "expected sqlite:///FILE or postgresql"),
    ("RATE_LIMIT", "600 per minute", r"expected NUMBER/\(second\|minute\|hour\|day\)"),
    ("RATE_LIMIT", "0/minute", "expected NUMBER/"),
    ("LOG_FORMAT", "xml", "expected one of auto, text, json"),
    ("HOST", "two words\n", "expected a host name or address"),
    ("HOST", " ", "expected a host name or address"),
]


@pytest.mark.parametrize(("name", "value", "message"), UNUSABLE)
def test_unusable_values(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"ALPHALLOC_{name}: {message}"):
        Settings.from_environment({f"ALPHALLOC_{name}": value})


def test_values_given_in_code_are_checked_too() -> None:
    with pytest.raises(SettingsError, match="port: expected a whole number"):
        Settings(port=True)
    with pytest.raises(SettingsError, match="model_roots: expected a tuple of texts"):
        Settings(model_roots="/models")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="port: expected a whole number"):
        Settings(port=None)  # type: ignore[arg-type]
