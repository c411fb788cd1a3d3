"""Which models may be opened: ids, revisions and paths, each hostile one with the answer it gets."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alphalloc_service.model_policy import MODEL_ID, REVISION, AllowedModel, check_model
from alphalloc_service.problems import ProblemError
from alphalloc_service.settings import Settings
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from alphalloc.checkpoint.hub import check_revision


def asked(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"id": None, "revision": None, "path": None, **values})


def refusal(settings: Settings, **values: Any) -> tuple[int, str]:
    with pytest.raises(ProblemError) as caught:
        check_model(asked(**values), settings)
    return caught.value.status_code, caught.value.code


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of models beside something that is nobody's business."""
    root = tmp_path / "models"
    (root / "tiny").mkdir(parents=True)
    (root / "tiny" / "model.safetensors").write_bytes(b"x")
    (root / "one.safetensors").write_bytes(b"x")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "model.safetensors").write_bytes(b"x")
    (tmp_path / "models-of-others").mkdir()
    return root


def test_a_hub_id_goes_through_as_it_is() -> None:
    assert check_model(asked(id="org/model"), Settings()) == AllowedModel("org/model")
    assert check_model(asked(id="gpt2", revision="v1.0"), Settings()) == AllowedModel("gpt2", "v1.0")


HOSTILE_IDS = [
    "", "/etc/passwd", "../../etc/passwd", "..", "a/../b", "a/b/c", "a//b", "/a", "a/", "https://host/a/b", "a:b",
    "file:///etc", "a/b\n", "a/b\0", "a b", "~/model", "~", "./model", "a/b.git", "a--b", "a" * 97, "a/" + "b" * 97,
    "\u0430/b", "a/b?x", "a/b#x", "a/b@main", "hf://a/b", "a\\b", "-a/b", ".a/b", "a/b-", "\ud800", "a/b%2e%2e",
    "${HOME}/x",
]  # fmt: skip


@pytest.mark.parametrize("model_id", HOSTILE_IDS)
def test_what_is_no_hub_id_is_refused(model_id: str) -> None:
    assert refusal(Settings(), id=model_id) == (422, "invalid-request")


@given(st.from_regex(MODEL_ID, fullmatch=True))
def test_law_an_id_that_is_taken_is_one_for_the_hub(model_id: str) -> None:
    validate_repo_id(model_id)


HOSTILE_REVISIONS = [
    "../../../../../../etc", "../../../../../../etc/hostname", "/etc/passwd", "a/../b", "", "a b", "a\nb", "x" * 201,
    "main\0", "refs/pr/1\n", "..", "\u202e", "$(id)", "main;id", "a\\b",
]  # fmt: skip


@pytest.mark.parametrize("revision", HOSTILE_REVISIONS)
def test_a_revision_that_leads_elsewhere_is_refused(revision: str) -> None:
    assert refusal(Settings(), id="org/model", revision=revision) == (422, "invalid-request")


@given(st.from_regex(REVISION, fullmatch=True))
def test_law_a_revision_that_is_taken_is_one_for_the_reader(revision: str) -> None:
    assert check_revision(revision) == revision
    assert os.path.normpath(os.path.join("/cache/refs", revision)).startswith("/cache/refs")


ALLOW = {"allow_models": ("meta-llama/*", "gpt2"), "deny_models": ("*/*-uncensored", "meta-llama/secret-*")}


@pytest.mark.parametrize("model_id", ["meta-llama/Llama-2-7b-hf", "META-LLAMA/x", "gpt2", "GPT2"])
def test_the_lists_let_through(model_id: str) -> None:
    assert check_model(asked(id=model_id), Settings(**ALLOW)).model == model_id


@pytest.mark.parametrize(
    "model_id", ["gpt2-large", "other/gpt2", "meta-llama", "meta-llama/x-Uncensored", "Meta-Llama/SECRET-1"]
)
def test_the_lists_keep_out_and_a_denial_wins(model_id: str) -> None:
    assert refusal(Settings(**ALLOW), id=model_id) == (403, "model-not-allowed")


def test_no_path_is_opened_unless_the_operator_opens_a_folder(root: Path) -> None:
    for path in (str(root / "tiny"), "tiny", "/", ""):
        assert refusal(Settings(), path=path) == (403, "path-not-allowed")


@pytest.mark.parametrize(
    "name", ["tiny", "one.safetensors", "./tiny/", "tiny/../one.safetensors", "tiny//model.safetensors"]
)
def test_paths_below_the_root_are_resolved(root: Path, name: str) -> None:
    settings = Settings(model_roots=("/nothing/here", str(root)))
    expected = AllowedModel(str((root / name).resolve()), is_path=True)
    assert check_model(asked(path=name), settings) == expected
    assert check_model(asked(path=f"{root}/{name}"), settings) == expected


def test_a_root_may_itself_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    settings = Settings(model_roots=(str(tmp_path / "link"),))
    for path in ("tiny", str(tmp_path / "link" / "tiny"), str(root / "tiny")):
        assert check_model(asked(path=path), settings).model == str(root / "tiny")


@pytest.mark.parametrize(
    "path", ["../secret", "tiny/../../secret", "/etc/passwd", "../models-of-others", "..", "/", "a\0b", "x" * 5000, ""]
)
def test_a_path_outside_is_refused_whether_it_exists_or_not(root: Path, path: str) -> None:
    settings = Settings(model_roots=(str(root),))
    assert refusal(settings, path=path) == (403, "path-not-allowed")
    assert refusal(settings, path=path + "/that-is-not-there") == (403, "path-not-allowed")


def test_a_link_that_leads_outside_is_refused(root: Path) -> None:
    (root / "out").symlink_to(root.parent / "secret")
    (root / "file").symlink_to(root.parent / "secret" / "model.safetensors")
    (root / "passwd").symlink_to("/etc/passwd")
    (root / "inside").symlink_to(root / "tiny")
    settings = Settings(model_roots=(str(root),))
    for path in ("out", "file", "passwd", "out/model.safetensors", "inside/../out"):
        assert refusal(settings, path=path) == (403, "path-not-allowed"), path
    assert check_model(asked(path="inside"), settings).model == str(root / "tiny")


def test_what_is_neither_file_nor_folder_is_not_there(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to("loop")
    (root / "device").symlink_to("/dev/zero")
    settings = Settings(model_roots=(str(root),))
    for path in ("pipe", "loop", "missing", "missing/deeper", "\ud800"):
        assert refusal(settings, path=path) == (404, "model-not-found"), path
    assert refusal(settings, path="device")[0] in (403, 404)


def test_one_of_id_and_path_is_wanted(root: Path) -> None:
    settings = Settings(model_roots=(str(root),))
    assert refusal(settings) == (422, "invalid-request")
    assert refusal(settings, id="a/b", path="tiny") == (422, "invalid-request")
    assert refusal(settings, path="tiny", revision="main") == (422, "invalid-request")
