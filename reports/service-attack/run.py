"""An attacker's afternoon: what was tried against a running service, each with the answer it gave.

    python reports/service-attack/run.py    # starts `alphalloc serve`, tries everything, writes the page

Two services are attacked: one as it is started by default, without keys, and one with a key that may only read. Every
try names what must come of it; a try that ends otherwise is printed as BROKEN and makes the script fail.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from access import from_a_web_page, getting_in, listening
from attacked import Service, Tries, Try
from exhaustion import using_it_up, waiting
from files import checkpoints, files_and_requests
from words import injecting

HERE = Path(__file__).parent


def measure() -> Iterator[Try]:
    """Yield the tries as they are made."""
    with tempfile.TemporaryDirectory(prefix="alphalloc-attack-") as text:
        folder = Path(text)
        for name in ("keyed", "open", "public"):
            (folder / name).mkdir()
        yield from listening(folder / "public")
        keyed = Service(folder / "keyed", worker="false", max_queued="20")
        key, writer = (
            keyed.command("keys", "create", name, "--scope", scope).stdout.strip()
            for name, scope in (("reader", "read"), ("writer", "write"))
        )
        with keyed.running():
            yield from waiting(keyed, writer)
            yield from getting_in(keyed, key, writer)
        place = folder / "open"
        (place / "models" / "tiny").mkdir(parents=True)
        (place / "secret").mkdir()
        (place / "org" / "model").mkdir(parents=True)
        (place / "models" / "out").symlink_to(place / "secret")
        (place / "models" / "device").symlink_to("/dev/zero")
        settings = {"model_roots": str(place / "models"), "deny_models": "denied/*", "job_memory_bytes": str(2**31)}
        service = Service(place, **settings)
        service.environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub")}
        with service.running(descriptors=1024):
            steps: tuple[Callable[[Service], Tries], ...] = (
                from_a_web_page, files_and_requests, injecting, checkpoints, using_it_up,
            )  # fmt: skip
            for step in steps:
                yield from step(service)
            alive = service.ask("GET", "/readyz")
            yield Try("Afterwards", "is it ready?", "^200", alive)
            errors = [line for line in service.log.splitlines() if '"exception"' in line or '"status": 500' in line]
            yield Try("Afterwards", "answers of 500 and exceptions in the log", "^0$", str(len(errors)))


def page(found: Tries) -> str:
    """Return README.md."""
    lines = []
    for topic in dict.fromkeys(one.topic for one in found):
        lines += [f"## {topic}", "", "| Tried | Answer | |", "| --- | --- | --- |"]
        for one in found:
            if one.topic == topic:
                cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in (one.what, one.answer))
                lines.append(f"| {' | '.join(cells)} | {'held' if one.held else '**broken**'} |")
        lines.append("")
    held = sum(one.held for one in found)
    return f"""# An attacker's afternoon

{len(found)} things tried against `alphalloc serve` over its socket, {held} held. `run.py` starts the services, tries
everything and remakes this page; `docs/threat-model.md` says what is defended and what is not.

{chr(10).join(lines).rstrip()}

## What broke the first time, and holds now

- An upgrade to a websocket got a 500: with a library for them installed the server began a handshake that nobody took.
- 1 MB of unknown fields kept the service busy for a second or more, and a key of 900 KB came back whole in the answer.
- Clients that asked for much and read nothing held all places for requests, then all connections, for ever.
- A schedule with half a character (`\\ud800`) in a key, or a number beyond float64, passed the reader's first checks.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-report", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the services are stopped too
    found = []
    for one in measure():
        found.append(one)
        print(f"{'held  ' if one.held else 'BROKEN'} {one.topic}: {one.what} -> {one.answer}", flush=True)
    if not options.no_report:
        (HERE / "results.json").write_text(
            json.dumps([{**vars(one), "held": one.held} for one in found], indent=1) + "\n"
        )
        (HERE / "README.md").write_text(page(found))
    sys.exit(any(not one.held for one in found))


if __name__ == "__main__":
    main()
