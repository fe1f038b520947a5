"""The ledger against a plain dictionary: what is allowed, what survives, what is refused."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import mkdtemp
from threading import Timer
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.ledger import TRANSITIONS, Ledger, LedgerError
from orchestrator.ledger.schema import SCHEMA_VERSION
from tests.support.sweeps import REPO, WORKLOAD, cost, evaluated_on_test, measurement, similarity
from trainables.values.config import FINAL_STATES, State, TrialConfig, canonical_json
from trainables.values.errors import ConfigError, LedgerDamaged
from trainables.values.findings import Comparison
from trainables.values.results import Cost
from trainables.values.spans import Span

CONFIGS = [TrialConfig(precision=p, rank=r, alpha=8) for r in (1, 2) for p in ("nf4", "16bit")]
KEYS = [f"{i}" * 64 for i in range(len(CONFIGS))]
UNKNOWN = "f" * 64
ENDS = {"queued": {"refused"}, "running": FINAL_STATES - {"refused"}}
"""How a trial may end, said again here: a model that took the ledger's own table would agree with any."""
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

    @rule(i=st.integers(0, len(KEYS) - 1), origin=st.sampled_from(["search", "baseline"]))
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
        allowed = new in ENDS.get(self.state(key), ()) and (new == "completed" or bool(reason))
        if self.attempt(allowed, self.ledger.finish, key, new, reason=reason, adapter_sha256="a", train_seconds=1.5):
            self.trials[key] |= {"state": new, "reason": reason}

    @rule(key=ANY_KEY)
    def requeue(self, key: str) -> None:
        if self.attempt(self.state(key) in ("running", "pruned"), self.ledger.requeue, key):
            self.trials[key] |= {"state": "queued", "reason": None}

    @rule(key=ANY_KEY, cosine=st.floats(-1, 1))
    def set_similarity(self, key: str, cosine: float) -> None:
        if self.attempt(self.state(key) == "completed", self.ledger.set_similarity, key, similarity(cosine)):
            self.trials[key]["similarity"] = similarity(cosine)

    @rule(i=st.integers(0, len(CONFIGS) - 1), mib=st.floats(1, 9))
    def keep_cost(self, i: int, mib: float) -> None:
        kept = self.ledger.keep_cost(CONFIGS[i].cost_key, cost(peak_memory_mib=mib))
        assert kept == self.costs.setdefault(CONFIGS[i].cost_key, cost(peak_memory_mib=mib))

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
            self.trials[key] |= {"state": "queued", "reason": None}

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

    @rule(
        key=ANY_KEY,
        i=st.integers(0, len(KEYS) - 1),
        what=st.sampled_from(["add", "start", "record", "finish", "requeue"]),
        n_instructions=st.integers(1, 400),
    )
    def break_off(self, key: str, i: int, what: str, n_instructions: int) -> None:
        """An operation ends in its middle, after so many of SQLite's instructions: it counts whole, or not at all."""
        changes = {
            "add": (self.ledger.add, (KEYS[i], CONFIGS[i]), {"params": {"rank": CONFIGS[i].rank}, "origin": "search"}),
            "start": (self.ledger.start, (key,), {}),
            "record": (self.ledger.record, (key, measurement(25, 1.0)), {}),
            "finish": (self.ledger.finish, (key, "pruned"), {"reason": "too hot"}),
            "requeue": (self.ledger.requeue, (key,), {}),
        }
        operation, arguments, named = changes[what]
        before = self.ledger.entries()
        answers = iter([1])  # only once: the transaction may still be rolled back
        self.ledger._db.set_progress_handler(lambda: next(answers, 0), n_instructions)
        broken = False
        try:
            operation(*arguments, **named)
        except (sqlite3.OperationalError, LedgerError):
            broken = True
        finally:
            self.ledger._db.set_progress_handler(None, 0)
        if broken and self.ledger.entries() == before:
            return  # an interruption after the commit's last write has changed all the same
        if what == "add":
            fresh = {"state": "queued", "origin": "search", "history": {}, "number": len(self.trials), "reason": None}
            params = {"rank": CONFIGS[i].rank}
            self.trials[KEYS[i]] = fresh | {"params": params, "config": CONFIGS[i], "similarity": None}
        elif what == "record":
            self.trials[key]["history"][25] = 1.0
        elif what == "requeue":
            self.trials[key] |= {"state": "queued", "reason": None}
        else:
            state, reason = ("running", self.trials[key]["reason"]) if what == "start" else ("pruned", "too hot")
            self.trials[key] |= {"state": state, "reason": reason}

    @invariant()
    def rows_agree(self) -> None:
        entries = self.ledger.entries()
        assert [entry.result.number for entry in entries] == list(range(len(self.trials)))
        assert {entry.result.key for entry in entries} == set(self.trials)
        for entry in entries:
            result, model = entry.result, self.trials[entry.result.key]
            known = self.costs.get(result.config.cost_key)
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
    assert {state: TRANSITIONS[state] & FINAL_STATES for state in ENDS} == ENDS


def test_a_refused_operation_says_which_trial_and_what_it_did(ledger):
    ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
    with pytest.raises(LedgerError, match="000000000000 is in the ledger already"):
        ledger.add(KEYS[0], CONFIGS[1], params={}, origin="baseline")
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
    ledger.keep_cost(CONFIGS[0].cost_key, cost(peak_memory_mib=7.0))
    ledger.record(KEYS[0], measurement(25, 3.0))
    ledger.record(KEYS[0], measurement(25, 2.5))  # reported again after a retry
    ledger.finish(
        KEYS[0], "completed", environment={"device": "CPU"}, adapter_sha256="ab", train_seconds=2.5, reason=None
    )
    entry = ledger.entry(KEYS[0])
    assert entry.result.history == (measurement(25, 2.5),)
    assert entry.result.cost == cost(peak_memory_mib=7.0)
    assert (entry.adapter_sha256, entry.result.train_seconds) == ("ab", 2.5)
    assert entry.result.environment == {"device": "CPU"}
    assert entry.params == {"rank": 1, "targets": "attn.c_attn"}
    assert entry.result.started_at <= entry.measured_at[0] <= entry.result.ended_at


def test_who_reads_the_file_holds_up_no_write(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM sweep").fetchall()
        ledger.set_fact("id", "5")
        assert reader.execute("SELECT * FROM sweep").fetchall() == [], "it sees what was there when it began"
    ledger.close()


def test_a_ledgers_version_is_another_after_each_write_of_others_and_the_same_until_then(tmp_path):
    with closing(Ledger(tmp_path / "ledger.db")) as driver, closing(Ledger(tmp_path / "ledger.db")) as display:
        seen = [display.version, display.version]
        driver.add(KEYS[0], CONFIGS[0], params={}, origin="search")
        seen += [display.version, display.version]
        driver.start(KEYS[0])
        seen.append(display.version)
    assert seen[0] == seen[1] != seen[2] == seen[3] != seen[4]


def test_a_closed_ledger_lies_in_the_one_file_though_another_thread_has_it_open(tmp_path):
    with closing(Ledger(tmp_path / "ledger.db")) as of_driver, closing(Ledger(tmp_path / "ledger.db")) as of_display:
        of_driver.add(KEYS[0], CONFIGS[0], params={}, origin="search")
        assert len(of_display.trials()) == 1
        of_driver.close()
        shutil.copy(of_driver.path, tmp_path / "alone.db")
        with closing(Ledger(tmp_path / "alone.db", read_only=True)) as alone:
            assert alone.trials() == of_display.trials()


def test_a_value_of_every_kind_has_the_checksum_of_what_is_stored(ledger):
    """What SQLite stores is not always what it was given: -0.0 comes back as 0.0, an integer as a real number."""
    ledger.add(KEYS[0], CONFIGS[0], params={"text": "ü \u2028 \U0001f600"}, origin="search")
    ledger.start(KEYS[0])
    for step, loss in enumerate((-0.0, 0.0, 7, 1e-320, 1e308, float("inf"), 2**53 + 1)):
        ledger.record(KEYS[0], measurement(step, loss))
    ledger.finish(KEYS[0], "failed", reason="a\x00b", train_seconds=-0.0)
    for read_only in (True, False):
        Ledger(ledger.path, read_only=read_only).close()


def test_a_damaged_row_is_not_given_a_new_checksum(ledger):
    for i in (0, 1):
        ledger.add(KEYS[i], CONFIGS[i], params={}, origin="search")
    with closing(sqlite3.connect(ledger.path)) as other:  # as a disk would do it under a running sweep
        other.execute("UPDATE trials SET number = 7 WHERE number = 0")
        other.commit()
    with pytest.raises(LedgerDamaged, match="a row of trials is not as it was written"):
        ledger.start(KEYS[0])
    ledger.start(KEYS[1])
    with pytest.raises(LedgerDamaged, match="trial 7 is not as it was written"):
        Ledger(ledger.path, read_only=True)


def test_whoever_opens_a_ledger_while_it_is_written_sees_no_damage(tmp_path):
    said = tmp_path / "said"  # a pipe that nobody empties would hold the writer up
    with said.open("w") as out:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "ledger.db")], stdout=out, cwd=REPO)
    while not said.stat().st_size:
        assert writer.poll() is None
        time.sleep(0.01)
    counts = []
    for i in range(40):
        with closing(Ledger(tmp_path / "ledger.db", read_only=bool(i % 4))) as reader:
            counts.append(len(reader.trials()))
    writer.kill()
    writer.wait()
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


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
def test_a_damaged_ledger_is_an_error_that_names_the_file(damage, tmp_path):
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
    ledger.close()
    DAMAGE[damage](path)
    for read_only in (False, True):
        with pytest.raises(LedgerDamaged, match=r"ledger\.db is no readable ledger.*start under a new NAME"):
            Ledger(path, read_only=read_only)


def test_a_ledger_of_another_version_is_refused(tmp_path):
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ConfigError, match=f"version {SCHEMA_VERSION + 1}, this program reads {SCHEMA_VERSION}"):
        Ledger(path)


VERSION_1 = """
CREATE TABLE sweep (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE trials (
    key TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,
    state TEXT NOT NULL,
    origin TEXT NOT NULL,
    reused INTEGER NOT NULL DEFAULT 0,
    config TEXT NOT NULL,
    params TEXT NOT NULL,
    cost_cell TEXT NOT NULL,
    environment TEXT NOT NULL DEFAULT '{}',
    similarity TEXT,
    reason TEXT,
    adapter_sha256 TEXT,
    train_seconds REAL,
    started_at REAL,
    ended_at REAL
) WITHOUT ROWID;
CREATE INDEX trials_by_state ON trials (state);
CREATE TABLE measurements (
    key TEXT NOT NULL REFERENCES trials (key),
    step INTEGER NOT NULL,
    at REAL NOT NULL,
    train_loss_nats REAL NOT NULL,
    eval_loss_nats REAL NOT NULL,
    PRIMARY KEY (key, step)
) WITHOUT ROWID;
CREATE TABLE cost_cells (cell TEXT PRIMARY KEY, cost TEXT NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
"""The tables as they were, with similarities that were single figures and costs without a breakdown."""
OLD_SIMILARITY = (
    '{"centered_cosine":0.9,"embedding_cosine":0.99,"n_decoded_rows":64,"n_rows":64,"token_match_rate":0.7}'
)


@pytest.fixture
def version_1(tmp_path) -> Path:
    """A ledger of version 1 with one pair of completed trials and one that was running."""
    path = tmp_path / "ledger.db"
    db = sqlite3.connect(path)
    db.executescript(VERSION_1)
    old_cost = {name: value for name, value in asdict(cost(peak_memory_mib=7.0)).items() if name != "breakdown"}
    db.execute("INSERT INTO sweep VALUES ('id', '\"abc\"')")
    for number, (config, key) in enumerate(zip(CONFIGS[:3], KEYS, strict=False)):
        db.execute(
            "INSERT INTO trials "
            "(key, number, state, origin, config, params, cost_cell, similarity, adapter_sha256, ended_at) "
            "VALUES (?, ?, ?, 'twin', ?, '{\"rank\":1}', ?, ?, ?, ?)",
            (
                key,
                number,
                "completed" if number < 2 else "running",
                canonical_json(config.to_dict()),
                config.cost_key,
                OLD_SIMILARITY if number == 0 else None,
                "ab" if number < 2 else None,
                5.0 if number < 2 else None,
            ),
        )
        db.execute("INSERT OR IGNORE INTO cost_cells VALUES (?, ?)", (config.cost_key, canonical_json(old_cost)))
        db.execute("INSERT INTO measurements VALUES (?, 25, 4.0, 3.0, 2.5)", (key,))
    db.commit()
    db.close()
    return path


def test_a_ledger_of_version_1_is_taken_over_with_all_but_its_similarities(version_1):
    """A similarity without intervals and seed replicates cannot be evaluated: it is measured again."""
    with closing(sqlite3.connect(version_1)) as db:
        before = list(db.iterdump())
    ledger = Ledger(version_1)
    results = [entry.result for entry in ledger.entries()]
    assert [(t.key, t.number, t.config, t.state) for t in results] == [
        (key, number, config, state)
        for key, number, config, state in zip(
            KEYS, range(3), CONFIGS, ("completed", "completed", "running"), strict=False
        )
    ]
    assert [t.similarity for t in results] == [t.test_evaluation for t in results] == [None] * 3
    assert all(t.cost == cost(peak_memory_mib=7.0) for t in results)
    assert all([m.eval_loss_nats for m in t.history] == [2.5] for t in results)
    assert [entry.adapter_sha256 for entry in ledger.entries()] == ["ab", "ab", None]
    assert ledger.fact("id") == "abc"
    ledger.close()
    with closing(sqlite3.connect(f"{version_1}.v1")) as as_it_was:
        assert list(as_it_was.iterdump()) == before
    with sqlite3.connect(version_1) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,) == (4,)


RECORDED = REPO / "tests" / "support" / "ledger_v2.db"


def rows_of(path, table: str) -> list[dict]:
    """Of a table of any version, without checksums."""
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return [{k: v for k, v in dict(row).items() if k != "checksum"} for row in db.execute(f"SELECT * FROM {table}")]


def without_curve(row: dict) -> dict:
    """A measurement as versions before 4 kept it."""
    assert row.pop("train_curve", "[]") == "[]"
    return row


def in_todays_words(row: dict) -> dict:
    """A trial of version 2 by hand."""
    words = {"twin": "baseline", "reseed": "baseline replicate", "search": "search"}
    row = row | {"origin": words[row["origin"]], "cost_key": row["cost_cell"], "test_evaluation": row["judgement"]}
    for name in ("similarity", "test_evaluation"):
        text = (row[name] or "null").replace('"reseeded"', '"replicates"').replace('"felt"', '"breakdown"')
        row[name] = json.loads(text)
    return {name: value for name, value in row.items() if name not in ("reused", "cost_cell", "judgement")}


def test_a_ledger_of_version_2_is_taken_over_whole_and_in_todays_words(tmp_path):
    path = tmp_path / "ledger.db"
    shutil.copy(RECORDED, path)
    older = {"measurements": "measurements", "costs": "cost_cells"}
    before = {table: [tuple(row.values()) for row in rows_of(path, name)] for table, name in older.items()}
    trials = [in_todays_words(row) for row in rows_of(path, "trials")]
    with closing(Ledger(path, read_only=True)) as copy:
        read = copy.entries()
    assert path.read_bytes() == RECORDED.read_bytes()
    with closing(Ledger(path)) as ledger:
        assert ledger.entries() == read
        assert len(read) == 12
        assert ledger.fact("data_counts")["validation"] == 128
    for table in older:
        assert [tuple(without_curve(row).values()) for row in rows_of(path, table)] == before[table]
    for was, row in zip(trials, rows_of(path, "trials"), strict=True):
        assert {
            n: json.loads(v or "null") if n in ("similarity", "test_evaluation") else v for n, v in row.items()
        } == was
    assert rows_of(f"{path}.v2", "trials") == rows_of(RECORDED, "trials")


VERSION_3 = REPO / "mlflow_runs" / "recorded" / "smollm2-rates" / "ledger.db"


def test_a_ledger_of_version_3_is_taken_over_whole(tmp_path):
    path = tmp_path / "ledger.db"
    shutil.copy(VERSION_3, path)
    with closing(Ledger(path, read_only=True)) as copy:
        read = copy.entries()
    assert path.read_bytes() == VERSION_3.read_bytes()
    with closing(Ledger(path)) as ledger:
        assert ledger.entries() == read
        assert all(m.train_curve == () for entry in read for m in entry.result.history)
    for table in ("sweep", "trials", "measurements", "costs"):
        assert [without_curve(row) for row in rows_of(path, table)] == rows_of(VERSION_3, table) != []
    assert rows_of(f"{path}.v3", "digests") == rows_of(VERSION_3, "digests")


def test_damage_of_a_ledger_of_version_3_is_seen_and_not_taken_over(tmp_path):
    path = tmp_path / "ledger.db"
    shutil.copy(VERSION_3, path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE measurements SET eval_loss_nats = 1 WHERE step = (SELECT max(step) FROM measurements)")
        db.commit()
    for read_only in (True, False):
        with pytest.raises(LedgerDamaged, match="is not as it was written"):
            Ledger(path, read_only=read_only)


def test_a_training_curve_is_read_back_as_it_was_measured(tmp_path):
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
        ledger.keep_cost(CONFIGS[0].cost_key, cost())
        ledger.start(KEYS[0])
        told = replace(measurement(25, 3.0), train_curve=((10, 4.25), (20, 3.5), (25, 3.0)))
        assert ledger.record(KEYS[0], told).result.history == (told,)


def test_what_processes_did_is_read_back_in_the_order_in_which_it_began(ledger):
    spans = [
        Span(process=process, phase=phase, began=began, ended=began + 2.0)
        for process, phase, began in (("driver", "inputs", 1.0), ("worker 0", "base", 3.0), ("worker 1", "base", 3.5))
    ]
    ledger.keep_spans(spans[1:])
    ledger.keep_spans(spans[:2])  # once more, as after a report that was lost
    assert ledger.spans() == spans


def test_a_ledger_that_says_an_older_version_than_its_tables_is_damaged(ledger):
    for version in (1, 2, 3):
        with closing(sqlite3.connect(ledger.path)) as db:
            db.execute(f"PRAGMA user_version = {version}")
        for read_only in (True, False):
            with pytest.raises(LedgerDamaged, match=f"its version is {version}, its tables are of a later one"):
                Ledger(ledger.path, read_only=read_only)


def test_a_ledger_of_a_version_between_releases_is_said_to_be_one(ledger):
    with closing(sqlite3.connect(ledger.path)) as db:
        db.execute("ALTER TABLE costs RENAME TO cost_cells")
    with pytest.raises(LedgerDamaged, match="its tables are those of a version between releases"):
        Ledger(ledger.path, read_only=True)


def columns_of(path) -> set[tuple]:
    """Table, name, type, whether it must be given, and default of each column."""
    with sqlite3.connect(path) as db:
        return set(
            db.execute(
                "SELECT m.name, c.name, c.type, c.[notnull], c.dflt_value, c.pk "
                "FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'"
            )
        )


def test_a_ledger_that_was_taken_over_is_one_of_its_own_version(version_1, tmp_path):
    """The same columns as a new one, and what this version writes is read back."""
    ledger = Ledger(version_1)
    ledger.set_similarity(KEYS[0], similarity())
    ledger.set_test_evaluation(KEYS[0], evaluated_on_test(similarity()))
    assert ledger.requeue_running() == 1
    ledger.close()
    Ledger(tmp_path / "new.db").close()
    assert columns_of(version_1) == columns_of(tmp_path / "new.db")
    again = Ledger(version_1)
    assert again.entry(KEYS[0]).result.similarity == similarity()
    assert again.entry(KEYS[0]).result.test_evaluation == evaluated_on_test(similarity())
    assert again.entry(KEYS[2]).result.state == "queued"
    again.close()


def test_a_rung_that_is_reported_again_replaces_the_first_and_a_requeued_trial_keeps_its_rungs(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
    ledger.keep_cost(CONFIGS[0].cost_key, cost())
    ledger.start(KEYS[0])
    ledger.record(KEYS[0], measurement(25, 3.0))
    ledger.requeue(KEYS[0])
    assert [m.eval_loss_nats for m in ledger.entry(KEYS[0]).result.history] == [3.0]
    ledger.start(KEYS[0])
    ledger.record(KEYS[0], measurement(25, 2.0))
    assert [m.eval_loss_nats for m in ledger.entry(KEYS[0]).result.history] == [2.0]
    ledger.close()


def test_reading_leaves_a_ledger_of_any_version_as_it_is(version_1, tmp_path):
    taken_over = tmp_path / "copy" / "ledger.db"
    taken_over.parent.mkdir()
    shutil.copy(version_1, taken_over)
    Ledger(taken_over).close()
    found = []
    for path in (version_1, taken_over):
        before = path.read_bytes()
        ledger = Ledger(path, read_only=True)
        found.append(ledger.entries())
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            ledger.requeue_running()
        ledger.close()
        assert path.read_bytes() == before
        assert {p.name for p in path.parent.glob("ledger.db*")} <= {path.name, "ledger.db.v1"}
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_reading_sees_all_that_a_running_sweep_has_written_until_then(ledger):
    ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
    reader = Ledger(ledger.path, read_only=True)
    ledger.add(KEYS[1], CONFIGS[1], params={}, origin="search")
    assert [trial.key for trial in reader.trials()] == [KEYS[0]]
    reader.close()


def test_reading_a_ledger_that_is_not_there_makes_none(tmp_path):
    with pytest.raises(ConfigError, match="there is no ledger"):
        Ledger(tmp_path / "ledger.db", read_only=True)
    assert not list(tmp_path.iterdir())


def test_an_empty_file_left_by_a_crash_at_birth_becomes_a_ledger(tmp_path):
    (tmp_path / "ledger.db").touch()
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger.trials() == []
    ledger.close()


WRITER = """
import sys
from pathlib import Path
from orchestrator.ledger import Ledger
from tests.support.sweeps import cost, measurement
from trainables.values.config import TrialConfig

ledger = Ledger(Path(sys.argv[1]))
for number in range(10_000):
    key, config = f"{number:064x}", TrialConfig(precision="16bit", rank=number + 1, alpha=8)
    def done(what): print(number, what, flush=True)
    ledger.add(key, config, params={}, origin="search"); done("queued 0")
    ledger.start(key); done("running 0")
    ledger.keep_cost(config.cost_key, cost())
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


def test_changes_made_together_are_seen_by_others_at_once_or_never(ledger):
    with closing(Ledger(ledger.path)) as other:
        with ledger.together():
            ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
            ledger.start(KEYS[0])
            assert ledger.entry(KEYS[0]).result.state == "running"
            assert other.entry(KEYS[0]) is None
        assert other.entry(KEYS[0]).result.state == "running"
        with suppress(KeyboardInterrupt), ledger.together():
            ledger.finish(KEYS[0], "completed")
            raise KeyboardInterrupt
        assert other.entry(KEYS[0]).result.state == ledger.entry(KEYS[0]).result.state == "running"


def test_a_change_that_is_refused_takes_none_of_the_others_made_together_with_it(ledger):
    with ledger.together():
        ledger.add(KEYS[0], CONFIGS[0], params={}, origin="search")
        with suppress(LedgerError), ledger.together():
            ledger.add(KEYS[1], CONFIGS[1], params={}, origin="search")
            ledger.start(UNKNOWN)
        ledger.start(KEYS[0])
    assert ledger.entry(KEYS[0]).result.state == "running"
    assert ledger.entry(KEYS[1]) is None
