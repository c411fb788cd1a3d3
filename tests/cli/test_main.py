"""The border: exit codes, one-line errors, a light start."""

from __future__ import annotations

import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from alphalloc.cli import main

ENTRY = Path(sys.executable).with_name("alphalloc")
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_help_is_light_and_quick(environment: dict[str, str]) -> None:
    seconds = []  # of processor time: what the program itself needs, however busy the machine is
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([ENTRY, "--help"], env=environment, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5, seconds
    for command in ("analyze", "allocate", "inspect", "schema", "serve"):
        assert command in done.stdout


def test_help_imports_nothing_heavy(environment: dict[str, str]) -> None:
    script = (
        "import sys; from alphalloc.cli import main; code = main(['--help'])\n"
        "print(code, sorted({'numpy', 'torch', 'pydantic', 'scipy', 'rich', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize("command", ["analyze", "allocate", "inspect", "schema", "serve"])
def test_help_of_a_subcommand_imports_nothing_heavy(environment: dict[str, str], command: str) -> None:
    script = (  # pydantic is left out: recent typer loads it itself to describe the options
        f"import sys; from alphalloc.cli import main; code = main([{command!r}, '--help'])\n"
        "print(code, sorted({'numpy', 'torch', 'scipy', 'fastapi', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_version_and_bare_call(run: Run) -> None:
    for option in ("--version", "-V"):
        assert run(option).stdout == f"alphalloc {version('alphalloc')}\n"
    bare = run()
    assert (bare.returncode, bare.stderr) == (0, "")
    assert bare.stdout == run("--help").stdout


def test_module_is_the_same_program(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "alphalloc", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"alphalloc {version('alphalloc')}\n")


USAGE = [
    (("analyse",), "No such command 'analyse'. Did you mean 'analyze'? (see 'alphalloc --help')"),
    (("analyze",), "Missing argument 'MODEL' (see 'alphalloc analyze --help')"),
    (("analyze", "x", "--alphas"), "No such option: --alphas"),
    (("analyze", "x", "y"), "unexpected extra argument"),
    (("analyze", "x", "--experts"), "'--experts' requires an argument"),
    (("analyze", "x", "--experts", "5.5"), "Invalid value for '--experts'"),
    (("analyze", "x", "--experts", "True"), "Invalid value for '--experts'"),
    (("analyze", "x", "--device", "tpu"), "expected device 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps', found 'tpu'"),
    (("analyze", "x", "--backend", "dask"), "'dask' is not one of 'auto', 'local', 'batched', 'ray'"),
    (("analyze", "x", "--ray-address", "head:6379"), "without backend='ray'"),
    (("analyze", "x", "--fill", "mean"), "'mean' is not one of 'median'"),
    (("analyze", "x", "--workers", "0"), "Invalid value for '--workers'"),
    (("schema", "report"), "'report' is not one of 'schedule', 'alphas'"),
    (("serve", "--port", "65536"), "Invalid value for '--port'"),
    (("serve", "--host", "0.0.0.0"), "--insecure-no-auth"),
    (("analyze", "no\x1b[31m\nsuch"), r"'no\x1b[31m\nsuch': no such path"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_usage_errors_are_one_line_and_two(run: Run, arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_argument_that_is_not_utf8(environment: dict[str, str]) -> None:
    command = [os.fsencode(ENTRY), b"inspect", b"\xff\xfe"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: the argument '\\udcff\\udcfe' is not valid UTF-8")


def test_fault_is_one_line_and_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise ZeroDivisionError("seven\nby zero")

    monkeypatch.setattr("alphalloc.allocation.schedule_schema", broken)
    assert main(["schema"]) == 1
    line = capsys.readouterr().err
    assert line.startswith(
        "internal error: ZeroDivisionError: seven by zero (this is a fault of alphalloc; please report"
    )
    assert line.count("\n") == 1
    monkeypatch.setenv("ALPHALLOC_DEBUG", "1")
    assert main(["schema"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_shows_the_traceback_of_bad_input_too(run: Run) -> None:
    done = run("allocate", "missing.json", ALPHALLOC_DEBUG="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: missing.json: ")
    assert "Traceback" not in run("allocate", "missing.json", ALPHALLOC_DEBUG="0").stderr


@pytest.mark.parametrize("delay", [0.3, 1.0, 2.0])
def test_interrupt_leaves_nothing_behind(
    environment: dict[str, str], tmp_path: Path, smollm: Path, delay: float
) -> None:
    command = [ENTRY, "analyze", smollm, "--no-cache", "-o", "out/a.json", "--schedule", "out/s.json", "--json"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def in_terminal(arguments: list[str], environment: dict[str, str]) -> str:
    """Run in a pseudo-terminal and return everything that it was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(ENTRY, [str(ENTRY), *arguments], {**environment, "TERM": "xterm-256color"})
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side has closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return shown.decode()


def test_colour_only_in_a_terminal_and_not_with_no_color(run: Run, environment: dict[str, str], tiny: Path) -> None:
    assert "\x1b[" not in run("analyze", tiny).stdout
    arguments = ["analyze", str(tiny), "--quiet"]
    assert "\x1b[1m" in in_terminal(arguments, environment)
    assert "\x1b[" not in in_terminal(arguments, {**environment, "NO_COLOR": "1"})


def test_progress_bar_in_a_terminal(environment: dict[str, str], tiny: Path) -> None:
    shown = in_terminal(["analyze", str(tiny), "--no-cache"], {**environment, "COLUMNS": "100"})
    assert "analysing" in shown
    assert "8/8" in shown
    assert shown.rstrip().splitlines()[-1].startswith("20 experts in 4 layers")


def test_reader_that_goes_away_and_full_disk(environment: dict[str, str], tiny: Path) -> None:
    script = f"{ENTRY} inspect {tiny} --json | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{0\n", "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [ENTRY, "schema"], env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, "error: stdout cannot be written: No space left on device\n")


def test_terminal_without_unicode(run: Run, tiny: Path) -> None:
    table = run("analyze", tiny, PYTHONIOENCODING="ascii").stdout
    assert table.isascii()
    assert "####" in table
