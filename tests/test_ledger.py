"""The ledger against a plain dictionary: what is allowed, what survives, what is refused."""

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from threading import Timer
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.ledger import SCHEMA_VERSION, TRANSITIONS, Ledger, LedgerError
from tests.sweeps import REPO, WORKLOAD, cost, measurement, similarity
from trainables.config import FINAL_STATES, Cost, State, TrialConfig
from trainables.errors import ConfigError
from trainables.findings import Comparison

CONFIGS = [TrialConfig(precision=p, rank=r, alpha=8) for r in (1, 2) for p in ("nf4", "16bit")]
KEYS = [f"{i}" * 64 for i in range(len(CONFIGS))]
UNKNOWN = "f" * 64
ANY_KEY = st.sampled_from([*KEYS, UNKNOWN])
STEPS = st.sampled_from([25, 50, 100, 200])
LOSSES = st.floats(0, 20)


class LedgerAndModel(RuleBasedStateMachine):
    """Every operation in every state, allowed or not, with crashes in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp(prefix="ledger-"))
        self.ledger = Ledger(self.folder / "ledger.db")
        self.trials: dict[str, dict] = {}
        self.facts: dict[str, object] = {}
        self.costs: dict[str, Cost] = {}
        self.n_crashes = 0

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    def state(self, key: str) -> str | None:
        return self.trials[key]["state"] if key in self.trials else None

    def attempt(self, allowed: bool, operation, *arguments, **named) -> bool:
        """Do it where the model allows it; otherwise see it refused."""
        if allowed:
            operation(*arguments, **named)
        else:
            with pytest.raises(LedgerError):
                operation(*arguments, **named)
        return allowed

    @rule(i=st.integers(0, len(KEYS) - 1), origin=st.sampled_from(["search", "twin"]))
    def add(self, i: int, origin: str) -> None:
        params = {"rank": CONFIGS[i].rank}
        if self.attempt(KEYS[i] not in self.trials, self.ledger.add, KEYS[i], CONFIGS[i], params=params, origin=origin):
            fresh = {"state": "queued", "origin": origin, "params": params, "history": {}, "number": len(self.trials)}
            self.trials[KEYS[i]] = fresh | {"config": CONFIGS[i], "reason": None, "similarity": None}

    @rule(key=ANY_KEY)
    def start(self, key: str) -> None:
        if self.attempt(self.state(key) == "queued", self.ledger.start, key):
            self.trials[key]["state"] = "running"

    @rule(key=ANY_KEY, step=STEPS, loss=LOSSES)
    def record(self, key: str, step: int, loss: float) -> None:
        if self.attempt(self.state(key) == "running", self.ledger.record, key, measurement(step, loss)):
            self.trials[key]["history"][step] = loss

    @rule(key=ANY_KEY, new=st.sampled_from(sorted(FINAL_STATES)), reason=st.sampled_from([None, "", "too hot"]))
    def finish(self, key: str, new: State, reason: str | None) -> None:
        allowed = new in TRANSITIONS.get(self.state(key), ()) and (new == "completed" or bool(reason))
        if self.attempt(allowed, self.ledger.finish, key, new, reason=reason, adapter_sha256="a", train_seconds=1.5):
            self.trials[key] |= {"state": new, "reason": reason}

    @rule(key=ANY_KEY)
    def requeue(self, key: str) -> None:
        if self.attempt(self.state(key) in ("running", "pruned"), self.ledger.requeue, key):
            self.trials[key] |= {"state": "queued", "reason": None, "history": {}}

    @rule(key=ANY_KEY, cosine=st.floats(-1, 1))
    def set_similarity(self, key: str, cosine: float) -> None:
        if self.attempt(self.state(key) == "completed", self.ledger.set_similarity, key, similarity(cosine)):
            self.trials[key]["similarity"] = similarity(cosine)

    @rule(i=st.integers(0, len(CONFIGS) - 1), mib=st.floats(1, 9))
    def keep_cost(self, i: int, mib: float) -> None:
        kept = self.ledger.keep_cost(CONFIGS[i].cost_cell, cost(peak_memory_mib=mib))
        assert kept == self.costs.setdefault(CONFIGS[i].cost_cell, cost(peak_memory_mib=mib))

    @rule(name=st.sampled_from(["id", "counts"]), value=st.none() | st.integers() | st.dictionaries(st.text(), LOSSES))
    def set_fact(self, name: str, value: object) -> None:
        self.ledger.set_fact(name, value)
        self.facts[name] = value

    @rule()
    def resume(self) -> None:
        """The driver stops in good order and starts again."""
        self.ledger.close()
        self.ledger = Ledger(self.ledger.path)
        running = [key for key in self.trials if self.state(key) == "running"]
        assert self.ledger.requeue_running() == len(running)
        for key in running:
            self.trials[key] |= {"state": "queued", "reason": None, "history": {}}

    @precondition(lambda self: self.n_crashes < 5)
    @rule()
    def lose_power(self) -> None:
        """Go on from the bytes that lie on disk now, with nothing closed."""
        self.n_crashes += 1
        after = self.folder / f"after-crash-{self.n_crashes}"
        after.mkdir()
        for path in self.ledger.path.parent.glob("ledger.db*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, after)
        self.ledger.close()
        self.ledger = Ledger(after / "ledger.db")

    @invariant()
    def rows_agree(self) -> None:
        entries = self.ledger.entries()
        assert [entry.result.number for entry in entries] == list(range(len(self.trials)))
        assert {entry.result.key for entry in entries} == set(self.trials)
        for entry in entries:
            result, model = entry.result, self.trials[entry.result.key]
            known = self.costs.get(result.config.cost_cell)
            assert {name: getattr(result, name) for name in ("state", "origin", "number", "config", "reason")} == {
                name: model[name] for name in ("state", "origin", "number", "config", "reason")
            }
            assert result.similarity == model["similarity"]
            assert result.cost == known
            assert entry.params == model["params"]
            history = {m.step: m.eval_loss_nats for m in result.history}
            assert history == (model["history"] if known else {})  # without a cost no measurement is whole
            assert list(history) == sorted(history)
            assert len(entry.measured_at) == len(history)
            assert all(m.peak_memory_mib == known.peak_memory_mib for m in result.history)
            assert (result.ended_at is not None) == (result.state in FINAL_STATES)
            assert self.ledger.entry(result.key) == entry

    @invariant()
    def facts_agree(self) -> None:
        for name in ("id", "counts", "never set"):
            assert self.ledger.fact(name, "nothing") == self.facts.get(name, "nothing")


LedgerAndModel.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


class TestLedgerAgreesWithAPlainDictionary(LedgerAndModel.TestCase):
    """Collected under a name that is a claim."""


@pytest.fixture
def ledger(tmp_path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.db")
    yield opened
    opened.close()


def test_no_state_leads_out_of_a_final_one_except_pruned_back_into_the_queue():
    assert set(TRANSITIONS) <= set(get_args(State))
    for state in FINAL_STATES - {"pruned"}:
        assert state not in TRANSITIONS
    assert TRANSITIONS["pruned"] == {"queued"}


def test_a_refused_operation_says_which_trial_and_what_it_did(ledger):
    ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
    with pytest.raises(LedgerError, match="000000000000 is in the ledger already"):
        ledger.add(KEYS[0], CONFIGS[1], params={}, origin="twin")
    with pytest.raises(LedgerError, match="cannot go from queued to completed"):
        ledger.finish(KEYS[0], "completed")
    with pytest.raises(LedgerError, match="no trial ffffffffffff"):
        ledger.start(UNKNOWN)
    ledger.start(KEYS[0])
    with pytest.raises(LedgerError, match="ends as failed without a reason"):
        ledger.finish(KEYS[0], "failed")
    assert ledger.entry(KEYS[0]).result.state == "running"


def test_all_that_a_finished_trial_left_is_read_back(ledger):
    ledger.add(KEYS[0], CONFIGS[0], params={"rank": 1, "targets": "attn.c_attn"}, origin="search")
    ledger.start(KEYS[0])
    ledger.keep_cost(CONFIGS[0].cost_cell, cost(peak_memory_mib=7.0))
    ledger.record(KEYS[0], measurement(25, 3.0))
    ledger.record(KEYS[0], measurement(25, 2.5))  # reported again after a retry
    ledger.finish(
        KEYS[0], "completed", environment={"device": "CPU"}, adapter_sha256="ab", train_seconds=2.5, reason=None
    )
    entry = ledger.entry(KEYS[0])
    assert entry.result.history == (measurement(25, 2.5, peak_memory_mib=7.0),)
    assert (entry.adapter_sha256, entry.result.train_seconds) == ("ab", 2.5)
    assert entry.result.environment == {"device": "CPU"}
    assert entry.params == {"rank": 1, "targets": "attn.c_attn"}
    assert entry.result.started_at <= entry.measured_at[0] <= entry.result.ended_at


def test_the_workload_is_read_back_and_absent_at_first(ledger):
    assert ledger.workload() is None
    ledger.set_fact("workload", asdict(WORKLOAD))
    assert ledger.workload() == WORKLOAD


def test_the_table_of_trials_can_be_read_by_any_sqlite_client(ledger):
    ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
    with sqlite3.connect(ledger.path) as other:
        assert other.execute("SELECT key, state FROM trials").fetchall() == [(KEYS[0], "queued")]


def test_a_second_connection_reads_while_the_driver_writes(ledger):
    reader = Ledger(ledger.path)
    ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
    assert [t.state for t in reader.trials()] == ["queued"]
    ledger.start(KEYS[0])
    assert [t.state for t in reader.trials()] == ["running"]
    reader.close()


DAMAGE = {
    "text in its place": lambda path: path.write_text("no database, only words\n" * 100),
    "its first page is gone": lambda path: path.write_bytes(b"\0" * 4096 + path.read_bytes()[4096:]),
    "another SQLite file with such tables": lambda path: (
        path.unlink(),
        sqlite3.connect(path).execute("CREATE TABLE trials (x)").connection.close(),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_ledger_is_a_config_error_that_names_the_file(damage, tmp_path):
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
    ledger.close()
    DAMAGE[damage](path)
    with pytest.raises(ConfigError, match=r"ledger\.db is no readable ledger.*start under a new NAME"):
        Ledger(path)


def test_a_ledger_of_another_version_is_refused(tmp_path):
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ConfigError, match=f"version {SCHEMA_VERSION + 1}, this program reads {SCHEMA_VERSION}"):
        Ledger(path)


def test_an_empty_file_left_by_a_crash_at_birth_becomes_a_ledger(tmp_path):
    (tmp_path / "ledger.db").touch()
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger.trials() == []
    ledger.close()


WRITER = """
import sys
from pathlib import Path
from orchestrator.ledger import Ledger
from tests.sweeps import cost, measurement
from trainables.config import TrialConfig

ledger = Ledger(Path(sys.argv[1]))
for number in range(10_000):
    key, config = f"{number:064x}", TrialConfig(precision="16bit", rank=number + 1, alpha=8)
    def done(what): print(number, what, flush=True)
    ledger.add(key, config, params={}, origin="search"); done("queued 0")
    ledger.start(key); done("running 0")
    ledger.keep_cost(config.cost_cell, cost())
    for n in (1, 2, 3):
        ledger.record(key, measurement(n, 1.0)); done(f"running {n}")
    ledger.finish(key, "completed"); done("completed 3")
"""


def test_what_was_written_before_kill_9_is_there_and_at_most_one_write_more(tmp_path):
    path = tmp_path / "ledger.db"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=REPO, bufsize=1
    )
    said = [line for line, _ in zip(writer.stdout, range(150), strict=False)]
    writer.send_signal(signal.SIGKILL)
    said += list(writer.stdout)
    writer.wait()
    whole = [line.split() for line in said if line.endswith("\n")]
    last: dict[int, list[str]] = {int(number): [state, n] for number, state, n in whole}
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ledger = Ledger(path)
    found = {t.number: [t.state, str(len(t.history))] for t in ledger.trials()}
    ledger.close()
    newest = max(last)
    assert {n: found[n] for n in last if n < newest} == {n: last[n] for n in last if n < newest}
    steps = [["queued", "0"], ["running", "0"], *(["running", str(n)] for n in (1, 2, 3)), ["completed", "3"]]
    ahead = steps.index(found[newest]) - steps.index(last[newest]) + len(found) - len(last)
    assert ahead in (0, 1)


def test_an_operation_waits_for_a_write_that_another_connection_has_begun(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    other = sqlite3.connect(ledger.path, isolation_level=None, timeout=0, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = Timer(0.3, lambda: other.execute("COMMIT"))
    timer.start()
    ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
    timer.join()
    other.close()
    assert len(ledger.trials()) == 1
    ledger.close()


def test_similarity_of_a_trial_is_a_value_of_the_public_type(ledger):
    ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
    ledger.start(KEYS[0])
    ledger.finish(KEYS[0], "completed")
    ledger.set_similarity(KEYS[0], similarity(0.75))
    assert isinstance(ledger.entry(KEYS[0]).result.similarity, Comparison)
    with pytest.raises(LedgerError, match="no completed trial"):
        ledger.set_similarity(UNKNOWN, similarity())
