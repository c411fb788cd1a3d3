"""A running service: `alphalloc serve` on a free loopback port with a database of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path


class ServiceProcess:
    """``with ServiceProcess(folder, "--model-root", ..) as service: service.url``; stopped at the end, worker too."""

    def __init__(self, folder: Path, *options: str, **environ: str) -> None:
        self.log = folder / "service.log"
        database = f"sqlite:///{folder / 'service.db'}"
        command = [sys.executable, "-m", "alphalloc", "serve", "--port", "0", "--database-url", database, *options]
        own = {"XDG_CACHE_HOME": str(folder / "cache"), "ALPHALLOC_RATE_LIMIT": "off", "HF_HUB_OFFLINE": "1"}
        self._written = self.log.open("w")
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **own, **environ}, start_new_session=True
        )

    def __enter__(self) -> ServiceProcess:
        assert self.process.stderr is not None
        seen = []
        for line in self.process.stderr:
            seen.append(line)
            if found := re.search(r"alphalloc serves (http://\S+:\d+)", line):
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(seen))
        # From here on to a file, so that a full pipe never holds the server up.
        self._pump = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=self._written)
        self.process.stderr.close()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._pump.wait(20)
        self._written.close()
