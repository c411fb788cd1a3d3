"""A stand-in for the Hugging Face hub on a free loopback port: the few routes that huggingface_hub asks for.

    with HubServer() as hub:
        hub.add_model("org/model", folder)
        subprocess.run([...], env={"HF_ENDPOINT": hub.endpoint, "HF_HOME": ..., ...})

huggingface_hub reads HF_ENDPOINT when it is imported, so set it in the environment of a new process.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class HostedModel:
    """A folder served as a model: ``branches`` maps branch names to the one commit there is."""

    folder: Path
    commit: str
    gated: bool
    branches: tuple[str, ...]

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


class HubServer:
    """Context manager; ``endpoint`` is its address, ``requests`` the (method, path) of all requests so far."""

    def __init__(self) -> None:
        self.models: dict[str, HostedModel] = {}
        self.requests: list[tuple[str, str]] = []
        self.status: int | None = None  # when set, every request is answered with it: a hub that is down
        self.failures: list[int] = []  # statuses that the next requests for listings are answered with, one each
        self.tells_sizes = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add_model(
        self, model_id: str, folder: Path | str, gated: bool = False, branches: tuple[str, ...] = ("main",)
    ) -> str:
        """Serve ``folder`` as ``model_id`` and return its commit; a gated one wants any bearer token."""
        commit = hashlib.sha1(f"{model_id}{folder}".encode()).hexdigest()
        self.models[model_id] = HostedModel(Path(folder), commit, gated, branches)
        return commit

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _answer(self) -> None:
            hub.requests.append((self.command, self.path))
            fails = hub.failures and self.path.startswith("/api/models/")
            status = hub.failures.pop(0) if fails else hub.status
            if status is not None:
                self._error(status, "", "the hub is down")
                return
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            if parts[:2] == ["api", "models"]:
                self._api(parts[2:])
            elif "resolve" in parts:
                at = parts.index("resolve")
                self._file("/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
            else:
                self._error(404, "RepoNotFound", "Repository not found")

        def _api(self, parts: list[str]) -> None:
            words = [word for word in ("revision", "tree") if word in parts]
            at = parts.index(words[0]) if words else len(parts)
            model = self._model("/".join(parts[:at]), parts[at + 1] if words else "main")
            if model is None:
                return
            names = [path.relative_to(model.folder).as_posix() for path in model.files()]
            if words == ["tree"]:
                body: Any = [_tree_entry(path, name) for path, name in zip(model.files(), names, strict=True)]
            else:
                body = {
                    "id": "/".join(parts[:at]),
                    "sha": model.commit,
                    "siblings": self._siblings(model, names),
                    "private": False,
                    "gated": "manual" if model.gated else False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                }
            self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

        def _siblings(self, model: HostedModel, names: list[str]) -> list[dict[str, Any]]:
            """The names, and the sizes for those who ask with ``blobs=true``."""
            if "blobs=true" not in self.path.lower() or not hub.tells_sizes:
                return [{"rfilename": name} for name in names]
            return [{"rfilename": name, "size": (model.folder / name).stat().st_size} for name in names]

        def _file(self, model_id: str, revision: str, name: str) -> None:
            model = self._model(model_id, revision)
            if model is None:
                return
            if model.gated and not self.headers.get("Authorization", "").startswith("Bearer "):
                self._error(401, "GatedRepo", f"Access to model {model_id} is restricted.")
                return
            path = model.folder / name
            if path not in model.files():
                self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": model.commit})
                return
            data = path.read_bytes()
            etag = '"' + hashlib.sha256(data).hexdigest() + '"'
            headers = {
                "ETag": etag,
                "X-Linked-Etag": etag,
                "X-Linked-Size": str(len(data)),
                "X-Repo-Commit": model.commit,
                "Content-Type": "application/octet-stream",
            }
            status = 200
            wanted = self.headers.get("Range", "")
            if wanted.startswith("bytes="):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                begin, end = int(first), min(int(last) if last else len(data) - 1, len(data) - 1)
                headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
                data, status = data[begin : end + 1], 206
            self._send(status, data, headers)

        def _model(self, model_id: str, revision: str) -> HostedModel | None:
            model = hub.models.get(model_id)
            if model is None:
                self._error(401, "RepoNotFound", "Invalid username or password.")
            elif revision not in (*model.branches, model.commit):
                self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return None
            return model

        def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
            extra = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            self._send(status, json.dumps({"error": message}).encode(), extra | (headers or {}))

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def _tree_entry(path: Path, name: str) -> dict[str, Any]:
    data = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"type": "file", "path": name, "size": len(data), "oid": blob}
