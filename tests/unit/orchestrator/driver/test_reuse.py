"""What other sweeps have run: taken over where it is the same trial on the same kind of device, learned from else."""

import shutil
from dataclasses import asdict, replace

import pytest

from orchestrator.analysis.front import is_reused
from orchestrator.driver import warm_start
from orchestrator.driver.driver import Driver
from orchestrator.driver.reuse import REUSED, cached_trials, known_line
from orchestrator.objectives import DEFAULT
from orchestrator.settings import stored, sweep_folder
from tests.support import sweeps
from tests.support.sweeps import GRID, TPE, WORKLOAD, Desk, breaks, completes, cost, space
from trainables.cost.device import device_name, versions
from trainables.values.errors import ConfigError

HERE = device_name("cpu")
VERSIONS = versions()


def make(*base, **values):
    """As the command makes settings on a CPU: without time among the objectives."""
    return sweeps.make(*base, **{"objectives": ("peak_memory_mib", "eval_loss_nats"), **values})


DEVICES = {HERE}


def on_this_cpu(task, *, device=HERE, loss=2.0, **other_versions):
    for report in completes(task, loss=loss, costs=cost(device=device)):
        yield replace(report, environment={"device": device, **VERSIONS, **other_versions} if report.is_last else {})


def at(task, device):
    return on_this_cpu(task, device=device)


def sweep(root, asked, outcome=on_this_cpu, *, finish=True, workload=WORKLOAD) -> Desk:
    """A sweep under `root`, run as orchestrator.driver.sweep runs it."""
    folder = sweep_folder(asked.name, root)
    stored.save(asked, folder)
    desk = Desk(folder, asked, 1)
    desk.ledger.set_fact("workload", asdict(workload))
    desk.driver = Driver(
        asked,
        workload,
        desk.ledger,
        n_slots=1,
        cached=cached_trials(asked, workload, root, DEVICES),
        learned=warm_start.entries(asked, workload, root, DEVICES),
    )
    if finish:
        desk.finish(outcome)
    return desk


def test_a_sweep_that_another_has_run_whole_runs_no_trial_and_comes_to_the_same(tmp_path):
    first = sweep(tmp_path, make(GRID, name="first"))
    second = sweep(tmp_path, make(GRID, name="second"))
    assert {task.kind for task in second.all_asked} == {"evaluate"}
    assert second.states == first.states
    by_key = {t.key: t for t in first.ledger.trials()}
    for trial in second.ledger.trials():
        theirs = by_key[trial.key]
        assert is_reused(trial)
        assert trial.reason == "reused: sweep first ran it"
        assert trial.train_seconds is None
        assert (trial.history, trial.cost, trial.similarity) == (theirs.history, theirs.cost, theirs.similarity)
        assert trial.origin == theirs.origin
    assert second.ledger.fact(REUSED) == dict.fromkeys(by_key, "first")
    assert all((second.folder / "adapters" / key).is_dir() for key in by_key)


def trained(desk: Desk) -> set[str]:
    return {task.key for task in desk.all_asked if task.kind == "train"}


def test_a_seed_replicate_is_measured_at_its_end_alone_and_so_is_no_known_trial_of_a_search_that_stops_some(tmp_path):
    """Its curve, which the rule asks for, would be missing; a result that has one goes before it."""
    ruled = GRID | {"early_terminate": {"type": "hypervolume"}}
    first = sweep(tmp_path, make(ruled, name="first", finalist_seeds=2))
    replicated = {t.key: t for t in first.ledger.trials() if not t.is_of_search}
    assert {t.config.seed for t in replicated.values()} >= {1}
    assert {tuple(m.step for m in t.history) for t in replicated.values()} == {(8,)}
    assert {tuple(m.step for m in t.history) for t in first.candidates if t.state == "completed"} == {(1, 2, 4, 8)}
    asked = make(ruled, name="other", seed=1)
    cached = cached_trials(asked, WORKLOAD, tmp_path, DEVICES)
    assert cached.keys() & replicated.keys()
    assert known_line(asked, WORKLOAD, cached, set()) is None
    other = sweep(tmp_path, asked)
    searched = {t.key for t in other.ledger.trials() if t.is_of_search}
    assert trained(other) >= searched & replicated.keys() != set()
    third = make(ruled, name="third", seed=1)
    cached = cached_trials(third, WORKLOAD, tmp_path, DEVICES)
    n_known = len([t for t in other.candidates if t.state == "completed"])
    assert known_line(third, WORKLOAD, cached, set()).startswith(f"{n_known} of ")
    assert not trained(sweep(tmp_path, third)) & searched & replicated.keys()
    assert not trained(sweep(tmp_path, make(ruled, name="again", finalist_seeds=2))) & replicated.keys()


def test_where_nothing_is_stopped_a_seed_replicate_is_a_known_trial_of_a_search(tmp_path):
    sweep(tmp_path, make(GRID, name="first", finalist_seeds=2))
    asked = make(GRID, name="other", seed=1)
    line = known_line(asked, WORKLOAD, cached_trials(asked, WORKLOAD, tmp_path, DEVICES), set())
    assert line.startswith("6 of 6 trials are known from sweep first")
    assert not [task for task in sweep(tmp_path, asked).asked if task.kind == "train"]


def test_without_reuse_all_is_run_again(tmp_path):
    first = sweep(tmp_path, make(GRID, name="first"))
    again = sweep(tmp_path, make(GRID, name="again", reuse=False))
    assert [task.key for task in again.asked] == [task.key for task in first.asked]


def test_only_what_is_known_is_taken_over_and_the_rest_is_run(tmp_path):
    small = GRID | {"parameters": {"rank": {"values": [1]}, "precision": {"values": ["nf4", "16bit"]}}}
    sweep(tmp_path, make(small, name="small"))
    whole = sweep(tmp_path, make(GRID, name="whole"))
    assert {task.config.rank for task in whole.asked} == {2, 4}
    assert set(whole.states.values()) == {"completed"}


def test_a_known_4_bit_trial_whose_baseline_is_gone_still_gets_one(tmp_path):
    nf4 = GRID | {"parameters": {"rank": {"values": [1]}}, "fixed": GRID["fixed"] | {"precision": "nf4"}}
    first = sweep(tmp_path, make(nf4, name="first"))
    baseline = next(t for t in first.candidates if t.origin == "baseline")
    for file in (first.folder / "adapters" / baseline.key).iterdir():
        file.unlink()
    second = sweep(tmp_path, make(nf4, name="second"))
    assert second.asked[0].config.precision == "16bit"
    assert {(t.origin, t.state, is_reused(t)) for t in second.candidates} == {
        ("search", "completed", True),
        ("baseline", "completed", False),
    }
    assert second.driver.finished


def test_another_device_is_no_known_trial(tmp_path):
    sweep(tmp_path, make(GRID, name="far"), lambda task: on_this_cpu(task, device="NVIDIA H200"))
    here = sweep(tmp_path, make(GRID, name="here"))
    assert not any(is_reused(t) for t in here.ledger.trials())


DECISIVE = ("torch", "transformers", "peft", "bitsandbytes")


ONE = GRID | {"parameters": {"rank": {"values": [1]}, "precision": {"values": ["16bit"]}}}


def reused(root, **values) -> set[str]:
    """Sweeps whose results a new one would take over."""
    found = cached_trials(make(ONE, **{"name": "here", **values}), WORKLOAD, root, DEVICES)
    return {known.sweep for known in found.values()}


@pytest.mark.parametrize("package", DECISIVE)
def test_a_result_of_another_version_is_reused_only_if_that_is_asked_for(package, tmp_path, caplog):
    sweep(tmp_path, make(ONE, name="old"), lambda task: on_this_cpu(task, **{package: "0.0.1"}))
    assert reused(tmp_path) == set()
    ours = VERSIONS[package].partition("+")[0]
    said = f"trials of sweep 'old' are not reused ({package} 0.0.1, here {ours}); --reuse-across-versions takes them"
    assert caplog.messages[-1].endswith(said)
    assert reused(tmp_path, reuse_across_versions=True) == {"old"}


TIMED = {"objectives": DEFAULT}


def test_where_time_is_an_objective_nothing_is_reused_on_a_cpu_and_on_a_gpu_nothing_of_other_versions(tmp_path, caplog):
    sweep(tmp_path, make(ONE, name="here"))
    assert reused(tmp_path, name="b") == {"here"}
    assert reused(tmp_path, name="b", **TIMED) == set()
    assert reused(tmp_path, name="b", device="cuda", **TIMED) == {"here"}
    sweep(tmp_path / "old", make(ONE, name="old"), lambda task: on_this_cpu(task, torch="0.0.1"))
    any_version = {"name": "b", "device": "cuda", "reuse_across_versions": True}
    assert reused(tmp_path / "old", **any_version) == {"old"}
    assert reused(tmp_path / "old", **any_version, **TIMED) == set()
    assert caplog.messages[-1].endswith("a step's time is an objective, and is never that of other versions")


def test_before_the_start_it_is_said_how_many_trials_of_a_grid_are_known_and_from_where(tmp_path):
    small = GRID | {"parameters": {"rank": {"values": [1]}, "precision": {"values": ["nf4", "16bit"]}}}
    sweep(tmp_path, make(small, name="small"))
    whole = make(GRID, name="whole", n_trials=6)
    cached = cached_trials(whole, WORKLOAD, tmp_path, DEVICES)
    said = "2 of 6 trials are known from sweep small (--no-reuse runs them)"
    assert known_line(whole, WORKLOAD, cached, set()) == said
    assert known_line(whole, WORKLOAD, cached, set(list(cached)[:1])) == said.replace("2 of 6", "1 of 5")
    assert known_line(whole, WORKLOAD, {}, set()) is None
    assert known_line(whole, WORKLOAD, cached, set(cached)) is None


def test_of_a_sampler_that_needs_results_the_first_configs_are_looked_up_and_no_more_is_promised(tmp_path):
    first = sweep(tmp_path, make(TPE, name="first", n_trials=4))
    again = make(TPE, name="again", n_trials=20)
    line = known_line(again, WORKLOAD, cached_trials(again, WORKLOAD, tmp_path, DEVICES), set())
    n_known = sum(t.state == "completed" for t in first.candidates)
    assert line.startswith(f"{n_known} of the first ")
    assert line.endswith("those that the search proposes after them are looked up, too")


def test_an_unknown_version_is_another_and_another_build_of_one_is_not(tmp_path):
    sweep(tmp_path, make(ONE, name="unknown"), lambda task: on_this_cpu(task, torch="unknown"))
    assert reused(tmp_path) == set()
    build = VERSIONS["torch"].partition("+")[0] + "+cu130"
    sweep(tmp_path, make(ONE, name="cuda", reuse=False), lambda task: on_this_cpu(task, torch=build))
    assert reused(tmp_path) == {"cuda"}


def test_a_newer_result_of_this_version_goes_before_an_older_one_of_another(tmp_path):
    sweep(tmp_path, make(ONE, name="old"), lambda task: on_this_cpu(task, torch="0.0.1")).ledger.close()
    sweep(tmp_path, make(ONE, name="new", reuse=False)).ledger.close()
    assert reused(tmp_path) == {"new"}


def test_reuse_across_versions_without_reuse_is_refused():
    with pytest.raises(ConfigError, match="reuse_across_versions is set, but reuse is off"):
        make(reuse=False, reuse_across_versions=True)


def forged(root, how) -> None:
    """A sweep with losses of somebody else's making, where `resume` would not take it up."""
    desk = sweep(root, make(ONE, name="forged"), lambda task: on_this_cpu(task, loss=0.001))
    desk.ledger.close()
    if how == "link":
        desk.folder.rename(root / "cached")
        desk.folder.symlink_to(root / "cached")
    elif how == "linked ledger":
        (desk.folder / "ledger.db").rename(root / "ledger.db")
        (desk.folder / "ledger.db").symlink_to(root / "ledger.db")
    else:
        path = desk.folder / how
        path.chmod(path.stat().st_mode | 0o020)


HOW = ("link", "linked ledger", ".", "ledger.db", "adapters", "..")


@pytest.mark.parametrize("how", HOW)
def test_nothing_is_reused_of_a_sweep_that_others_can_write_or_that_is_a_link(how, tmp_path, caplog):
    forged(tmp_path, how)
    assert reused(tmp_path) == set()
    said = caplog.messages[0]
    assert said.startswith("nothing is reused of sweep 'forged': reuse: ")
    assert "is a link" in said if "link" in how else "can be written by others" in said


@pytest.mark.parametrize("how", HOW)
def test_nothing_is_learned_from_a_sweep_that_others_can_write_or_that_is_a_link(how, tmp_path):
    forged(tmp_path, how)
    with pytest.raises(ConfigError, match=r"^warm_start: .* (is a link|can be written by others)"):
        warm_start.check(make(ONE, name="b", warm_start="forged"), tmp_path)


def test_a_trial_whose_adapter_is_not_the_recorded_one_is_run_again(tmp_path):
    first = sweep(tmp_path, make(GRID, name="first"))
    damaged = first.candidates[0].key
    (first.folder / "adapters" / damaged / "adapter_model.safetensors").write_bytes(b"another")
    again = sweep(tmp_path, make(GRID, name="again"))
    assert [task.key for task in again.asked if task.kind == "train"] == [damaged]


def test_another_base_model_is_no_known_trial(tmp_path):
    other = replace(WORKLOAD, base_fingerprint="0" * 64)
    sweep(tmp_path, make(GRID, name="other"), workload=other)
    assert cached_trials(make(GRID, name="here"), WORKLOAD, tmp_path, DEVICES) == {}


def test_what_did_not_complete_is_run_again(tmp_path):
    sweep(tmp_path, make(GRID, name="broken"), breaks)
    again = sweep(tmp_path, make(GRID, name="again"))
    assert set(again.states.values()) == {"completed"}
    assert not any(is_reused(t) for t in again.ledger.trials())


def test_a_reused_trial_is_traced_to_the_sweep_that_ran_it(tmp_path):
    for name in ("a", "b"):
        sweep(tmp_path, make(GRID, name=name))
    shutil.rmtree(sweep_folder("a", tmp_path))
    desk = sweep(tmp_path, make(GRID, name="c"))
    assert set(desk.ledger.fact(REUSED).values()) == {"a"}


def test_a_damaged_ledger_beside_it_stops_nothing(tmp_path):
    folder = tmp_path / "sweeps" / "bad"
    folder.mkdir(parents=True)
    (folder / "ledger.db").write_bytes(b"no ledger" * 99)
    assert sweep(tmp_path, make(GRID, name="good")).driver.finished


# --- warm start


def test_a_warm_started_sampler_knows_the_other_sweeps_trials_and_runs_none_of_them_as_its_own(tmp_path):
    first = sweep(tmp_path, make(TPE, name="first", n_trials=6))
    warm = sweep(tmp_path, make(TPE, name="warm", n_trials=3, warm_start="first", seed=7), finish=False)
    assert len(warm.study.trials) == len(first.candidates)
    assert {t.user_attrs["key"] for t in warm.study.trials} == {t.key for t in first.candidates}
    assert warm.ledger.trials() == []
    warm.finish(on_this_cpu)
    assert sum(t.origin == "search" for t in warm.ledger.trials()) == 3


DIFFERENT = {
    "a parameter": ({"parameters": TPE["parameters"] | {"rank": {"values": [1, 2]}}}, "parameters.rank"),
    "one that is not there": ({"parameters": TPE["parameters"] | {"dropout": {"values": [0.0, 0.1]}}},
                              "parameters.dropout"),
    "a fixed setting": ({"fixed": {"alpha": 8, "max_steps": 16}}, "max_steps"),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_warm_start_from_another_space_is_refused_by_the_keys_that_differ(case, tmp_path):
    changes, key = DIFFERENT[case]
    stored.save(make(TPE, name="first"), sweep_folder("first", tmp_path))
    with pytest.raises(ConfigError, match=f"warm_start: sweep 'first'.*different: {key}$"):
        warm_start.check(make(TPE | changes, name="b", warm_start="first"), tmp_path)


def test_a_warm_start_from_another_device_is_refused(tmp_path):
    stored.save(make(TPE, name="first", device="cuda"), sweep_folder("first", tmp_path))
    with pytest.raises(ConfigError, match=r"warm_start: sweep 'first'.*different: device$"):
        warm_start.check(make(TPE, name="b", warm_start="first"), tmp_path)


def test_a_warm_start_from_itself_or_from_nothing_is_refused(tmp_path):
    stored.save(make(TPE, name="first"), sweep_folder("first", tmp_path))
    with pytest.raises(ConfigError, match="cannot start from itself"):
        warm_start.check(make(TPE, name="first", warm_start="first"), tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'first'"):
        warm_start.check(make(TPE, name="b", warm_start="fist"), tmp_path)


@pytest.mark.parametrize("name", ["base_fingerprint", "data_digest", "compute_dtype"])
def test_a_warm_start_from_another_base_data_or_arithmetic_is_refused_by_its_name(name, tmp_path):
    sweep(tmp_path, make(TPE, name="first", n_trials=2)).ledger.close()
    other = replace(WORKLOAD, **{name: "bfloat16" if name == "compute_dtype" else "9" * 64})
    with pytest.raises(ConfigError, match=f"different: {name}"):
        warm_start.entries(make(TPE, name="b", warm_start="first"), other, tmp_path, DEVICES)


def test_a_warm_start_under_another_protocol_is_refused(tmp_path):
    desk = sweep(tmp_path, make(TPE, name="first", n_trials=1))
    trial = desk.ledger.trials()[0]
    desk.ledger.add("f" * 64, replace(trial.config, rank=64), params=dict(desk.ledger.entry(trial.key).params),
                    origin="search")  # fmt: skip
    desk.ledger.finish("f" * 64, "refused", reason="too large")
    desk.ledger.close()
    with pytest.raises(ConfigError, match="different: protocol version"):
        warm_start.entries(make(TPE, name="b", warm_start="first"), WORKLOAD, tmp_path, DEVICES)


def test_a_space_of_another_sampler_or_pruning_is_the_same_space(tmp_path):
    first = make(space(TPE), name="first")
    other = make(space(TPE, method="random", early_terminate={"type": "asha"}), name="b", seed=9)
    assert warm_start.differences(first, other) == []


LOSS_ALONE = {"objectives": ("eval_loss_nats",)}


@pytest.mark.parametrize("objective", ["peak_memory_mib", "seconds_per_step"])
def test_a_warm_start_takes_no_memory_and_no_time_of_another_kind_of_device(objective, tmp_path, caplog):
    sweep(tmp_path, make(TPE, name="far", n_trials=6), lambda task: at(task, "NVIDIA H200")).ledger.close()
    asked = {"objectives": (objective, "eval_loss_nats"), "warm_start": "far"}
    assert warm_start.entries(make(TPE, name="here", **asked), WORKLOAD, tmp_path, DEVICES) == []
    assert f"are those of NVIDIA H200, this sweep runs on {HERE}" in caplog.text


def test_a_warm_start_takes_losses_of_every_kind_of_device_where_nothing_else_is_searched(tmp_path, caplog):
    first = sweep(tmp_path, make(TPE, name="far", n_trials=6), lambda task: at(task, "NVIDIA H200"))
    asked = make(TPE, name="here", warm_start="far", **LOSS_ALONE)
    assert len(warm_start.entries(asked, WORKLOAD, tmp_path, DEVICES)) == len(first.candidates)
    assert not caplog.messages


def test_a_warm_start_from_a_mixed_cluster_takes_what_ran_on_this_kind_of_device(tmp_path):
    def mixed(task):
        return at(task, "NVIDIA H200" if task.config.rank == 1 else HERE)

    first = sweep(tmp_path, make(GRID, name="mixed"), mixed)
    learned = warm_start.entries(make(GRID, name="here", warm_start="mixed"), WORKLOAD, tmp_path, DEVICES)
    assert {e.result.key for e in learned} == {t.key for t in first.candidates if t.config.rank != 1}


@pytest.mark.parametrize("state", ["oom", "refused"])
def test_what_was_too_large_for_another_kind_of_device_says_nothing_here(state, tmp_path):
    first = sweep(tmp_path, make(GRID, name="far"), lambda task: at(task, "NVIDIA T4"))
    config = replace(first.candidates[0].config, rank=64)
    key = WORKLOAD.key(config)
    first.ledger.add(key, config, params={"rank": 64, "precision": config.precision}, origin="search")
    if state == "oom":
        first.ledger.start(key)
    first.ledger.finish(key, state, reason="too large", environment={"device": "NVIDIA T4"} if state == "oom" else {})
    asked = make(GRID, name="here", warm_start="far", **LOSS_ALONE)
    learned = [entry.result for entry in warm_start.entries(asked, WORKLOAD, tmp_path, DEVICES)]
    assert {trial.state for trial in learned} == {"completed"}
