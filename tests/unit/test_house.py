"""One-way imports: a room imports only rooms below it in tests/support/rooms.txt, so that no circle can exist.

A room is a folder, or a lone module, directly under a package; `search_spaces` is one room.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestrator", "search_spaces", "trainables")
FLOORS = (REPO / "tests/support/rooms.txt").read_text(encoding="utf-8").split()


def sources() -> dict[str, str]:
    """Text of every product module by its full name; a package's own is `package.__init__`."""
    files = [file for package in PACKAGES for file in sorted((REPO / package).rglob("*.py"))]
    return {".".join(file.relative_to(REPO).with_suffix("").parts): file.read_text("utf-8") for file in files}


def imports_of(node: ast.AST, module: str) -> Iterator[tuple[str, int]]:
    """What a module imports, with its line: inside functions too, but not what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield from imports_of(ast.Module([other], []), module)
        elif isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parents = module.split(".")[: -child.level] if child.level else []
            base = ".".join([*parents, *filter(None, [child.module])])
            yield from ((f"{base}.{alias.name}", child.lineno) for alias in child.names)
        else:
            yield from imports_of(child, module)


def room_of(name: str) -> str:
    """The room that a module, or a name in one, is in; a package's own head is in none but may look into all."""
    package, _, rest = name.partition(".")
    return package if package == "search_spaces" else f"{package}.{rest.partition('.')[0]}"


def faults(modules: Mapping[str, str], floors: list[str]) -> list[str]:
    """Rooms without a floor and imports that do not lead down, each with the place to mend."""
    floor = {room: number for number, room in enumerate(floors)}
    heads = {f"{package}.__init__" for package in PACKAGES} - {"search_spaces.__init__"}
    found = []
    for module, text in modules.items():
        own = room_of(module)
        if own not in floor and module not in heads:
            found.append(f"{module}: {own} stands on no floor")
        for name, line in imports_of(ast.parse(text), module):
            if name.partition(".")[0] not in PACKAGES:
                continue
            room = room_of(name)
            if room not in floor:
                found.append(f"{module}:{line} imports {name}, which is in no room")
            elif room != own and module not in heads and floor.get(own, -1) > floor[room]:
                found.append(f"{module}:{line} imports {name}: an arrow up, from {own} to {room}")
    return found


def test_every_import_between_rooms_leads_down():
    assert faults(sources(), FLOORS) == []
    assert len(set(FLOORS)) == len(FLOORS), "a room stands on two floors"


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("trainables.values.config", "from trainables.data import hub", "config:1 imports trainables.data.hub: an arr"),
        ("trainables.data.hub", "def f():\n    import orchestrator.cli.app", "hub:2 imports orchestrator.cli.app: an"),
        ("trainables.data.hub", "from ..models import lean", "hub:1 imports trainables.models.lean: an arrow up"),
        ("orchestrator.attic.old", "", "orchestrator.attic stands on no floor"),
        ("trainables.data.hub", "if TYPE_CHECKING:\n    pass\nelse:\n    import trainables.trial", "hub:4 imports"),
        ("orchestrator.cli.app", "import orchestrator.attic", "app:1 imports orchestrator.attic, which is in no room"),
    ],
)
def test_an_arrow_up_and_a_room_off_its_floor_are_named_with_their_line(module, text, fault):
    (found,) = faults({module: text}, FLOORS)
    assert fault in found


@pytest.mark.parametrize(
    "text",
    [
        "from trainables.values import errors",
        "import numpy, orchestrator_of_others",
        "if TYPE_CHECKING:\n    from orchestrator.cli import app",
        "from trainables.data import tokens",
    ],
)
def test_an_arrow_down_within_a_room_or_for_a_type_checker_alone_is_none(text):
    assert faults({"trainables.data.hub": text}, FLOORS) == []
