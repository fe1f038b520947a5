"""The tests themselves: none imports another, and those that SECURITY.md names are there."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
CTRL_C = "test_what_a_test_starts_hears_ctrl_c"


def imported(source: str) -> set[str]:
    """Every module of tests/ that a source could import, by its dotted name."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("tests.")}


def is_collected(name: str) -> bool:
    """Whether pytest itself imports a module of that name, so that an import would make a second one."""
    last = name.rpartition(".")[2]
    return last == "conftest" or (
        last.startswith("test_") and (TESTS.parent / f"{name.replace('.', '/')}.py").is_file()
    )


@pytest.mark.parametrize(
    "line",
    ["from tests.unit.test_tests import imported", "import tests.unit.test_tests", "from tests.unit import test_tests"],
)
def test_an_import_of_a_test_module_is_seen_however_it_is_written(line):
    assert any(map(is_collected, imported(line)))


def test_no_module_of_the_tests_imports_a_test_module_or_a_conftest():
    for path in sorted(TESTS.rglob("*.py")):
        assert not list(filter(is_collected, imported(path.read_text()))), path.relative_to(TESTS.parent)


def test_every_test_that_the_page_on_security_names_is_there():
    page = (TESTS.parent / "SECURITY.md").read_text()
    defined = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert set(re.findall(r"`(test_\w+)`", page)) <= defined
    assert all((TESTS.parent / path).is_file() for path in re.findall(r"`(tests/[\w/]+\.py)`", page))


def test_what_a_test_starts_hears_ctrl_c():
    said = subprocess.run([sys.executable, "-c", "import signal; print(signal.getsignal(2))"], capture_output=True)
    assert b"default_int_handler" in said.stdout


def test_it_does_so_also_where_the_tests_are_a_shell_s_background_job():
    """Such a job, and all that it starts, ignores SIGINT unless somebody undoes that: tests/conftest.py."""
    inner = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{CTRL_C}"]
    done = subprocess.run(
        ["sh", "-c", f"trap '' INT; exec {shlex.join(inner)}"], cwd=TESTS.parent, capture_output=True, text=True
    )
    assert "1 passed" in done.stdout, done.stdout
