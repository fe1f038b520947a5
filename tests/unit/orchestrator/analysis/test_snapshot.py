"""A sweep at one moment: what its ledger held then, and what follows from it."""

from contextlib import closing

import pytest

from orchestrator.analysis.front import REFERENCE, front_of
from orchestrator.analysis.snapshot import SweepSnapshot, newest
from orchestrator.ledger import Ledger
from orchestrator.settings import sweep_folder
from orchestrator.settings.stored import save
from tests.support.sweeps import make, snapshot
from tests.support.swept import COUNTS, swept
from trainables.values.errors import ConfigError


def test_a_snapshot_holds_what_the_ledger_held_and_nothing_that_came_later(tmp_path):
    settings, written = swept(tmp_path)
    read = SweepSnapshot.read(settings.name, tmp_path)
    assert read == written
    assert newest(tmp_path) == settings.name
    with closing(Ledger(sweep_folder(settings.name, tmp_path) / "ledger.db")) as ledger:
        assert list(read.trials) == ledger.trials()
        assert read.workload == ledger.workload()
        assert (read.facts["data_counts"], read.reference) == (COUNTS, ledger.fact(REFERENCE))
        ledger.set_fact("data_counts", {})
        assert read.facts["data_counts"] == COUNTS
    assert read.front == front_of(read.trials, settings, read.reference)
    assert not read.is_open
    assert read.status().n_done == read.status().n_expected == len(read.trials)


def test_a_sweep_that_is_not_there_or_has_not_begun_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="there is no sweep under"):
        newest(tmp_path)
    with pytest.raises(ConfigError, match="no sweep 't'"):
        SweepSnapshot.read("t", tmp_path)
    settings = make()
    save(settings, sweep_folder("t", tmp_path))
    Ledger(sweep_folder("t", tmp_path) / "ledger.db").close()
    before = SweepSnapshot.read("t", tmp_path)
    assert before.caption == "Nothing was measured yet."
    with pytest.raises(ConfigError, match="sweep 't' has not started a trial yet"):
        before.begun()


def test_a_peak_is_predicted_for_a_gpu_and_a_known_shape_alone():
    def predicted(**values):
        sweep = snapshot(make(**values), [], {})
        return sweep.predicted_peak_mib(sweep.settings.config({"precision": "nf4", "rank": 4}))

    assert predicted(device="cuda", base_model="openai-community/gpt2-medium") > 100
    assert predicted(device="cuda", base_model="someone/unknown") is None
    assert predicted(device="cpu", base_model="openai-community/gpt2-medium") is None
