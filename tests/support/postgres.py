"""A PostgreSQL server of our own: Debian's binaries, a free port, a folder that goes away again.

One server a test process, started when it is first asked for and stopped when the process ends; every caller gets a
database of its own in it. ``python tests/support/postgres.py`` prints the URL of a server that runs until Ctrl-C.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

USER = "postgres"
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Server:
    """A running server: the process, its port and its folder."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of a database in it."""
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{database}"

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT at once and cleanly (its "fast" way), SIGQUIT as in a crash."""
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(timeout=30)


def new_database() -> str:
    """Return the URL of an empty database, on this process's server."""
    import psycopg

    name = f"test_{os.getpid()}_{next(_NUMBERS)}"
    running = server()
    address = f"host=127.0.0.1 port={running.port} user={USER} dbname=postgres"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return running.url(name)


@functools.cache
def server() -> Server:
    """Return the server of this process."""
    folder = Path(tempfile.mkdtemp(prefix="alphalloc-postgres-"))
    try:
        running = start(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    atexit.register(_end, running)
    return running


def start(folder: Path, port: int | None = None) -> Server:
    """Start a server whose data lie in ``folder`` (made there at the first time); at a free port if none is named."""
    binaries = _binaries()
    become = _unprivileged
    data = folder / "data"
    if not data.exists():
        if os.geteuid() == 0:
            shutil.chown(folder, USER, USER)
        command = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            USER,
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--no-locale",
        ]
        _run([str(part) for part in command], become)
    port = port or _free_port()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 200,
        "shared_buffers": "32MB",
        "log_min_messages": "fatal",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with open(folder / "log", "ab") as log:
        # Not a child of a shell, not in our process group: Ctrl-C stops the tests, and they stop the server.
        process = subprocess.Popen(
            [str(binaries / "postgres"), "-D", str(data), *options],
            stdout=log,
            stderr=log,
            preexec_fn=_server_process,
            cwd=folder,
            start_new_session=True,
        )
    running = Server(process, port, folder)
    _wait_until_ready(running)
    return running


def _wait_until_ready(running: Server) -> None:
    import psycopg

    give_up = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(running.url("postgres").replace("+psycopg", ""), connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if running.process.poll() is not None or time.monotonic() > give_up:
                running.stop(signal.SIGQUIT)
                raise RuntimeError("PostgreSQL did not start:\n" + (running.folder / "log").read_text()) from None
            time.sleep(0.05)


def _end(running: Server) -> None:
    running.stop()
    shutil.rmtree(running.folder, ignore_errors=True)


def _binaries() -> Path:
    """Return the folder of the newest installed server; install one where that can be done."""
    found = _installed()
    if found is None:
        subprocess.run([str(Path(__file__).with_name("debian_packages.sh"))], check=False)
        found = _installed()
    if found is None:
        raise RuntimeError("the tests need PostgreSQL's server: apt-get install --no-install-recommends postgresql")
    return found


def _installed() -> Path | None:
    places = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    elsewhere = shutil.which("initdb")
    if elsewhere and shutil.which("postgres"):
        places.append(Path(elsewhere).resolve().parent)
    return max(places, key=lambda place: [int(part) for part in place.parts if part.isdigit()], default=None)


def _unprivileged() -> None:
    """Become PostgreSQL's user, for it refuses to run as root. In the child, before the program is loaded."""
    if os.geteuid() == 0:
        user = pwd.getpwnam(USER)
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)


def _server_process() -> None:
    _unprivileged()
    ctypes.CDLL(None).prctl(1, signal.SIGINT, 0, 0, 0)  # PR_SET_PDEATHSIG: should the tests be killed, it ends too


def _run(command: list[str], become: Callable[[], None]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=become, cwd="/", check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    print(new_database(), flush=True)
    signal.pause()
