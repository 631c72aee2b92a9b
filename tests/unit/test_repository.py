"""What the repository promises about itself: layering, the wheel's content, its tests' form."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.workers import ROOT

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _tracked() -> list[Path]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        [git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_imports_point_one_way() -> None:
    """The import contracts of pyproject.toml hold: nothing lower imports anything higher."""
    linter = Path(sys.executable).parent / "lint-imports"
    if not linter.exists():
        pytest.skip("import-linter is not installed (the `lint` extra)")
    done = subprocess.run(
        [linter, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_carries_scripts_types_and_the_command(tmp_path: Path) -> None:
    """Every .lua file, the page, py.typed and the entry point are in what users install."""
    pytest.importorskip("hatchling", reason="hatchling is not installed (the `test` extra)")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "streams = celery_streams.cli:streams" in archive.read(entry_points).decode()
    scripts = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "celery_streams").rglob("*.lua")
    }
    page = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "celery_streams" / "gateway" / "ui").iterdir()
    }
    assert scripts
    assert page
    assert scripts | page | {"celery_streams/py.typed"} <= names
    assert not any(name.startswith(("tests/", "example_project/")) for name in names)


def test_dependencies_are_ranges() -> None:
    """Each core dependency has a lower and an upper bound, and none is pinned."""
    for requirement in _PROJECT["project"]["dependencies"]:
        assert ">=" in requirement
        assert "<" in requirement
        assert "==" not in requirement


def test_no_file_names_a_registry_or_is_a_lock_file() -> None:
    """The checkout installs from whatever index its user has configured."""
    hosts = re.compile(
        "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.(org|com)"])
    )
    for path in _tracked():
        assert not re.search(r"(\.lock|lock\.json|lock\.yaml)$", path.name), path
        found = hosts.search(path.read_text(errors="replace"))
        assert found is None, f"{path} names a registry: {found}"


def test_every_test_says_what_it_proves() -> None:
    """A docstring on each test function, and a module docstring on each test module."""
    silent = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        silent += [] if ast.get_docstring(tree) else [path.name]
        functions = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        silent += [
            f"{path.name}::{function.name}"
            for function in functions
            if function.name.startswith("test_") and not ast.get_docstring(function)
        ]
    assert not silent


def test_modules_stay_small() -> None:
    """One idea per module: none of the package's has more than 400 lines."""
    sizes = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in (ROOT / "celery_streams").rglob("*.py")
    }
    assert not {name: size for name, size in sizes.items() if size > 400}
