"""What the pages of this project name is there: paths, tests, commands with their flags, targets of make; examples run.

Pages are all *.md that people wrote: not those of recorded sweeps, not templates, and not the changelog, which speaks
of what was.
"""

import doctest
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest

from orchestrator.cli import group

REPO = Path(__file__).resolve().parents[2]
FOLDERS = ("orchestrator", "search_spaces", "tests", "trainables")
PROGRAM = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]["qlora-sweep"]
PAGES = [
    page.relative_to(REPO).as_posix()
    for page in sorted([*REPO.glob("*.md"), *(p for f in FOLDERS for p in (REPO / f).rglob("*.md"))])
    if page.name != "CHANGELOG.md" and "templates" not in page.parts
]
PAGES.append("mlflow_runs/README.md")
ROOMS = [room.replace(".", "/") for room in (REPO / "tests/support/rooms.txt").read_text("utf-8").split()]
DOORS = [
    *(room for room in ROOMS if (REPO / room).is_dir()),
    *("orchestrator", "trainables", "trainables/models/families", "tests", "mlflow_runs"),
]
SUFFIXES = (".py", ".md", ".yaml", ".toml", ".txt", ".sh", ".ipynb")
ELSEWHERE = frozenset(
    {
        *("report.md", "CARD.md", "mine.yaml", "generate.py"),
        *("artifacts/", "cache/", "figures/", "sweeps/", "tatsu-lab/alpaca"),
    }
)
"""What a sweep or its user writes, and what is on the hub."""
NO_PATHS = re.compile(r"://|^[/~$<-]|^\.venv/|[A-Z]{3,}(?!.*\.md$)|^mlflow_runs/(?!recorded)")
"""Addresses, places outside this tree, what has a PLACEHOLDER in it, and what sweeps wrote."""


def text_of(page: str) -> str:
    return (REPO / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> tuple[list[str], list[str]]:
    """Paragraphs of prose, each as one line, and lines of code without their prompts and comments."""
    blocks = re.split(r"^```.*$", text_of(page), flags=re.M)
    prose = [part.replace("\n", " ") for block in blocks[::2] for part in re.split(r"\n\s*\n", block)]
    return prose, [re.sub(r"\s+#.*|^\$ ", "", line) for block in blocks[1::2] for line in block.splitlines()]


def ticked(page: str) -> list[str]:
    """What stands in back-ticks."""
    return [code for part in blocks_of(page)[0] for code in re.findall(r"`([^`]+)`", part)]


def paths_of(page: str) -> Iterator[str]:
    """Paths in back-ticks and the targets of links."""
    for code in ticked(page):
        is_path = " " not in code and (code.endswith(SUFFIXES) or re.fullmatch(r"[\w.*-]+/[\w./*-]*", code))
        if is_path and not NO_PATHS.search(code) and code not in ELSEWHERE:
            yield code
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if not re.match(r"https?:|#", target):
            yield target.partition("#")[0]


def is_there(path: str, page: str) -> bool:
    """Whether a page's path leads to something from its own folder or from one above, as deep as this repository."""
    folder = (REPO / page).parent
    above = [folder, *(parent for parent in folder.parents if parent.is_relative_to(REPO))]
    return any(any(place.glob(path.rstrip("/"))) if "*" in path else (place / path).exists() for place in above)


def commands_of(page: str) -> Iterator[list[str]]:
    """Each `qlora-sweep COMMAND ...` as its words."""
    for code in (*ticked(page), *blocks_of(page)[1]):
        for words in re.findall(r"(?:qlora-sweep|orchestrator\.cli) ((?:[a-z-]+)(?: [^|;&'\"]*)?)", code):
            yield words.split()


def targets_of(page: str) -> Iterator[str]:
    """Each `make TARGET ...`, whole."""
    yield from (code for code in (*ticked(page), *blocks_of(page)[1]) if re.match(r"make( |$)", code))


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page):
    missing = [path for path in paths_of(page) if not is_there(path, page)]
    assert not missing, missing


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page):
    files = list((REPO / "tests").rglob("test_*.py"))
    there = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text("utf-8"))}
    missing = [name for name in ticked(page) if re.fullmatch(r"test_\w+", name) and name not in there]
    assert not missing, missing


COMMANDS = sorted({" ".join(words) for page in PAGES for words in commands_of(page)})
TARGETS = sorted({target for page in PAGES for target in targets_of(page)})


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_of_a_page_answers_help_and_has_its_flags(words, monkeypatch, capsys):
    command, *rest = words.split()
    monkeypatch.setattr(sys, "argv", ["qlora-sweep", command, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # which the entry point sets, as the next
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    before = os.umask(0o022)
    try:
        with pytest.raises(SystemExit) as end:
            resolve_name(PROGRAM)()
    finally:
        os.umask(before)
    printed = capsys.readouterr()
    assert end.value.code in (0, None), printed.err
    flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
    assert [flag for flag in flags if flag not in re.findall(r"--[\w-]+", printed.out)] == []


@pytest.mark.parametrize("target", TARGETS)
def test_every_make_target_of_a_page_is_one_with_its_variables(target):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    words = ["make", "--dry-run", "--no-print-directory", *shlex.split(target)[1:]]
    made = subprocess.run(words, cwd=REPO, env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("room", DOORS)
def test_every_room_has_a_page_of_at_most_a_screen_at_its_door(room):
    page = REPO / room / "README.md"
    assert page.is_file(), f"{room} has no README.md: what it is for, what may be touched, where a new thing goes"
    lines = page.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 45
    assert [line for line in lines if len(line) > (120 if line.startswith("|") else 100)] == []


EXAMPLES = [page for page in PAGES if ">>> " in text_of(page)]


@pytest.mark.parametrize("page", EXAMPLES)
def test_every_python_example_of_a_page_prints_what_the_page_shows(page, monkeypatch):
    monkeypatch.chdir(REPO)
    blocks = re.findall(r"^```python\n(.*?)^```", text_of(page), flags=re.M | re.S)
    shown = "\n".join(block for block in blocks if block.startswith(">>> "))
    example = doctest.DocTestParser().get_doctest(shown, {}, page, page, 0)
    assert example.examples
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    assert not said, "".join(said)


def test_the_first_page_names_every_command():
    page = text_of("README.md")
    missing = [name for name in group.COMMANDS if not re.search(rf"(`|; `|qlora-sweep |make ){name}\b", page)]
    assert missing == []


def test_the_first_page_names_the_variables_that_one_sets_first():
    named = set(re.findall(r"\b([A-Z_]+)=", text_of("README.md")))
    assert {"NAME", "TRIALS", "SPACE", "BASE_MODEL", "DATA", "COLUMNS", "ADDRESS"} - named == set()


@pytest.mark.parametrize("page", PAGES)
def test_no_page_sends_a_reader_to_mlflow_s_welcome_in_place_of_the_runs(page):
    named = re.findall(r"(--tracking-uri )?http://127\.0\.0\.1:5000/?([^\s`,)]*)", text_of(page))
    assert [where for is_server, where in named if not is_server and not where.startswith("#/experiments/")] == []


def test_the_first_page_is_read_in_two_minutes():
    """Words that begin with a letter, tables and links included, examples not."""
    prose = re.sub(r"^```.*?^```$", "", text_of("README.md"), flags=re.M | re.S)
    assert len(re.findall(r"[A-Za-z][A-Za-z'-]*", prose)) <= 900
