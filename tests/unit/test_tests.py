"""The tests themselves: none imports another, and those that SECURITY.md names are there."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


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
