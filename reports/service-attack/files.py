"""Tries with paths, addresses and checkpoints."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

from attacked import Service, Tries, Try


def files_and_requests(service: Service) -> Tries:
    """Reading this machine's files, and making it ask others."""
    topic = "Files, and requests made for us"
    found = []
    for path in (
        "/etc/passwd",
        "../../../../etc",
        "/proc/self/environ",
        str(service.folder),
        "tiny/../../secret",
        "out",
        "device",
        "a\0b",
    ):
        found.append(
            Try(
                topic,
                f"path `{path!r}`".replace("'", ""),
                "^(403|404) (path-not-allowed|model-not-found)",
                service.ask("POST", "/v1/analyses", {"model": {"path": path}}),
            )
        )
    for model in (
        "/etc/passwd",
        "../../etc",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "org/model/../../x",
        "a/b?c",
        "a/b@evil",
    ):
        found.append(
            Try(
                topic,
                f"id `{model}`",
                "^422 invalid-request",
                service.ask("POST", "/v1/analyses", {"model": {"id": model}}),
            )
        )
    for revision in ("../../../../../../etc/hostname", "/etc/passwd", "a/../../b", "main\n"):
        found.append(
            Try(
                topic,
                f"revision `{revision!r}`".replace("'", ""),
                "^422 invalid-request",
                service.ask("POST", "/v1/analyses", {"model": {"id": "a/b", "revision": revision}}),
            )
        )
    for extra in (
        {"token": "hf_x"},
        {"endpoint": "http://evil.example"},
        {"url": "http://evil.example"},
        {"trust_remote_code": True},
    ):
        found.append(
            Try(
                topic,
                f"model with `{next(iter(extra))}`",
                "^422 invalid-request",
                service.ask("POST", "/v1/analyses", {"model": {"id": "a/b", **extra}}),
            )
        )
    found.append(
        Try(
            topic,
            "a denied model",
            "^403 model-not-allowed",
            service.ask("POST", "/v1/analyses", {"model": {"id": "Denied/Model"}}),
        )
    )
    found.append(
        Try(
            topic,
            "an id that is a folder where it was started",
            "job failed: hub-unreachable",
            service.job({"model": {"id": "org/model"}}),
        )
    )
    for path in (
        "/static/../settings.py",
        "/static/%2e%2e/settings.py",
        "/static/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/schemas/..%2f..%2fsettings.py",
        "/.env",
        "/docs/../../etc/passwd",
    ):
        found.append(
            Try(
                topic,
                f"GET `{path}`",
                "40[04]",
                service.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()),
            )
        )
    return found


def checkpoints(service: Service) -> Tries:
    """Files made to hurt whoever opens them, as jobs."""
    import pickle
    import zipfile

    import torch

    models = service.folder / "models"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {service.folder}/pwned",)

    (models / "cut.safetensors").write_bytes(struct.pack("<Q", 200_000_000) + b"{")
    (models / "many.safetensors").write_bytes(_many())
    (models / "pickle.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"layers.0.q.weight": Payload()}, models / "code.bin")
    torch.save({"a": torch.zeros(1).expand(200_000, 200_000)}, models / "stride.bin")
    torch.save({"layers.0.q.weight": torch.zeros(2, 2)}, models / "plain.bin")
    with zipfile.ZipFile(models / "plain.bin") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(models / "bomb.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content if not name.endswith("/0") else b"\0" * 2**28)
    side = 46_000  # just below the largest matrix that is read at all
    nbytes = 4 * side**2
    header = json.dumps(
        {
            f"model.layers.{layer}.mlp.up_proj.weight": {
                "dtype": "F32", "shape": [side, side], "data_offsets": [layer * nbytes, (layer + 1) * nbytes],
            }
            for layer in range(2)
        }
    ).encode()  # fmt: skip
    with (models / "huge.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + 2 * nbytes)
    tries = {
        "cut.safetensors": ("a header of 200 MB in 9 bytes", "failed: corrupt-checkpoint"),
        "many.safetensors": ("120,000 empty tensors", "failed: corrupt-checkpoint"),
        "pickle.pt": ("a pickle that runs `touch pwned`", "failed: unsafe-checkpoint"),
        "code.bin": ("the same inside a PyTorch file", "failed: unsafe-checkpoint"),
        "stride.bin": ("1.6 KB that claim 160 GB by stride 0", "failed: corrupt-checkpoint"),
        "bomb.bin": ("a zip bomb of 256 MiB", "failed: corrupt-checkpoint"),
        "huge.safetensors": (
            "16 GiB of zeros that take no disk, limit 2 GiB",
            "failed: (memory-budget|worker-lost|unsupported|corrupt)",
        ),
    }
    topic = "Checkpoints"
    found = [Try(topic, what, wanted, service.job({"model": {"path": name}})) for name, (what, wanted) in tries.items()]
    found.append(Try(topic, "did the code run?", "^no$", "yes" if (service.folder / "pwned").exists() else "no"))
    return found


def _many() -> bytes:
    one = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(one % at for at in range(120_000)) + "}").encode()
    return struct.pack("<Q", len(header)) + header
