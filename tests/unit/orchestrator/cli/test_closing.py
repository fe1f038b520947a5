"""The last lines of a sweep: origins that add up, the trial that `best` names, a budget that it fits."""

import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from orchestrator.analysis import choice
from orchestrator.analysis.answer import answer_of
from orchestrator.analysis.snapshot import LEARNED, SweepSnapshot
from orchestrator.cli.closing import MAX_LINES, ORIGINS, answer_lines, counts_line, page_lines, report_text
from orchestrator.report.content import report_of
from orchestrator.settings.command import pages
from tests.support.in_process import Terminal
from tests.support.sweeps import REPO, TPE, WORKLOAD, Desk, completes, cost, make, measurement
from trainables.values.config import TrialConfig


@pytest.fixture
def sweep(tmp_path) -> SweepSnapshot:
    desk = Desk(tmp_path, make(TPE, name="t", n_trials=4))
    desk.finish()
    return SweepSnapshot.of(desk.settings, desk.ledger)


def test_the_origins_of_all_trials_are_counted_and_add_up(sweep):
    line = counts_line(sweep)
    first, _, rest = line.partition(" trials (")
    origins, _, states = rest.partition("): ")
    assert int(first) == len(sweep.trials)
    for part in (origins, states):
        assert sum(int(count.split()[0]) for count in part.split(", ")) == len(sweep.trials), part
    assert {trial.origin for trial in sweep.trials} <= ORIGINS.keys()


def test_one_of_a_kind_is_no_plural(sweep):
    first = next(entry for entry in sweep.entries if entry.result.origin == "search")
    baseline = replace(first, result=replace(first.result, origin="baseline"))
    line = counts_line(replace(sweep, entries=(first, baseline)))
    assert line.startswith("2 trials (1 of the search, 1 16-bit baseline): ")
    assert counts_line(replace(sweep, entries=(baseline,))).startswith("1 trial (1 16-bit baseline): ")


def test_what_was_learned_of_another_sweep_is_counted_apart(sweep):
    settings = sweep.settings.model_copy(update={"warm_start": "before"})
    known = replace(sweep, settings=settings, facts={**sweep.facts, LEARNED: 12})
    assert counts_line(known).endswith("; warm start from 12 trials of sweep before")
    assert "warm start" not in counts_line(sweep)


def with_steps(sweep: SweepSnapshot, *points: tuple[float, float]) -> SweepSnapshot:
    """The sweep with trials of these peaks in MiB and losses alone."""
    first = next(entry for entry in sweep.entries if entry.result.origin == "search")
    entries = []
    for number, (mib, loss) in enumerate(points):
        config = TrialConfig(precision="16bit", rank=number + 1, alpha=8)
        own = {"cost": cost(peak_memory_mib=mib), "history": (measurement(60, loss),), "key": str(number)}
        entries.append(replace(first, result=replace(first.result, number=number, config=config, **own)))
    return replace(sweep, entries=tuple(entries))


def test_last_stand_the_answer_the_report_and_mlflows_page(sweep, tmp_path):
    (tmp_path / "report.html").touch()
    assert answer_lines(with_steps(sweep, (25.3, 1.0)))[0] == answer_of(with_steps(sweep, (25.3, 1.0)))
    report, mlflow, page = page_lines(sweep, "http://127.0.0.1:5000/#/x")
    assert report == f"report: {tmp_path / 'report.html'}"
    assert (mlflow, page) == (f"MLflow: {pages()}, then", "http://127.0.0.1:5000/#/x")


@pytest.mark.parametrize(
    ("points", "size"),
    [
        (((25.3, 1.0), (24.1, 1.1), (14.7, 2.0)), "25MiB"),
        (((25.3, 1.0), (25.2, 1.1), (14.7, 2.0)), "25.2MiB"),  # 26 MiB would fit the answer's own
        (((2140.0, 1.0), (2060.0, 1.3)), "2.02GiB"),
        (((81817.6, 1.0), (81735.6, 1.3)), "79.82GiB"),
        (((25.3, 1.0), (24.1, 3.0), (14.7, 2.0)), "15MiB"),  # the dearer one is the best of no budget
        (((2000.0, 1.0), (1500.0, 1.1)), "1.5GiB"),
        (((25.3, 1.0), (26.0, 1.1)), None),
        (((25.3, 1.0),), None),
    ],
)
def test_the_budget_that_is_offered_is_one_that_another_trial_is_the_best_of(points, size, sweep):
    found = with_steps(sweep, *points)
    offered = answer_lines(found)[1:]
    assert bool(offered) == (size is not None)
    if size:
        assert offered[-1].endswith(f"best t --max-memory {size}")
        best, other = choice.choose(found).trial, choice.choose(found, max_memory_mib=choice.mib_of(size)).trial
        assert (best.number, other.cost.peak_memory_mib <= choice.mib_of(size) < best.cost.peak_memory_mib) == (0, True)


@pytest.mark.parametrize(
    ("dtype", "mib_at_4", "said"),
    [
        (
            "float32",
            60.0,
            "save 20.0 MiB of the peak, 25.0 % (3 pairs); what is called 16 bits computes in float32 here",
        ),
        ("bfloat16", 60.0, "save 20.0 MiB of the peak, 25.0 % (3 pairs); in steps 1.50 times as long"),
        ("bfloat16", 84.0, "cost 4.0 MiB of the peak, 5.0 % (3 pairs); in steps 1.50 times as long"),
    ],
)
def test_after_the_answer_stands_what_4_bits_save_where_pairs_were_measured(tmp_path, dtype, mib_at_4, said):
    desk = Desk(tmp_path, make(name="t"))

    def outcome(task):
        mib, seconds = (mib_at_4, 0.3) if task.config.precision == "nf4" else (80.0, 0.2)
        return completes(task, costs=cost(peak_memory_mib=mib, seconds_per_step=seconds))

    desk.finish(outcome)
    found = SweepSnapshot.of(desk.settings, desk.ledger)
    workload = asdict(replace(WORKLOAD, compute_dtype=dtype))
    answer, saved, *_ = answer_lines(replace(found, facts=found.facts | {"workload": workload}))
    assert answer == answer_of(found)
    assert saved == f"4 bits {said.replace('pairs', 'pairs of shapes, otherwise equal')}"


def test_of_a_sweep_without_an_answer_that_is_said_and_nothing_is_offered(sweep):
    empty = SweepSnapshot(settings=sweep.settings)
    assert [*answer_lines(empty), *page_lines(empty, None)] == [answer_of(empty)]


@pytest.mark.parametrize("n_steps", [0, 1, 3, 5, 6, 40])
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_report_has_eight_lines_at_most_before_a_terminal_breaks_them_and_keeps_the_answer_and_the_budget(
    columns, n_steps, sweep, monkeypatch
):
    monkeypatch.setenv("COLUMNS", str(columns))
    sweep = with_steps(sweep, (25.3, 1.0), (24.1, 1.1))
    report = report_of(sweep)
    steps = [replace(report.within_memory[0], number=100 + n) for n in range(n_steps)]
    report = replace(report, within_memory=steps)
    for stream in (io.StringIO(), Terminal()):
        text = report_text(report, sweep, stream)
        assert " ".join(report.answer.split()) in " ".join(text.split())
        assert "best t --max-memory 25MiB" in " ".join(text.split())
        assert isinstance(stream, Terminal) or len(text.splitlines()) <= MAX_LINES
        n_shown = text.count("MiB: trial")
        assert n_shown == (n_steps if n_steps <= MAX_LINES - 3 else MAX_LINES - 4), "beside answer, machine and budget"
        assert (f"{n_steps - n_shown} more such steps: report.md" in text) == (n_shown < n_steps)
        shown = [int(number) for number in re.findall(r"MiB: trial (\d+)", text)]
        assert shown == [step.number for step in (*steps[: n_shown - 1], *steps[-1:])], "the last is the answer's"


def test_a_sweep_that_is_not_finished_is_called_so_and_how_to_go_on(tmp_path):
    desk = Desk(tmp_path, make(TPE, name="t", n_trials=4))
    begun = SweepSnapshot.of(desk.settings, desk.ledger)
    text = report_text(report_of(begun), begun, io.StringIO())
    assert "not finished: 0 of" in text
    assert text.rstrip().endswith("resume t")


PRINTS = """
import sys
from pathlib import Path
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.cli import messages
from orchestrator.cli.progress import print_front, print_pages
snapshot = SweepSnapshot.read_in(Path("mlflow_runs/recorded/smollm2-keep"))
with messages.shown():
    print_front(snapshot)
    print_pages(snapshot, "http://127.0.0.1:5000/#/x")
"""


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ("{} | true", ""),
        ("{} | head -1 > /dev/null", ""),
        ("{} > /dev/full", "standard output takes nothing more: No space left on device"),
    ],
)
def test_the_front_that_nobody_reads_or_that_no_disk_takes_ends_nothing(shell, said):
    program = f"{shlex.quote(sys.executable)} -c {shlex.quote(PRINTS)}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell.format(program)],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.strip()) == (0, said)
