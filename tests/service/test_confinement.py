"""What a job's process may use, tried in processes of their own; and the room a download needs."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from alphalloc_service import confinement
from alphalloc_service.confinement import check_room, machine_memory
from alphalloc_service.settings import Settings
from hub_server import HubServer
from safetensors.numpy import save_file

from alphalloc.errors import CheckpointError, UnsupportedCheckpointError


def confined(code: str, folder: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process that was confined."""
    start = (
        "import sys, json, os, resource\n"
        "from alphalloc_service.confinement import confine\n"
        "from alphalloc_service.settings import Settings\n"
        f"confine(Settings(**json.loads({json.dumps(json.dumps(settings))})), {str(folder)!r})\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-c", start + code], env=environment, capture_output=True, text=True, check=False
    )


def test_memory_time_files_and_place_are_bounded(tmp_path: Path) -> None:
    code = """
names = ('DATA', 'CORE', 'CPU', 'NOFILE')
limits = {name: resource.getrlimit(getattr(resource, 'RLIMIT_' + name))[0] for name in names}
status = dict(line.split(':', 1) for line in open('/proc/self/status') if ':' in line)
print(json.dumps({**limits, 'cwd': os.getcwd(), 'umask': os.umask(0), 'privileges': status['NoNewPrivs'].strip()}))
try:
    bytearray(2**30)
except MemoryError:
    print('no memory')
"""
    run = confined(code, tmp_path, job_memory_bytes=2**28, job_seconds=10)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[0])
    assert found["DATA"] == 2**28
    assert found["CORE"] == 0
    assert found["CPU"] <= 10 * (os.cpu_count() or 1) + 1
    assert found["NOFILE"] <= confinement.MAX_OPEN_FILES
    assert found["cwd"] == str(tmp_path)
    assert found["umask"] == 0o077
    assert found["privileges"] == "1"
    assert "no memory" in run.stdout


def test_memory_is_bounded_unless_it_is_said_not_to_be(tmp_path: Path) -> None:
    code = "print(resource.getrlimit(resource.RLIMIT_DATA)[0])"
    most = machine_memory()
    assert 2**28 < most <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert int(confined(code, tmp_path).stdout) == int(0.8 * most)
    assert int(confined(code, tmp_path, job_memory_share=0.5).stdout) == most // 2
    assert int(confined(code, tmp_path, job_memory_share=None).stdout) == resource.RLIM_INFINITY
    assert int(confined(code, tmp_path, job_memory_share=None, job_memory_bytes=2**28).stdout) == 2**28


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": "3000000\n", "a/b/memory.max": "max\n"}, 3_000_000),
        ("0::/\n", {"memory.max": "4000000\n"}, 4_000_000),  # in a container
        ("4:memory:/a\n3:cpu:/\n0::/\n", {"memory/a/memory.limit_in_bytes": "5000000\n"}, 5_000_000),
        ("4:memory:/a\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("", {}, None),
    ],
)
def test_a_control_group_bounds_what_the_machine_has(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: int | None
) -> None:
    files = {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": text for name, text in limits.items()}}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine_memory(tmp_path) == (expected or physical)


def test_a_limit_that_is_lower_already_stays(tmp_path: Path) -> None:
    code = (
        "import resource; from alphalloc_service.confinement import confine;"
        "from alphalloc_service.settings import Settings;"
        f"confine(Settings(), '{tmp_path}'); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    command = f'ulimit -n 100; exec {sys.executable} -c "{code}"'
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert run.stdout == "(100, 100)\n"


def test_an_id_is_no_folder_where_the_worker_started(tmp_path: Path) -> None:
    """``org/model`` must mean the hub's, though a folder of that name lies in the worker's own."""
    (tmp_path / "start" / "org" / "model").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    code = "print(os.path.exists('org/model'))"
    before = subprocess.run(
        [sys.executable, "-c", "import os; " + code], cwd=tmp_path / "start", capture_output=True, text=True, check=True
    )
    assert before.stdout == "True\n"
    assert confined(code, tmp_path / "empty").stdout == "False\n"


def test_a_download_needs_room_on_the_disk_and_in_the_limit(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_room("a/b", 0, tmp_path, 1)
    check_room("a/b", 10, tmp_path / "not" / "yet", 10)
    with pytest.raises(UnsupportedCheckpointError, match="take 11 bytes, this service fetches at most 10"):
        check_room("a/b", 11, tmp_path, 10)
    with pytest.raises(CheckpointError, match=f"take {free} bytes and .* stay free"):
        check_room("a/b", free, tmp_path, None)


DOWNLOAD = """
from alphalloc_service.confinement import check_download
from alphalloc_service.settings import Settings
from alphalloc.errors import AlphallocError
for limit in (None, 10):
    try:
        print(check_download('org/model', None, Settings(job_download_bytes=limit)))
    except AlphallocError as exc:
        print(exc.code, exc)
"""


MEASURE = """
import alphalloc, huggingface_hub
from alphalloc.documents import canonical_json
from alphalloc_service.jobs import measure
from alphalloc_service.settings import Settings
for revision in (None, 'main') * 2:
    request = {'model': {'id': 'org/model', 'revision': revision}, 'estimator': 'ks', 'device': 'cpu'}
    document, found = measure(request, Settings(), 'local', None, lambda message: None)
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # the branch was recorded, so what it was is found without the hub
    direct = alphalloc.analyze('org/model', revision=revision, estimator='ks', histograms=True, cache=False)
    huggingface_hub.constants.HF_HUB_OFFLINE = False
    alike = direct.model_copy(update={'warnings': tuple(one for one in direct.warnings if 'not asked' not in one)})
    assert document.decode() == canonical_json(alike.model_dump(mode='json'))
    print(found['model']['revision'], found['model']['commit'])
"""


def test_the_commit_that_was_checked_is_the_one_that_is_read(tmp_path: Path) -> None:
    with HubServer() as hub:
        commit = hub.add_model("org/model", small_model(tmp_path / "model"))
        own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **own, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        run = subprocess.run(
            [sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=False
        )
        asked = [path for _, path in hub.requests]
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["None", commit, "main", commit] * 2
    first_read = next(path for path in asked if "/resolve/" in path)
    assert f"/resolve/{commit}/" in first_read


def test_the_hub_is_asked_for_the_size_first(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x" * 1000)
    with HubServer() as hub:
        commit = hub.add_model("org/model", tmp_path / "model")
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
        }
        run = subprocess.run(
            [sys.executable, "-c", DOWNLOAD], env=environment, capture_output=True, text=True, check=False
        )
        fetched = [path for _, path in hub.requests if "resolve" in path]
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first == commit
    assert second.startswith("unsupported-checkpoint org/model: its weights take 1000 bytes")
    assert fetched == []


ASK = """
import json, sys
from alphalloc.errors import AlphallocError
from alphalloc_service.jobs import measure
from alphalloc_service.settings import Settings
for model, revision, limit in json.loads(sys.argv[1]):
    request = {'model': {'id': model, 'revision': revision}, 'estimator': 'ks', 'device': 'cpu'}
    try:
        document, found = measure(request, Settings(job_download_bytes=limit), 'local', None, lambda message: None)
        print(found['model']['commit'], json.loads(document)['warnings'])
    except AlphallocError as exc:
        print(exc.code, exc)
"""


def asked(hub: HubServer, home: Path, *models: tuple[str, str | None, int | None]) -> list[str]:
    """What becomes of analyses of ``models`` (id, revision, most bytes to fetch): commit and warnings, or the error."""
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home / "home"), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **own, "XDG_CACHE_HOME": str(home / "cache")}
    command = [sys.executable, "-c", ASK, json.dumps(models)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def small_model(folder: Path) -> Path:
    """A folder with a checkpoint of some 24 kB."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    state = {f"model.layers.{i}.mlp.up_proj.weight": rng.standard_normal((64, 48), np.float32) for i in range(2)}
    save_file(state, folder / "model.safetensors")
    return folder


def test_a_hub_that_fails_once_lets_nothing_through(tmp_path: Path) -> None:
    """The hub answers the request after the one that failed: nothing may be fetched that was not checked."""
    with HubServer() as hub:
        hub.add_model("org/model", small_model(tmp_path / "model"))
        hub.failures = [503, 429, 500]
        *failed, refused = asked(hub, tmp_path, *[("org/model", None, 10)] * 4)
        assert [one.split()[0] for one in failed] == ["hub-unreachable"] * 3
        assert refused.startswith("unsupported-checkpoint")
        hub.failures = [400]
        assert asked(hub, tmp_path, ("org/model", None, 10))[0].startswith(
            "checkpoint-error org/model: the hub answered 400"
        )
        assert not hub.failures
        assert not [path for _, path in hub.requests if "resolve" in path]


def test_what_the_hub_says_of_a_model_is_said_to_the_client(tmp_path: Path) -> None:
    with HubServer() as hub:
        hub.add_model("org/model", small_model(tmp_path / "model"))
        hub.add_model("org/gated", tmp_path / "model", gated=True)
        said = asked(hub, tmp_path, ("org/gone", None, None), ("org/model", "v9", None), ("org/gated", None, None))
    assert [one.split()[0] for one in said] == ["model-not-found", "revision-not-found", "gated-model"]


def test_a_cached_model_is_read_while_the_hub_is_away_and_nothing_is_fetched(tmp_path: Path) -> None:
    with HubServer() as hub:
        commit = hub.add_model("org/model", small_model(tmp_path / "model"))
        assert asked(hub, tmp_path, ("org/model", None, None)) == [f"{commit} []"]
        (tmp_path / "model" / "model.safetensors").write_bytes(b"something else that is larger" * 10_000)
        hub.models["org/model"] = replace(hub.models["org/model"], commit="f" * 40)  # and the branch has moved
        for revision in (None, "main", commit):
            hub.requests, hub.failures = [], [503]
            (said,) = asked(hub, tmp_path, ("org/model", revision, 10))
            assert said.startswith(commit), revision
            assert ("the hub was not asked" in said) == (revision != commit)
            assert [path.split("/")[2] for _, path in hub.requests].count("models") == 1
            assert not hub.failures
        hub.failures = [404]  # a commit that is there needs no hub, whatever it says
        assert asked(hub, tmp_path, ("org/model", commit, 10)) == [f"{commit} []"]


def test_weights_of_an_unknown_size_are_not_fetched(tmp_path: Path) -> None:
    with HubServer() as hub:
        hub.add_model("org/model", small_model(tmp_path / "model"))
        (tmp_path / "sharded").mkdir()
        (tmp_path / "sharded" / "model.safetensors.index.json").write_text(INDEX)
        hub.add_model("org/sharded", tmp_path / "sharded")
        hub.tells_sizes = False
        said = asked(hub, tmp_path, ("org/model", None, None), ("org/sharded", None, None))
        assert said[0].startswith("unsupported-checkpoint org/model: the hub does not tell the size of model.safe")
        assert said[1].startswith("unsupported-checkpoint org/sharded: the hub does not tell the size of model.safe")
        hub.tells_sizes = True
        hub.models["org/model"] = replace(hub.models["org/model"], commit="")
        assert "the hub named no commit" in asked(hub, tmp_path, ("org/model", None, None))[0]
        assert not [path for _, path in hub.requests if "resolve" in path]


INDEX = json.dumps({"weight_map": {"a": "shards/a.safetensors"}})
LARGE = 1_000_000
REPOSITORIES: dict[str, tuple[dict[str, int | str], int]] = {  # the files, and what the reader fetches of them
    "an index and a shard in a folder": (
        {"model.safetensors.index.json": INDEX, "shards/a.safetensors": LARGE}, LARGE,
    ),
    "an adapter beside the model": ({"adapter_model.safetensors": 10, "pytorch_model.bin": LARGE}, LARGE),
    "a trainer's settings beside the model": ({"training_args.bin": 5, "m.gguf": LARGE}, LARGE),
    "and beside Meta's": ({"training_args.bin": 5, "consolidated.00.pth": LARGE, "params.json": 7}, LARGE + 7),
    "a large index": ({"model.safetensors.index.json": " " * (2**24 + 1)}, 2**24 + 1),
    "ordinary": (
        {"model.safetensors": 900, "config.json": 9, "pytorch_model.bin": LARGE, "onnx/model.safetensors": LARGE}, 909,
    ),
}  # fmt: skip
FITS = """
import sys
from alphalloc_service.confinement import check_download
from alphalloc_service.settings import Settings
from alphalloc.errors import AlphallocError
for at in range(int(sys.argv[1])):
    try:
        print(check_download(f'org/m{at}', None, Settings(job_download_bytes=10_000)))
    except AlphallocError as exc:
        print(exc.code, exc)
"""


def test_what_the_reader_fetches_is_what_is_counted(tmp_path: Path) -> None:
    with HubServer() as hub:
        for at, (files, _) in enumerate(REPOSITORIES.values()):
            for name, content in files.items():
                path = tmp_path / f"m{at}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.encode() if isinstance(content, str) else b"x" * content)
            hub.add_model(f"org/m{at}", tmp_path / f"m{at}")
        own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", FITS, str(len(REPOSITORIES))]
        run = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=False)
        fetched = {path.rpartition("/")[2] for method, path in hub.requests if method == "GET" and "resolve" in path}
        commits = {model.commit for model in hub.models.values()}
    assert run.returncode == 0, run.stderr
    for (what, (_, size)), said in zip(REPOSITORIES.items(), run.stdout.splitlines(), strict=True):
        if size <= 10_000:
            assert said in commits, what
        else:
            assert said.startswith("unsupported-checkpoint"), what
            assert f" {size} bytes" in said, what
    assert fetched == {"model.safetensors.index.json"}


def test_a_model_that_goes_by_a_denied_name_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub forwards renamed models: the name that counts is the one it answers with."""
    import huggingface_hub

    weights = SimpleNamespace(rfilename="model.safetensors", size=1)
    answer = SimpleNamespace(id="denied/model", sha="0" * 40, siblings=[weights])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: answer)
    settings = Settings(deny_models=("denied/*",))
    with pytest.raises(CheckpointError, match="calls it denied/model"):
        confinement.check_download("old/name", None, settings)
    assert confinement.check_download("old/name", None, Settings()) == "0" * 40
