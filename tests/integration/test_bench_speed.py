"""The speed benches: what they compute from their measurements, and that they run to their end on a CPU."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.ledger.task import Task
from tests.bench import overhead, speed
from tests.support.sweeps import REPO
from trainables.models import base_model, lora
from trainables.models.families import shape_in
from trainables.models.families.gpt2 import HUB_SHAPES, TARGETS
from trainables.training.eager import EagerEngine
from trainables.values.config import TrialConfig

INTERVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)).map(lambda one: (one[0], one[0] + one[1])))


@given(INTERVALS)
def test_a_union_counts_each_moment_once(intervals):
    moments = {t for start, end in intervals for t in range(start, end)}
    assert speed.union(intervals) == len(moments)


@given(INTERVALS, INTERVALS)
def test_a_union_is_at_most_the_sum_and_never_shrinks_when_intervals_are_added(some, others):
    both = speed.union(some + others)
    assert speed.union(some) <= both <= speed.union(some) + speed.union(others)


def test_kernels_are_the_device_s_events_without_copies_and_fills():
    def event(name, device, start_ns, duration_ns):
        return SimpleNamespace(
            name=lambda: name, device_type=lambda: device, start_ns=lambda: start_ns, duration_ns=lambda: duration_ns
        )

    events = [
        event("gemm", DeviceType.CUDA, 10, 5),
        event("Memcpy HtoD (Pinned -> Device)", DeviceType.CUDA, 20, 5),
        event("Memset (Device)", DeviceType.CUDA, 30, 5),
        event("cudaGraphLaunch", DeviceType.CPU, 0, 50),
    ]
    assert list(speed.kernels(events)) == [(10, 15)]


@pytest.fixture(scope="module")
def plain_attention_base(workload):
    """The tiny base with attention written as matrix products: the counter does not know SDPA on a CPU."""
    base = base_model.load(workload, "16bit", "cpu")
    base.set_attn_implementation("eager")
    return base


def in_place_flops(total, a, b, **_) -> int:
    """Of a product that is added in place, by the shapes of its parts; PyTorch's counter does not know it."""
    return 2 * a[0] * a[1] * b[1]


@pytest.mark.parametrize("loop", ["lean", "standard"])
@pytest.mark.parametrize("targets", [("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc", "mlp.c_proj"), TARGETS])
def test_a_step_s_operations_are_those_that_pytorch_counts(plain_attention_base, tiny_folder, loop, targets):
    config = TrialConfig(
        precision="16bit", rank=4, alpha=8, targets=targets, batch_size=2, max_length_tokens=48, dropout=0.0, loop=loop
    )
    model = lora.attach(plain_attention_base, config, base_name="tiny")
    try:
        engine = EagerEngine(model, config, compute_dtype="float32", device="cpu")
        ids = torch.randint(1024, (2, 48), generator=torch.Generator().manual_seed(0))
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place_flops}) as counter:
            engine.step(ids, ids)
    finally:
        lora.detach(model)
    assert speed.step_flops(shape_in(tiny_folder), config) == counter.get_total_flops()


def test_a_full_step_of_gpt2_medium_is_about_one_and_a_half_tera_operations():
    config = TrialConfig(precision="nf4", rank=8, alpha=16, loop="lean")
    assert 1.4e12 < speed.step_flops(HUB_SHAPES["gpt2-medium"], config) < 1.6e12


@given(st.integers(1, 40))
def test_drawn_pairs_are_distinct_4_bit_trials_of_every_rank_and_draw_the_same_again(n_pairs):
    like = TrialConfig(precision="16bit", rank=8, alpha=16)
    found = speed.drawn_configs(like, n_pairs)
    assert len(set(found)) == n_pairs
    assert found == speed.drawn_configs(like, n_pairs)
    assert {config.precision for config in found} == {"nf4"}
    assert {config.rank for config in found} == set(speed.RANKS[:n_pairs])
    assert all(5e-5 <= config.learning_rate <= 2e-3 for config in found)


def peer_run(precision: str, seconds: float, train_seconds: float, steps: int = 50) -> dict:
    return {
        "precision": precision,
        "steps": steps,
        "tune": True,
        "seconds": seconds,
        "train_seconds": train_seconds,
    }


def test_only_the_peer_s_training_is_extrapolated_and_it_says_so():
    found = speed.peer_figures([peer_run("16bit", 30.0, 10.0), peer_run("nf4", 50.0, 20.0)], 200)
    assert found["seconds_per_trial"] == pytest.approx(((20 + 40) + (30 + 80)) / 2)
    assert found["extrapolated"]
    assert not speed.peer_figures([peer_run("16bit", 30.0, 10.0, steps=200)], 200)["extrapolated"]


def test_a_peer_that_failed_counts_for_nothing_and_is_kept():
    failed = {"precision": "nf4", "error": "no bitsandbytes"}
    found = speed.peer_figures([peer_run("16bit", 30.0, 10.0, steps=200), failed], 200)
    assert found["seconds_per_trial"] == 30
    assert failed in found["runs"]
    assert speed.peer_figures([failed], 200)["seconds_per_trial"] is None
    assert speed.peer_figures([], 200) is None


def test_trials_an_hour_are_of_the_whole_wall_time_and_parts_are_medians():
    times = [
        speed.TrialSeconds(precision=p, begin_seconds=b, train_seconds=2.0, end_seconds=0.5, compare_seconds=c)
        for p, b, c in [("nf4", 9.0, 0.0), ("16bit", 1.0, 1.0), ("nf4", 1.0, 0.0), ("nf4", 2.0, 0.0)]
    ]
    found = speed.trial_figures(times, wall_seconds=40.0)
    assert (found["trials_an_hour"], found["seconds_per_trial"]) == (360.0, 10.0)
    assert found["nf4"]["median_seconds"] == 4.5
    assert (found["nf4"]["median_begin_seconds"], found["16bit"]["median_compare_seconds"]) == (2.0, 1.0)


@pytest.fixture(scope="module")
def tiny_speed(tiny_folder):
    """The speed bench's command on a CPU without the peer: its whole output."""
    small = ["--peer", "none", "--trials", "2", "--steps", "24", "--repetitions", "1", "--batch-size", "1"]
    place = ["--device", "cpu", "--base-model", str(tiny_folder), "--data", "demo", "--max-length-tokens", "32"]
    with redirect_stdout(StringIO()) as out:
        assert speed.main([*place, *small]) == 0
    return out.getvalue()


def test_the_speed_bench_says_that_it_runs_on_a_cpu_and_ends_in_one_json_object(tiny_speed):
    first, *_, last = tiny_speed.splitlines()
    assert first.startswith("On a CPU")
    result = json.loads(last)
    assert result["device"].startswith("CPU")
    assert (result["peer"], result["ratio"], result["busy"]) == (None, None, None)


def test_every_way_to_run_a_step_that_a_cpu_has_is_timed(tiny_speed):
    result = json.loads(tiny_speed.splitlines()[-1])
    ways = [(cell["engine"], cell["loop"], cell["precision"]) for cell in result["steps"]]
    assert sorted(ways) == sorted(
        ("eager", loop, precision) for loop in ("standard", "lean") for precision in ("16bit", "nf4")
    )
    ms = {way: cell["ms_per_step"] for way, cell in zip(ways, result["steps"], strict=True)}
    assert min(ms.values()) > 0
    expected = ms["eager", "lean", "nf4"] / ms["eager", "lean", "16bit"]
    assert result["nf4_over_16bit"]["eager lean"] == pytest.approx(expected)
    shares = [cell["product_rate_share"] for cell in result["steps"]]
    assert all(0 < share < 1 for share in shares)


def test_the_speed_bench_runs_whole_pairs_and_the_lean_loop_needs_less_memory(tiny_speed):
    result = json.loads(tiny_speed.splitlines()[-1])
    ours = result["ours"]
    assert ours["n_trials"] == 2
    assert ours["16bit"]["median_compare_seconds"] > 0 == ours["nf4"]["median_compare_seconds"]
    assert ours["trials_an_hour"] == pytest.approx(3600 / ours["seconds_per_trial"])
    assert 0 < result["peak"]["lean_over_standard"] < 1


def test_the_time_of_no_steps_is_on_the_line_through_two_trials():
    assert speed.without_steps((8, 0.4 + 8 * 0.01), (200, 0.4 + 200 * 0.01)) == pytest.approx(0.4)


def test_evaluation_is_held_out_loss_at_every_rung_and_half_of_a_comparison(tiny_speed):
    found = json.loads(tiny_speed.splitlines()[-1])
    whole, pair = found["evaluation"], found["ours"]["16bit"]["median_compare_seconds"]
    assert whole["comparison_seconds_a_pair"] == pair
    assert whole["seconds_per_trial"] == pytest.approx(whole["held_out_seconds"] + pair / 2)


def test_trials_that_no_window_holds_count_as_those_of_all_windows_but_the_first():
    assert speed.extrapolated([(8, 5.0), (8, 16.0), (4, 8.0)], 64) == pytest.approx(5 + 16 + 8 + 44 * 2.0)
    assert speed.extrapolated([(8, 16.0)], 12) == pytest.approx(24.0)
    assert speed.extrapolated([(8, 5.0), (8, 16.0)], 16) == pytest.approx(21.0)


def test_no_trials_are_refused_with_the_exit_code_of_a_setting(capsys):
    assert speed.main(["--device", "cpu", "--base-model", "demo", "--data", "demo", "--trials", "0"]) == 2
    assert "trials" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_the_peer_trains_and_says_how_long_it_took(tiny_folder, precision):
    config = TrialConfig(precision=precision, rank=2, alpha=16, max_steps=2, batch_size=2, max_length_tokens=32)
    rows = str(speed.demo.ROWS_FILE)
    found = speed.peer_trial(str(tiny_folder), rows, config, with_tune=precision == "nf4")
    assert "error" not in found, found
    assert 0 < found["train_seconds"] < found["seconds"]
    assert (found["steps"], found["tune"]) == (2, precision == "nf4")


# --- overhead


@pytest.mark.parametrize("kind", ["train", "compare", "evaluate"])
def test_a_no_op_report_ends_its_task_with_what_the_task_asks_for(kind):
    config = TrialConfig(precision="nf4", rank=2, alpha=4)
    report = overhead.whole_report(Task(kind=kind, key="k" * 64, config=config))
    assert (report.state, report.is_last) == ("completed", True)
    assert (report.measurement is not None) == (report.cost is not None) == (kind == "train")
    assert (report.similarity is not None) == (kind == "compare")
    assert (report.test_evaluation is not None) == (kind == "evaluate")
    if kind == "train":
        assert report.measurement.step == config.max_steps


@pytest.mark.parametrize("precision", ["nf4", "16bit"])
def test_a_pair_s_second_half_brings_the_similarity_of_its_4_bit_trial(precision):
    task = Task(kind="train", key="a" * 64, config=TrialConfig(precision=precision, rank=2, alpha=4))
    report = overhead.with_similarity(overhead.whole_report(task), task, "b" * 64)
    assert report.similarity == (("a" if precision == "nf4" else "b") * 64, overhead.fake_comparison())


def test_a_fake_loss_depends_on_the_trial_alone():
    losses = [overhead.fake_loss_nats(str(n)) for n in range(100)]
    assert len(set(losses)) == 100
    assert losses == [overhead.fake_loss_nats(str(n)) for n in range(100)]
    assert all(2 <= loss <= 3 for loss in losses)


@pytest.mark.slow
def test_no_op_trials_go_through_the_whole_sweep_and_bare_tune(tmp_path):
    done = subprocess.run(
        [sys.executable, REPO / "tests" / "bench" / "overhead.py", "--trials", "20"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    small, large = result["sizes"]
    assert small["n_trials"] < large["n_trials"]
    for size in (small, large):
        assert 0 < size["ms_per_trial_while_sweeping"] < size["ms_per_trial"]
        assert size["bare_ms_per_trial"] > 0
    assert 0 < large["n_nf4"] < large["n_trials"]
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_the_growth_of_memory_is_its_slope_over_trials_once_a_fifth_is_done():
    ends = [float(n) for n in range(1, 101)]
    steep = [(n + 0.5, 1000.0 * n if n < 20 else 20_000 + 7.0 * n) for n in range(110)]
    assert overhead.growth_kib_per_trial(steep, ends) == pytest.approx(7.0)
    assert overhead.growth_kib_per_trial(steep[:21], ends) is None


def test_the_load_bench_writes_a_sweep_that_each_command_reads(tmp_path):
    from tests.bench import load

    settings, n = load.write(tmp_path / "mlflow_runs", 20)
    assert (settings.n_trials, n) == (12, 20)
    found = {command: load.timed(command, tmp_path) for command in ("status", "verify")}
    assert found["status"]["exit_code"] == 0
    assert found["verify"]["exit_code"] == 1  # it has no files and no runs in MLflow
    assert all(each["peak_mib"] > 10 for each in found.values())
