"""One bit of a ledger flipped: every command says so, or what it says is what it said before."""

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from io import StringIO
from pathlib import Path
from random import Random

import pytest
import typer

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.cli.commands import best, status, verify
from orchestrator.ledger import Ledger
from orchestrator.report.content import report_of
from tests.support.sweeps import REPO, command
from trainables.values.config import TrialConfig
from trainables.values.errors import SweepError

RECORDED = REPO / "mlflow_runs" / "recorded" / "smollm2-loops"
NAME = RECORDED.name
N_FLIPS = 250
HEADER_BYTES = 100
"""Of an SQLite file."""
NEW = "f" * 64


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Path:
    """The folder of a recorded sweep, its ledger taken over."""
    folder = tmp_path / "mlflow_runs" / "sweeps" / NAME
    folder.mkdir(parents=True)
    for name in ("settings.json", "front.json", "trials.parquet"):
        shutil.copy(RECORDED / name, folder)
    shutil.copy(RECORDED / "ledger.db", folder)
    Ledger(folder / "ledger.db").close()
    monkeypatch.chdir(tmp_path)
    return folder


def resumed(path: Path) -> object:
    """What a resumed sweep begins with; and it leaves a ledger that is whole."""
    with closing(Ledger(path)) as ledger:
        found = ledger.entries(), [ledger.fact(name) for name in ("id", "workload", "data_counts", "created_at")]
        ledger.requeue_running()
        ledger.add(NEW, TrialConfig(precision="16bit", rank=7, alpha=8), params={}, origin="search")
    with closing(Ledger(path, read_only=True)) as ledger:
        assert len(ledger.entries()) == len(found[0]) + 1
    return found


COMMANDS: dict[str, Callable[[Path], object]] = {
    "verify": lambda path: verify.verify(NAME, repair=False, as_json=True),
    "status": lambda path: status.status(NAME, as_json=True),
    "best": lambda path: best.best(NAME, max_memory=None, as_json=True),
    "report": lambda path: report_of(SweepSnapshot.read(NAME)).to_dict(),
    "resume": resumed,
}
"""Each from the file to what it prints; resume is the last, as it writes."""


def said(run: Callable[[Path], object], path: Path) -> object:
    """What a command prints, or the error that it ends with; an error that is not ours goes through."""
    out = StringIO()
    try:
        with redirect_stdout(out):
            found = run(path)
    except typer.Exit:
        found = None
    except SweepError as error:
        return error
    return out.getvalue(), found


def is_noticed(answer: object) -> bool:
    return isinstance(answer, SweepError) or ('"text": "' in str(answer) and "restore it from a copy" in str(answer))


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_flipped_bit_of_a_ledger_is_noticed_by_every_command_or_changes_nothing_that_any_prints(sweep, survived):
    path = sweep / "ledger.db"
    content = path.read_bytes()
    expected = {name: said(run, path) for name, run in COMMANDS.items()}
    assert not any(map(is_noticed, expected.values()))
    random = Random(0)
    bits = [random.randrange(8 * len(content)) for _ in range(N_FLIPS)]
    bits += [random.randrange(8 * HEADER_BYTES) for _ in range(N_FLIPS // 10)]
    counts: Counter[str] = Counter()
    for bit in bits:
        noticed = []
        for name, run in COMMANDS.items():
            path.write_bytes(flipped(content, bit))
            answer = said(run, path)
            noticed.append(is_noticed(answer))
            assert noticed[-1] or answer == expected[name], f"bit {bit}: {name} says something else"
        counts["noticed" if any(noticed) else "harmless"] += 1
        for left in sweep.glob("ledger.db-*"):
            left.unlink()
    assert counts.total() == len(bits)
    survived("a bit of the ledger flipped: noticed by verify, status, best, ...", counts["noticed"], lost=0)
    survived("a bit of the ledger flipped: every command prints the same", counts["harmless"], lost=0)


def test_each_command_ends_with_1_and_a_line_that_names_the_damaged_row(sweep):
    path = sweep / "ledger.db"
    content = path.read_bytes()
    at = content.index(b'"rank":')  # of a trial's config
    path.write_bytes(flipped(content, 8 * (at + 1)))
    for arguments in (("status", NAME), ("resume", NAME), ("verify", NAME)):
        ended = command(*arguments, cwd=sweep.parents[2])
        assert ended.code == 1, ended.err
        assert "Traceback" not in ended.err
        line = (ended.out if arguments[0] == "verify" else ended.err).splitlines()[-1]
        assert "is damaged: trial " in line
        assert line.endswith("is not as it was written; restore it from a copy, or start under a new NAME")
