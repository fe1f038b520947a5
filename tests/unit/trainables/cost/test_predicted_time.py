"""Time of a step and of a sweep, predicted from shapes and two speeds; and that the default space fits a T4."""

import json
import re
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

import search_spaces
from orchestrator.driver import duration
from orchestrator.driver.plan import first_configs
from orchestrator.driver.ready import SweepDevice
from tests.support.in_process import called
from tests.support.sweeps import REPO, make, space
from trainables.cost.gpus import GPUS
from trainables.cost.predicted_memory import MAX_ERROR_MIB, MAX_ERROR_SHARE, predicted_peak_mib
from trainables.cost.predicted_time import Speed, measure, published, step_seconds, trial_seconds
from trainables.models.families import gpt2
from trainables.models.families.gpt2 import HUB_SHAPES
from trainables.values.config import TrialConfig

MEDIUM = HUB_SHAPES["gpt2-medium"]
H200 = Speed(products_flops=650e12, memory_bytes=4e12)
CONFIG = TrialConfig(precision="16bit", rank=8, alpha=16, engine="graph", loop="lean")
T4_MIB = 15 * 1024
SPEEDS = st.builds(Speed, products_flops=st.floats(1e12, 1e15), memory_bytes=st.floats(1e10, 1e13))


@pytest.mark.parametrize("run", ["speed-h200-run1.json", "speed-h200-run2.json", "speed-h200.json"])
def test_predictions_are_near_every_recorded_step_at_16_and_4_bits_in_both_loops(run):
    steps = json.loads((REPO / "mlflow_runs" / "recorded" / run).read_text())["steps"]
    graphs = [step for step in steps if step["engine"] == "graph"]
    assert len(graphs) == 4
    for step in graphs:
        config = replace(CONFIG, precision=step["precision"], loop=step["loop"])
        predicted_ms = 1000 * step_seconds(MEDIUM, config, "bfloat16", H200)
        assert predicted_ms == pytest.approx(step["ms_per_step"], rel=0.15), step


@given(SPEEDS, st.sampled_from(["nf4", "16bit"]), st.sampled_from(["lean", "standard"]))
def test_a_faster_device_a_smaller_batch_and_fewer_steps_take_less(speed, precision, loop):
    config = replace(CONFIG, precision=precision, loop=loop)
    seconds = step_seconds(MEDIUM, config, "float16", speed)
    twice = Speed(products_flops=2 * speed.products_flops, memory_bytes=2 * speed.memory_bytes)
    assert step_seconds(MEDIUM, config, "float16", twice) == pytest.approx(seconds / 2)
    assert step_seconds(MEDIUM, replace(config, batch_size=2), "float16", speed) < seconds
    assert step_seconds(MEDIUM, replace(config, engine="eager"), "float16", speed) >= seconds
    half = replace(config, max_steps=config.max_steps // 2)
    assert 2 * trial_seconds(MEDIUM, half, "float16", speed) == pytest.approx(
        trial_seconds(MEDIUM, config, "float16", speed)
    )


def test_the_published_speeds_of_an_h200_stand_for_those_that_its_steps_are_predicted_from():
    speed = published(GPUS["H200"])
    assert speed.products_flops == pytest.approx(H200.products_flops, rel=0.02)
    assert speed.memory_bytes == pytest.approx(H200.memory_bytes, rel=0.02)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_every_named_gpu_is_faster_than_none_and_none_is_faster_than_the_newest(gpu):
    assert 20 <= gpu.tflops <= GPUS["B200"].tflops
    assert 250 <= gpu.gb_per_s <= GPUS["B200"].gb_per_s


def test_a_device_can_be_measured():
    speed = measure("cpu", "float32")
    assert 1e8 < speed.products_flops < 1e15
    assert 1e7 < speed.memory_bytes < 1e14


@pytest.mark.parametrize("loop", ["lean", "standard"])
def test_every_config_of_the_default_space_fits_15_gib_with_the_measured_margin(loop):
    space = search_spaces.load("pareto").for_family(gpt2.FAMILY)
    choices = [space.parameters[name].choices for name in ("precision", "rank", "targets", "dropout")]
    peaks = []
    for precision, rank, targets, dropout in product(*choices):
        params = {"precision": precision, "rank": rank, "targets": targets, "dropout": dropout}
        config = space.config(params | {"alpha_ratio": 1, "learning_rate": 1e-4}, loop=loop, engine="graph")
        peaks.append(predicted_peak_mib(MEDIUM, config, "float16"))
    print(f"{loop}: {min(peaks):.0f} to {max(peaks):.0f} MiB")
    assert max(peaks) + max(MAX_ERROR_SHARE * max(peaks), MAX_ERROR_MIB) < T4_MIB


def on_gpu(**values):
    return make(search_spaces.load("pareto"), device="cuda", base_model="openai-community/gpt2-medium", **values)


def test_a_sweeps_time_is_known_once_a_device_was_asked_and_falls_with_slots(tmp_path):
    asked = on_gpu(n_trials=32, engine="graph", loop="lean")
    assert duration.text(asked, tmp_path) is None
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "device_speed.json").write_text("{")
    assert duration.text(asked, tmp_path) is None, "a damaged file is none"
    duration.keep(
        make(), SweepDevice(names=frozenset({"x"}), compute_dtype="float16", memory_mib=1.0, speed=H200), tmp_path
    )
    whole = duration.predicted_seconds(asked, tmp_path)
    assert duration.predicted_seconds(asked, tmp_path, 4) == pytest.approx(whole / 4)
    slow = Speed(products_flops=25e12, memory_bytes=2.5e11)
    duration.keep(
        make(), SweepDevice(names=frozenset({"x"}), compute_dtype="float16", memory_mib=1.0, speed=slow), tmp_path
    )
    assert duration.predicted_seconds(asked, tmp_path) > 10 * whole
    assert re.search(r"predicted time: about \d+ min of search if nothing is pruned", duration.text(asked, tmp_path))
    hours = duration.predicted_seconds(asked, tmp_path) / 3600
    for limit, is_said in ((0.9 * hours, True), (1.1 * hours, False)):
        said = duration.text(asked.model_copy(update={"max_hours": limit}), tmp_path)
        assert (f"max_hours ({limit:g}) ends it sooner" in said) == is_said
    assert duration.predicted_seconds(make(), tmp_path) is None, "nothing is said of a CPU"


def test_each_4_bit_trial_is_counted_with_its_baseline_which_in_a_grid_may_be_another_of_its_points(tmp_path):
    duration.keep(
        make(), SweepDevice(names=frozenset({"x"}), compute_dtype="float16", memory_mib=1.0, speed=H200), tmp_path
    )
    fixed = {"alpha": 16, "batch_size": 4, "max_length_tokens": 256, "max_steps": 200}
    seconds = {}
    for precisions in (("nf4",), ("16bit",), ("nf4", "16bit")):
        point = {"rank": {"values": [8]}, "precision": {"values": list(precisions)}}
        asked = make(space(parameters=point, fixed=fixed), device="cuda", base_model="openai-community/gpt2-medium",
                     n_trials=len(precisions))  # fmt: skip
        seconds[precisions] = duration.predicted_seconds(asked, tmp_path)
    config = asked.config({"rank": 8, "precision": "nf4"})
    alone = trial_seconds(MEDIUM, config, "float16", H200)
    assert seconds["nf4",] == pytest.approx(alone + seconds["16bit",])
    assert seconds["nf4", "16bit"] == pytest.approx(seconds["nf4",])


@pytest.mark.parametrize(
    ("gpu", "asked", "known_in"),
    [
        ("H100", "auto", "bfloat16"),
        ("H100", "float16", "float16"),
        ("H100", "float32", None),
        ("T4", "auto", "float16"),
        ("T4", "float16", "float16"),
        ("T4", "bfloat16", None),
        ("T4", "float32", None),
    ],
)
def test_time_is_predicted_in_the_arithmetic_asked_for_where_its_speed_is_known(gpu, asked, known_in, tmp_path):
    settings = on_gpu(n_trials=1, compute_dtype=asked)
    (config,) = first_configs(settings, 1)
    found = duration.trials_seconds(settings, [config], tmp_path, GPUS[gpu])
    expected = known_in and trial_seconds(MEDIUM, config, known_in, published(GPUS[gpu]))
    assert found == [pytest.approx(expected) if expected else None]
    assert (duration.text(settings, tmp_path, gpu=GPUS[gpu]) is None) == (known_in is None)


def test_a_speed_that_was_measured_in_an_arithmetic_is_that_of_no_other(tmp_path):
    device = SweepDevice(names=frozenset({"x"}), compute_dtype="float32", memory_mib=1.0, speed=H200)
    in_float32 = on_gpu(compute_dtype="float32")
    duration.keep(in_float32, device, tmp_path)
    assert duration.known(tmp_path) is None, "it is that of the GPU's own"
    duration.keep(on_gpu(), replace(device, compute_dtype="float16"), tmp_path)
    assert duration.text(on_gpu(compute_dtype="float16"), tmp_path) is not None
    assert duration.text(in_float32, tmp_path) is None


def test_a_dry_run_in_an_arithmetic_without_a_known_speed_says_why_no_minutes_stand_there(tmp_path):
    said = called("run", "--dry-run", "--gpu", "T4", "--compute-dtype", "float32", cwd=tmp_path).out
    assert "minutes: not predicted, as no speed in float32 is known here" in said
    assert "add --gpu T4" not in said


def test_a_dry_run_says_the_time_on_the_device_of_the_last_sweep(tmp_path):
    root = tmp_path / "mlflow_runs"
    duration.keep(
        make(), SweepDevice(names=frozenset({"x"}), compute_dtype="float16", memory_mib=1.0, speed=H200), root
    )
    before = (root / "cache" / "device_speed.json").read_text()
    finished = called("run", "--dry-run", "--device", "cuda", "--json", cwd=tmp_path)
    assert finished.code == 0, finished.err
    assert 30 < finished.json["predicted_seconds"] < 3600
    assert json.loads(before) == json.loads((root / "cache" / "device_speed.json").read_text())
