"""The benches run on a CPU with a tiny model; a stand-in base shares no row with a sweep and says what it is."""

import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from itertools import count
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.bench import measurement, memory_shapes, stand_in
from trainables.data import alpaca, tokens
from trainables.data.rows import read_rows
from trainables.data.splits import SPLIT_ROWS, split_rows
from trainables.evaluation.held_out import eval_loss
from trainables.models import base_model
from trainables.values.errors import ConfigError, DataError

ROWS = read_rows("demo").rows
SECONDS = 40.0
"""By the clock of these tests: about 20 steps, each of them checked."""


def ticks() -> Callable[[], float]:
    """A clock on which each step and each check takes a second, on every machine."""
    return count().__next__


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    """A stand-in folder of a tiny config without weights, and what the build said."""
    config = tmp_path_factory.mktemp("config")
    for path in tiny_folder.glob("*.json"):
        shutil.copy(path, config)
    out = tmp_path_factory.mktemp("made") / "stand-in"
    return out, stand_in.build(config, "demo", out, seconds=SECONDS, seed=0, device="cpu", clock=ticks())


def instructions(path) -> set[str]:
    return {row["instruction"] for row in json.loads(path.read_text())}


def test_a_stand_in_and_a_sweep_share_no_instruction(made):
    out, facts = made
    own, of_sweep = instructions(out / "own_rows.json"), instructions(out / "sweep_rows.json")
    assert not own & of_sweep
    assert facts["n_rows"] + facts["n_held_out_rows"] == len(json.loads((out / "own_rows.json").read_text()))


def test_a_sweep_over_the_written_rows_has_the_splits_of_the_whole_file(made):
    out, _ = made
    written = read_rows(str(out / "sweep_rows.json")).rows
    assert split_rows(written) == split_rows(ROWS)


@given(st.integers(0, 2**32), st.integers(0, 300))
@settings(max_examples=30)
def test_disjointness_holds_whatever_the_rows(seed, n_repeated):
    random = Random(seed)
    repeated = [replace(random.choice(ROWS), output=f"Another answer, {n}.") for n in range(n_repeated)]
    rows = random.sample([*ROWS, *repeated], len(ROWS))
    of_sweep, own = stand_in.parted(rows)
    assert not {row.instruction for row in own} & {row.instruction for row in of_sweep}
    assert len(of_sweep) == sum(SPLIT_ROWS.values())


def test_too_few_rows_beside_a_sweep_are_refused():
    with pytest.raises(DataError, match="rows are left beside a sweep's 1384"):
        stand_in.parted(stand_in.parted(ROWS)[0])


def test_training_lowers_the_held_out_loss_and_keeps_the_best_weights(made, workload):
    out, facts = made
    best = min(check["held_out_loss_nats"] for check in facts["checks"])
    assert facts["held_out_loss_nats"] == best < facts["held_out_loss_before_nats"]
    model = base_model.load(replace(workload, base_folder=str(out)), "16bit", "cpu")
    own = [alpaca.Row(**row) for row in json.loads((out / "own_rows.json").read_text())]
    held_out = stand_in.tokenized(
        own[: stand_in.HELD_OUT_ROWS], AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    )
    assert eval_loss(model, held_out) == pytest.approx(best, abs=1e-4)


def test_weights_from_before_the_held_out_loss_rose_are_kept(tiny_folder):
    noise = torch.randint(1, 1024, (4, 64), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = [tokens.TokenRow(input_ids=tuple(ids), n_prompt_tokens=1) for ids in noise]
    rows = [
        tokens.TokenRow(input_ids=(7,) * 64, n_prompt_tokens=0)
    ]  # whatever is learnt from these, noise is not like it
    model, untouched = (stand_in.untrained(tiny_folder, seed=0) for _ in range(2))
    first, *later = stand_in.train(model, rows, held_out, seconds=SECONDS, seed=0, clock=ticks())
    assert first.held_out_loss_nats < min(check.held_out_loss_nats for check in later)
    assert all(map(torch.equal, model.parameters(), untouched.parameters()))


def test_rows_are_tokenized_as_a_sweep_has_them(splits, tiny_folder):
    of_splits = [row for part in split_rows(ROWS).values() for row in part]
    found = stand_in.tokenized(of_splits, AutoTokenizer.from_pretrained(tiny_folder, trust_remote_code=False))
    assert found == [replace(row, kind="", group=0) for part in splits.values() for row in part]


def test_every_result_over_a_stand_in_says_so(made, workload, tmp_path):
    out, facts = made
    found = base_model.find(str(out), tmp_path)
    assert (found.weights, found.stand_in_seconds) == ("stand-in", facts["seconds"])
    caption = replace(workload, weights=found.weights, stand_in_seconds=found.stand_in_seconds).base_caption
    assert f"a stand-in base trained from nothing for {facts['seconds']:.0f} s" in caption
    assert "not those of GPT-2" in caption


def test_a_stand_in_of_unknown_training_is_refused(made, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(made[0], broken)
    (broken / base_model.STAND_IN_FILE).write_text("{}")
    with pytest.raises(ConfigError, match="gives no seconds"):
        base_model.find(str(broken), tmp_path)


@pytest.mark.parametrize(("seconds", "folder"), [(0, "new"), (float("nan"), "new"), (1, ".")])
def test_no_time_or_a_folder_in_use_is_refused(seconds, folder, tiny_folder, tmp_path):
    (tmp_path / "in use").touch()
    with pytest.raises(ConfigError, match=r"SECONDS|OUT_FOLDER"):
        stand_in.build(tiny_folder, "demo", tmp_path / folder, seconds=seconds, seed=0, device="cpu")


def test_the_rate_warms_up_then_falls():
    rates = [stand_in.learning_rate(n / 1000) for n in range(1001)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] == 0
    assert max(rates) == stand_in.PEAK_LEARNING_RATE
    assert rates[-1] == pytest.approx(stand_in.LAST_RATE_SHARE * stand_in.PEAK_LEARNING_RATE)


@pytest.fixture(scope="module")
def measured(tiny_folder):
    """The bench's command on a CPU: its whole output."""
    small = ["--runs", "2", "--steps", "1", "--rank", "2", "--batch-size", "1", "--max-length-tokens", "32"]
    with redirect_stdout(StringIO()) as out:
        assert measurement.main(["--device", "cpu", "--base-model", str(tiny_folder), "--data", "demo", *small]) == 0
    return out.getvalue()


def test_the_measurement_bench_says_that_it_runs_on_a_cpu_and_ends_in_one_json_object(measured):
    first, *_, last = measured.splitlines()
    assert first.startswith("On a CPU")
    assert json.loads(last)["device"].startswith("CPU")


def test_the_memory_table_has_both_precisions_in_both_loops_and_parts_that_add_up(measured):
    memory = json.loads(measured.splitlines()[-1])["memory"]
    cells = {(cell["precision"], cell["loop"]): cell for cell in memory["cells"]}
    assert set(cells) == {(p, loop) for p in ("nf4", "16bit") for loop in ("standard", "lean")}
    for cell in cells.values():
        assert sum(cell[f"{part}_mib"] for part in measurement.PARTS) == pytest.approx(cell["peak_memory_mib"])
        assert cell["sum_off_per_cent"] < 1
    for loop, saved in memory["saved_by_nf4"].items():
        full, packed = (cells[p, loop]["peak_memory_mib"] for p in ("16bit", "nf4"))
        assert (saved["mib"], saved["per_cent"]) == pytest.approx((full - packed, 100 * (full - packed) / full))


def test_equal_trials_on_a_cpu_differ_in_nothing_but_time(measured):
    found = json.loads(measured.splitlines()[-1])["spread"]
    assert found["n_distinct_adapters"] == {"16bit": 1, "nf4": 1}
    for group in ("16bit", "nf4", "similarity"):
        timed = ("seconds", "tokens_per_second")
        ranges = {name: one["range"] for name, one in found[group].items() if not name.startswith(timed)}
        assert set(ranges.values()) == {0.0}, ranges
    assert {"peak_memory_mib", "train_loss_nats", "eval_loss_nats"} <= set(found["nf4"])
    assert found["nf4"]["seconds_per_step"]["p90_over_p10"] >= 1


def test_a_spread_is_the_range_and_of_times_the_ratio_of_percentiles():
    found = measurement.spread([{"loss_nats": x, "seconds_per_step": x} for x in (5.0, 1.0, 2.0, 3.0, 4.0)])
    assert found["loss_nats"] == {"median": 3.0, "range": 4.0}
    assert found["seconds_per_step"]["p90_over_p10"] == pytest.approx(4.6 / 1.4)


def test_no_shape_tried_here_was_in_view_when_the_prediction_was_made():
    seen = [{**shape, "targets": tuple(shape["targets"])} for shape in memory_shapes.shapes(memory_shapes.FITTED_SEED)]
    assert not [shape for shape in measurement.SHAPES if {"dropout": 0.05, **shape} in seen]


def test_a_wrong_base_ends_with_its_exit_code_and_no_traceback(capsys):
    assert measurement.main(["--device", "cpu", "--base-model", "./nowhere", "--data", "demo"]) == 2
    assert "BASE_MODEL" in capsys.readouterr().err
