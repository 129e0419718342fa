"""Imports go down only, and the server never imports what only the command line or the offline work needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import ROOT

APP = ROOT / "app"
# From the top down; what stands in one set does not import each other, except within a package.
LAYERS: list[set[str]] = [
    {"__main__"},
    {"cli", "main", "library"},
    {"api", "ui", "optimize", "server", "production"},
    {"engine"},
    {"registry"},
    {"processing", "runtimes", "monitoring", "auth"},
    {"storage"},
    {"settings", "errors", "metrics", "logs", "tensors"},
    {"deferred"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# `headway predict` is the library with a table around it; `settings` and its kin are a floor with few stairs.
SIDEWAYS = {("cli", "library")}


def _modules() -> dict[str, Path]:
    names = {}
    for path in sorted(APP.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = _modules()


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, at its top or in a function; relative imports there are none."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def _ours(path: Path) -> set[str]:
    return {name for name in _imports(path) if name == "app" or name.startswith("app.")}


def _part(module: str) -> str:
    """`registry` of app.registry.store, and nothing of `app` itself."""
    return module.split(".")[1] if "." in module else ""


def _edges() -> Iterator[tuple[str, str]]:
    for module, path in MODULES.items():
        yield from ((module, imported) for imported in _ours(path))


def test_every_part_has_a_level() -> None:
    assert {_part(module) for module in MODULES} - {""} <= set(LEVEL)


def test_imports_go_down_only() -> None:
    upwards = []
    for module, imported in _edges():
        above, below = _part(module), _part(imported)
        if not above or not below or above == below or (above, below) in SIDEWAYS:
            continue
        if (above, below) == ("main", "server"):
            continue  # held by its own test
        if LEVEL[above] >= LEVEL[below]:
            upwards.append(f"{module} imports {imported}")
    assert upwards == []


@pytest.mark.parametrize(
    ("part", "never"), [("api", "runtimes"), ("optimize", "api"), ("api", "optimize"), ("ui", "api")]
)
def test_part_never_imports(part: str, never: str) -> None:
    assert [edge for edge in _edges() if (_part(edge[0]), _part(edge[1])) == (part, never)] == []


def test_nobody_imports_main() -> None:
    """The command line hands its name over as a string, for the workers to import."""
    assert [module for module, imported in _edges() if imported == "app.main"] == []
    assert '"app.main:worker_app"' in (APP / "cli" / "serve.py").read_text()


def test_server_imports_only_errors_of_ours() -> None:
    outside = {imported for module, imported in _edges() if _part(module) == "server" and _part(imported) != "server"}
    assert outside <= {"app.errors"}


def test_main_imports_only_options_of_the_server() -> None:
    assert {name for name in _ours(APP / "main.py") if _part(name) == "server"} <= {"app.server.options"}


def test_tensors_and_errors_import_nothing_of_ours() -> None:
    for name in ("tensors", "errors", "settings"):
        assert _ours(APP / f"{name}.py") == set()


def test_package_imports_nothing_before_it_is_used() -> None:
    """`import app` is quick; `app.load` brings the rest."""
    assert _loaded_by("import app") & {"app.library", "numpy", "onnxruntime"} == set()


def test_no_import_cycles() -> None:
    graph = {module: {name for name in _ours(path) if name in MODULES} for module, path in MODULES.items()}
    graph["app"] = set()  # imports its library in a function, when asked for it
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"cycle: {' → '.join([*trail, module])}"
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def _loaded_by(code: str) -> set[str]:
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


OFFLINE = {
    "typer", "click", "rich", "matplotlib", "pandas", "alembic", "boto3", "onnx", "sklearn", "scipy", "torch", "httpx",
    "pytest", "hypothesis", "app.cli", "app.optimize", "app.library", "app.server.master", "app.server.arbiter",
}  # fmt: skip


def test_server_process_does_not_import_what_is_for_other_work() -> None:
    loaded = _loaded_by("import app.main")
    assert {"fastapi", "onnxruntime", "PIL.Image", "app.api.predict"} <= loaded
    assert loaded & OFFLINE == set()


def test_application_is_built_where_there_is_no_posix() -> None:
    """`uvicorn app.main:app` is the way on Windows."""
    missing = "import sys; sys.modules |= dict.fromkeys(('fcntl', 'resource', 'gunicorn', 'pwd', 'grp'))\n"
    _loaded_by(missing + "import os; del os.fchmod\nfrom app.main import app")


def test_help_of_the_command_line_does_not_import_what_runs_models() -> None:
    loaded = _loaded_by("import app.cli.main")
    assert loaded & {"onnxruntime", "fastapi", "app.library", "app.main", "app.server.master"} == set()
