"""The descriptions of containers: linted, valid by their schemas, and of one mind with the code they start."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from alphalloc_service.app import create_app
from alphalloc_service.keys import digest, new_key
from alphalloc_service.server import GRACEFUL_SECONDS, listen
from alphalloc_service.settings import Settings
from alphalloc_service.store import Store, upgrade
from starlette.testclient import TestClient
from typer.testing import CliRunner

from alphalloc.cli.app import build_app
from alphalloc.errors import SettingsError

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
COMPOSE = ("compose.yaml", "compose.scale.yaml")
VARIABLES = {f"ALPHALLOC_{field.name.upper()}" for field in fields(Settings)}


def program(name: str) -> str:
    found = Path(sys.executable).with_name(name)
    if not found.exists():
        pytest.skip(f"{name} is not installed")
    return str(found)


def compose(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / name).read_text()))


def objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))


def test_the_dockerfile_is_linted() -> None:
    run = subprocess.run([program("hadolint"), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_fit_the_specification(name: str) -> None:
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", name]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("document", objects(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_objects_fit_their_schemas(document: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(document, "1.31", strict=True)


def test_the_image_holds_no_root_and_no_compiler() -> None:
    last = DOCKERFILE.split("AS runtime")[1]
    assert "USER 10001:10001" in last
    assert "HEALTHCHECK" in last
    assert "STOPSIGNAL SIGTERM" in last
    assert "pip install" not in last
    assert "apt-get" not in DOCKERFILE
    assert {"cpu", "cuda"} <= set(re.findall(r"^FROM runtime AS (\w+)$", DOCKERFILE, re.MULTILINE))
    for label in ("title", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}" in last


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source


def environments() -> list[tuple[str, str]]:
    found = [("Dockerfile", name) for name in re.findall(r"\b(ALPHALLOC_[A-Z_]+)=", DOCKERFILE)]
    for name in COMPOSE:
        for service in compose(name)["services"].values():
            found += [
                (name, variable) for variable in service.get("environment", {}) if variable.startswith("ALPHALLOC_")
            ]
    for text in re.findall(r"ALPHALLOC_[A-Z_]+", (ROOT / "deploy" / "kubernetes.yaml").read_text()):
        found.append(("kubernetes.yaml", text))
    return sorted(set(found))


@pytest.mark.parametrize(("where", "variable"), environments())
def test_every_variable_is_a_setting(where: str, variable: str) -> None:
    assert variable in VARIABLES


def commands() -> list[list[str]]:
    found = [
        service["command"] for name in COMPOSE for service in compose(name)["services"].values() if "command" in service
    ]
    for one in objects():
        if one["kind"] in ("Deployment", "Job"):
            found += [container["args"] for container in one["spec"]["template"]["spec"]["containers"]]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_is_one_of_ours(command: list[str]) -> None:
    words = [word for word in command if not word.startswith("-")]
    answer = CliRunner().invoke(build_app(), [*words, "--help"])
    assert answer.exit_code == 0, answer.output
    for option in set(command) - set(words):
        assert option in answer.output


def test_services_are_hardened() -> None:
    for name in COMPOSE:
        for service_name, service in compose(name)["services"].items():
            if service_name == "database":
                continue
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert "no-new-privileges:true" in service["security_opt"]
            assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
    for one in objects():
        if one["kind"] in ("Deployment", "Job"):
            pod = one["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["automountServiceAccountToken"] is False
            for container in pod["containers"]:
                assert container["securityContext"]["readOnlyRootFilesystem"] is True
                assert "memory" in container["resources"]["limits"]


def test_a_stop_waits_for_requests_under_way() -> None:
    assert int(compose("compose.yaml")["services"]["alphalloc"]["stop_grace_period"].rstrip("s")) > GRACEFUL_SECONDS
    for one in objects():
        if one["kind"] == "Deployment":
            assert one["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > GRACEFUL_SECONDS


def started(where: str) -> dict[str, str]:
    """Return the subcommand that each deployment or service of a file runs."""
    if where in COMPOSE:
        services = compose(where)["services"]
        return {name: service["command"][0] for name, service in services.items() if "command" in service}
    pods = {one["metadata"]["name"]: one["spec"]["template"] for one in objects() if one["kind"] == "Deployment"}
    return {name: pod["spec"]["containers"][0]["args"][0] for name, pod in pods.items()}


@pytest.mark.parametrize("where", [*COMPOSE, "deploy/kubernetes.yaml"])
def test_the_first_key_is_made_where_something_runs(where: str) -> None:
    """What serves the network does not start without a key; `run` makes a container of its own, `exec` needs one."""
    with pytest.raises(SettingsError, match="this service has no key"):
        listen(Settings(host=found_in_dockerfile("ALPHALLOC_HOST"), port=0))
    making = [line for line in (ROOT / where).read_text().splitlines() if re.match(r"# .*keys create", line)]
    assert making
    for line in making:
        for name in re.findall(r"\bexec (?:-\S+ )*(?:deploy/)?([\w-]+)", line):
            assert started(where)[name] != "serve", line


def found_in_dockerfile(variable: str) -> str:
    return str(re.findall(rf"\b{variable}=(\S+)", DOCKERFILE)[0])


def test_prometheus_gets_its_answer_by_a_pods_address(tmp_path: Path) -> None:
    api = next(one for one in objects() if one["kind"] == "Deployment" and one["metadata"]["name"] == "alphalloc-api")
    pod = api["spec"]["template"]
    assert "annotations" not in pod["metadata"]
    environment = {one["name"]: one for one in pod["spec"]["containers"][0]["env"]}
    assert environment["POD_IP"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert list(environment).index("POD_IP") < list(environment).index("ALPHALLOC_ALLOWED_HOSTS")  # as $() needs it
    hosts = environment["ALPHALLOC_ALLOWED_HOSTS"]["value"].replace("$(POD_IP)", "10.244.1.7").split(",")
    text = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "containers.md").read_text(), re.DOTALL)
    job, _ = yaml.safe_load(text[0])["scrape_configs"]
    services = [one["metadata"]["name"] for one in objects() if one["kind"] == "Service"]
    assert [one["regex"] for one in job["relabel_configs"]] == services
    settings = Settings(
        host=found_in_dockerfile("ALPHALLOC_HOST"),
        allowed_hosts=tuple(hosts),
        database_url=f"sqlite:///{tmp_path}/service.db",
    )
    upgrade(settings.database_url)
    store, key = Store.open(settings.database_url), new_key()
    store.add_key("prometheus", digest(key), ("read",))
    app = create_app(settings, store)
    headers = {"Authorization": f"{job['authorization']['type']} {key}"}
    assert TestClient(app, base_url="http://10.244.1.7:8000").get("/metrics", headers=headers).status_code == 200
    assert TestClient(app, base_url="http://10.244.1.7:8000").get("/metrics").status_code == 401
    assert TestClient(app, base_url="http://10.244.1.8:8000").get("/metrics", headers=headers).status_code == 421
    store.close()


def test_prometheus_reaches_the_workers_and_nobody_else_does() -> None:
    (worker,) = (one for one in objects() if one["metadata"]["name"] == "alphalloc-worker")
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    assert container["args"][:2] == ["worker", "--metrics"]
    (port,) = container["ports"]
    assert container["args"][2] == f"0.0.0.0:{port['containerPort']}"
    (policy,) = (one["spec"] for one in objects() if one["kind"] == "NetworkPolicy")
    assert policy["podSelector"]["matchLabels"].items() <= worker["spec"]["template"]["metadata"]["labels"].items()
    (admitted,) = (
        rule for rule in policy["ingress"] if {"protocol": "TCP", "port": port["containerPort"]} in rule["ports"]
    )
    (peer,) = admitted["from"]
    assert peer["namespaceSelector"]["matchLabels"]
    text = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "containers.md").read_text(), re.DOTALL)
    _, job = yaml.safe_load(text[0])["scrape_configs"]
    kept = {
        rule["source_labels"][0].removeprefix("__meta_kubernetes_pod_"): rule["regex"]
        for rule in job["relabel_configs"]
    }
    assert kept == {"container_name": container["name"], "container_port_name": port["name"]}


def test_the_images_hold_what_the_documented_variables_need() -> None:
    """Database, traces: what the extras of the images bring, by the names of pyproject.toml."""
    installed = re.findall(r'"\.\[(.+)\]"', DOCKERFILE)
    assert len(installed) == 2
    for extras in installed:
        assert {"server", "postgres", "otel"} <= set(extras.split(","))
        assert set(extras.split(",")) <= set(EXTRAS)
    assert any(one.startswith("opentelemetry-exporter-otlp-proto-http") for one in EXTRAS["otel"])


def test_no_secret_stands_in_them() -> None:
    for path in (ROOT / "Dockerfile", ROOT / "deploy" / "kubernetes.yaml", *(ROOT / name for name in COMPOSE)):
        assert not re.search(r"hf_[A-Za-z0-9]{8,}|alph_[A-Za-z0-9]{8,}|://\w+:\w+@", path.read_text())
