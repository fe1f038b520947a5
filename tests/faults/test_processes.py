"""Processes that die or are told to stop: the driver, a worker, a node, the cluster; and a second driver."""

import os
import signal
import time
from collections import Counter
from pathlib import Path
from random import Random

import psutil
import pytest

from tests.faults.pretend import noted
from tests.support.sweeps import REPO


def pid_of(place, key: str) -> int:
    """The process in which a trial began last."""
    return [event["pid"] for event in noted(place.log) if event["key"] == key][-1]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for is only listed still."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def steps_of(place, key: str) -> list[int]:
    """After which step a trial began, each time."""
    return [event["step"] for event in noted(place.log) if event["key"] == key]


def kill_worker(place, driver) -> str:
    """SIGKILL the worker of a trial whose second rung has a checkpoint; returns the trial's key."""
    place.until(place.at_second_rung, driver)
    key = place.at_second_rung()[0]
    os.kill(pid_of(place, key), signal.SIGKILL)
    place.n_running += 1
    return key


def interrupt(place, driver, n_signals: int) -> None:
    """Ctrl-C, so many times; the driver ends, and says how to go on."""
    place.n_running += sum(t.state == "running" for t in place.trials())
    for _ in range(n_signals):
        os.killpg(driver.pid, signal.SIGINT)
        time.sleep(1)
    ended = place.end(driver)
    assert ended.code == 130, ended.err
    assert "Traceback" not in ended.err
    assert "resume s" in ended.err
    assert "running" not in {t.state for t in place.trials()} or n_signals == 2  # it may come before all is tidied up


def kill_driver(place, random: Random) -> int:
    """Run the sweep, or go on with it, and SIGKILL the driver at a random moment; returns how it ended."""
    driver = place.begin()
    n_before, n_more = place.begun.total(), random.randint(0, 3)
    if not place.until(lambda: place.begun.total() >= n_before + n_more, driver):
        assert driver.returncode == 0, place.said
    time.sleep(random.uniform(0, 8 if n_more == 0 else 0.8))
    place.kill(driver)
    return driver.returncode


def test_one_sweep_loses_nothing_over_a_killed_worker_then_ctrl_c_then_a_killed_driver(place, survived):
    """The short form of the next three: each fault once, all on one sweep."""
    place.variables = {"PRETEND_TRIALS": "2", "PRETEND_SECONDS": "0.4"}  # as many as there are CPUs: none waits
    driver = place.begin()
    key = kill_worker(place, driver)
    assert place.until(lambda: place.begun[key] == 2, driver), place.said
    assert steps_of(place, key) == [0, 2]
    survived("worker SIGKILLed", lost=0, repeated=place.repeated)
    interrupt(place, driver, 1)
    survived("Ctrl-C once", lost=0)
    place.gate.touch()
    n_repeated = place.repeated
    assert kill_driver(place, Random(1)) == -signal.SIGKILL, "it had ended before"
    assert place.end(place.begin()).code == 0, place.said
    place.check()
    assert 0 not in steps_of(place, key)[1:], "a trial began anew"
    assert {t.state for t in place.trials()} == {"completed"}
    assert len(place.trials()) == 2
    survived("driver SIGKILLed at a random moment", lost=0, repeated=place.repeated - n_repeated)


@pytest.mark.slow
def test_a_driver_killed_at_random_moments_loses_and_repeats_nothing(place, survived):
    random, n_kills = Random(20), 20
    place.gate.touch()
    place.space = "pairs"
    place.variables = {"PRETEND_TRIALS": "20", "PRETEND_SECONDS": "0.2"}
    for _ in range(n_kills):
        kill_driver(place, random)
    assert place.end(place.begin()).code == 0, place.said
    place.check()
    survived("driver SIGKILLed at random moments", n_kills, lost=0, repeated=place.repeated)


@pytest.mark.slow
def test_a_killed_worker_costs_its_trial_no_more_than_a_rung(place, survived):
    place.variables = {"PRETEND_TRIALS": "3"}
    driver = place.begin()
    key = kill_worker(place, driver)
    place.gate.touch()
    assert place.end(driver).code == 0, place.said
    place.check()
    assert steps_of(place, key) == [0, 2]
    assert {t.state for t in place.trials()} == {"completed"}
    survived("worker SIGKILLed", lost=0, repeated=place.repeated)


@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_fails_its_trial_and_the_sweep_ends(place, survived):
    place.variables = {"PRETEND_TRIALS": "1"}
    driver = place.begin()
    place.until(place.at_second_rung, driver)
    (key,) = place.begun
    for n in range(3):
        place.until(lambda n=n: place.begun[key] > n, driver)
        os.kill(pid_of(place, key), signal.SIGKILL)
    place.n_running = 3
    ended = place.end(driver)
    (trial,) = place.trials()
    assert place.begun[key] == 3
    assert trial.state == "failed"
    assert "worker process was lost, the 3rd time" in trial.reason
    assert ended.code == 1
    assert trial.reason in ended.err
    place.check()
    survived("worker SIGKILLed three times over one trial", lost=0, repeated=place.repeated)


@pytest.mark.slow
def test_a_host_out_of_memory_is_not_taken_for_a_gpus(place, survived):
    """Ray kills every worker here: it is told that 1 % of the host's memory is all there is."""
    place.variables = {"PRETEND_TRIALS": "1", "RAY_memory_usage_threshold": "0.01"}
    ended = place.end(place.begin())
    (trial,) = place.trials()
    assert (trial.state, ended.code) == ("failed", 1), ended.err
    assert "the host (not the GPU) ran out of memory, the 3rd time" in trial.reason
    survived("host out of memory, worker killed by Ray", lost=0, repeated=place.repeated)


@pytest.mark.slow
def test_a_sweep_on_which_every_trial_fails_stops_and_goes_on_when_that_is_mended(place, survived):
    broken = place.folder / "broken"
    broken.touch()
    place.gate.touch()
    place.variables = {"PRETEND_TRIALS": "9", "PRETEND_BROKEN": str(broken)}
    ended = place.end(place.begin())
    assert ended.code == 1
    assert "trials failed; the last because" in ended.err
    assert "no driver for this GPU" in ended.err
    assert "resume s" in ended.err
    n_failed = Counter(t.state for t in place.trials())["failed"]
    assert 5 <= n_failed <= 6, "one more may have been at work"
    broken.unlink()
    assert place.end(place.begin()).code == 0, place.said
    assert Counter(t.state for t in place.trials()) == {"failed": n_failed, "completed": 9 - n_failed}
    place.check()
    survived("every trial fails, until that is mended", lost=0, repeated=place.repeated)


@pytest.mark.slow
@pytest.mark.parametrize("n_signals", [1, 2])
def test_ctrl_c_ends_the_sweep_and_resume_goes_on(n_signals, place, survived):
    place.variables = {"PRETEND_TRIALS": "3"}
    driver = place.begin()
    place.until(place.at_second_rung, driver)
    interrupt(place, driver, n_signals)
    place.gate.touch()
    assert place.end(place.begin()).code == 0, place.said
    place.check()
    survived(f"Ctrl-C {'once' if n_signals == 1 else 'twice'}", lost=0, repeated=place.repeated)


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_also_where_ray_s_head_hangs(place, survived):
    """Ray's calls wait for such a head without end, and so does what Ray Tune does last."""
    place.variables = {"PRETEND_TRIALS": "2"}
    driver = place.begin()
    place.until(place.at_second_rung, driver)
    (head,) = (p for p in psutil.Process(driver.pid).children(recursive=True) if p.name() == "gcs_server")
    head.suspend()
    place.n_running = sum(t.state == "running" for t in place.trials())
    os.killpg(driver.pid, signal.SIGINT)
    began = time.monotonic()
    ended = place.end(driver)
    assert ended.code == 130, ended.err
    assert time.monotonic() - began < 60
    assert "trials were not given up in 30 s: killed" in ended.err
    place.gate.touch()
    assert place.end(place.begin()).code == 0, place.said
    place.check()
    survived("Ctrl-C once, over a head that hangs", lost=0, repeated=place.repeated)


@pytest.mark.slow
def test_of_two_drivers_of_one_name_the_second_is_refused(place, survived):
    place.variables = {"PRETEND_TRIALS": "2"}
    driver = place.begin()
    place.until(place.at_second_rung, driver)
    for verb in ("run", "resume"):
        rival = place.end(place.start(verb), is_owner=False)
        assert rival.code == 2
        assert f"process {driver.pid}" in rival.err
    place.gate.touch()
    assert place.end(driver).code == 0
    place.check()
    survived("two sweeps, one name", 2, lost=0, repeated=place.repeated)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_a_sweep_whose_ray_head_dies_ends_with_an_error_and_goes_on_after_a_resume(part, place, survived):
    place.variables = {"PRETEND_TRIALS": "2"}
    driver = place.begin()
    place.until(place.at_second_rung, driver)
    place.n_running = sum(t.state == "running" for t in place.trials())
    (head,) = (p for p in psutil.Process(driver.pid).children(recursive=True) if p.name() == part)
    head.kill()
    died = time.monotonic()
    ended = place.end(driver)
    print(f"{part} killed: ended after {time.monotonic() - died:.0f} s")
    assert ended.code == 1, place.said
    assert "the Ray cluster was lost" in ended.err
    assert "resume s" in ended.err
    place.gate.touch()
    assert place.end(place.begin()).code == 0, place.said
    place.check()
    survived(f"Ray's {part} SIGKILLed", lost=0, repeated=place.repeated)


@pytest.mark.slow
def test_a_node_that_is_removed_in_the_middle_of_a_trial_costs_it_no_more_than_a_rung(place, survived, monkeypatch):
    from tests.support.clusters import cluster

    for name, value in {"PYTHONPATH": REPO, "PRETEND_LOG": place.log, "PRETEND_GATE": place.gate}.items():
        monkeypatch.setenv(name, str(value))  # what the nodes are started with, their workers have
    place.variables = {"PRETEND_TRIALS": "4"}
    with cluster() as nodes:
        by_id = {node.node_id: node for node in (nodes.add_node(num_cpus=1) for _ in range(2))}
        place.address = nodes.address
        driver = place.begin()
        place.until(place.at_second_rung, driver)
        key = place.at_second_rung()[0]
        (where,) = {event["node"] for event in noted(place.log) if event["key"] == key}
        worker = pid_of(place, key)
        nodes.remove_node(by_id[where], allow_graceful=False)
        assert place.until(lambda: is_gone(worker), driver), "its worker outlived its node"
        place.n_running = 1
        place.gate.touch()
        assert place.end(driver).code == 0, place.said
    place.check()
    again = [event for event in noted(place.log) if event["key"] == key]
    assert [event["node"] == where for event in again] == [True, False]
    assert [event["step"] for event in again] == [0, 2]
    assert {t.state for t in place.trials()} == {"completed"}
    survived("a node removed in the middle of a trial", lost=0, repeated=place.repeated)


@pytest.mark.slow
def test_a_clock_set_back_an_hour_in_the_middle_of_a_trial_changes_nothing_else(place, survived, tmp_path):
    """Of every process of the sweep; time left and durations may be wrong, trials and their number may not."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("there is no libfaketime (Debian's package libfaketime)")
    clock = tmp_path.parent / f"{tmp_path.name}.clock"
    clock.write_text("+0\n")
    place.variables = {
        "PRETEND_TRIALS": "3",
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
    }
    driver = place.begin()
    assert place.until(place.at_second_rung, driver), place.said
    clock.write_text("-1h\n")
    place.gate.touch()
    assert place.end(driver).code == 0, place.said
    place.variables = {}
    place.check()
    trials = place.trials()
    assert {t.state for t in trials} == {"completed"}
    assert any(t.ended_at < t.started_at for t in trials), "no trial saw the clock go back"
    survived("clock set back an hour", lost=0, repeated=place.repeated)
