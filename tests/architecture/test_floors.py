"""The house keeps its floors: a room imports only from floors below its own, and there is no circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from floors import FLOORS

ROOT = Path(__file__).parents[2]
# What the service may use beside the public page: alphalloc's documented sub-pages.
SERVICE_MAY_USE = {"alphalloc", "allocation", "backends", "checkpoint", "documents", "errors", "export", "report"}


def source_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Every module that ``path`` imports; ``at_import_time`` leaves out those inside functions and TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    nodes = list(_outer_nodes(tree)) if at_import_time else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _outer_nodes(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _outer_nodes(child)


@pytest.mark.parametrize("path", source_files("alphalloc"), ids=module_name)
def test_a_room_knows_only_the_floors_below(path):
    here = room(module_name(path))
    for target in imports(path):
        if not target.startswith("alphalloc"):
            continue
        there = room(target) if target.count(".") and room(target) in FLOORS else "__init__"
        if there == here:
            continue
        assert here in FLOORS, f"room {here} has no floor: add it to FLOORS and to the README"
        assert FLOORS[there] < FLOORS[here], f"{here} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[there]})"


def test_there_is_no_import_circle():
    modules = {module_name(path): path for folder in ("alphalloc",) for path in source_files(folder)}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = {_nearest(target, modules) for target in imports(path, at_import_time=True)}
        graph[name] = {target for target in targets if target and target != name and not name.startswith(f"{target}.")}
    assert list(TopologicalSorter(graph).static_order())


def _nearest(target: str, modules: dict[str, Path]) -> str | None:
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or None


@pytest.mark.parametrize("path", source_files("service"), ids=module_name)
def test_the_service_uses_the_public_page_and_relative_imports(path):
    for target in imports(path):
        assert not target.startswith(("service", "alphalloc_service")), f"{path}: use a relative import for {target}"
        if target.startswith("alphalloc"):
            parts = target.split(".")
            page = parts[1] if len(parts) > 2 else "alphalloc"
            assert page in SERVICE_MAY_USE, f"{path}: {target} is not on a documented page"


@pytest.mark.parametrize("room_name", ["spectra", "fits"])
def test_the_numerics_run_without_pydantic_and_typer(room_name):
    block = "import sys; sys.modules.update(dict.fromkeys(['pydantic', 'typer', 'rich', 'huggingface_hub']))"
    run(f"{block}; import alphalloc.{room_name}")


def test_import_stays_light():
    heavy = ["torch", "numpy", "scipy", "pydantic", "fastapi", "transformers", "ray", "plotly", "typer", "rich"]
    run(f"import sys, alphalloc; loaded = [m for m in {heavy} if m in sys.modules]; assert not loaded, loaded")


def test_allocation_needs_no_numerics():
    run("import sys, alphalloc.allocation; assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)")


def test_help_loads_no_numerics():
    code = (
        "import sys\nfrom alphalloc.cli import main\nsys.argv = ['alphalloc', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'numpy', 'pydantic', 'fastapi'} & set(sys.modules)"
    )
    run(code)


def run(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
