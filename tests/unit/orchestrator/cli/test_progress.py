"""Progress that a person trusts: what is left, what is in use, what went wrong, how to stop and go on."""

import io
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from orchestrator.analysis.budgets import SPENT
from orchestrator.analysis.front import front_of
from orchestrator.analysis.status import status_of
from orchestrator.cli.front_table import front_table, noise_lines
from orchestrator.cli.progress import ProgressDisplay
from orchestrator.cli.status_text import RUNNING_LINES, counted_line, how_to_stop, status_view
from orchestrator.cluster.gpu_memory import GIB, GpuMemory, gpu_memory, text_of
from orchestrator.ledger import Ledger
from orchestrator.objectives import DEFAULT
from orchestrator.settings import command as hints
from tests.support.sweeps import TPE, Desk, breaks, completes, cost, make, measurement, trial
from trainables.values.config import TrialConfig


def ended(number: int, seconds: float, **values):
    """One after another, the first at 1000."""
    begin = 1000.0 + number * seconds
    return trial(number, started_at=begin, ended_at=begin + seconds, train_seconds=seconds, **values)


def running(number: int, since: float):
    return trial(number, state="running", history=(), cost=None, started_at=since)


def wait_until(happens, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


def shown(status, memory: str = "", hint: str = "") -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(status_view("a", status, memory, hint=hint))
    return console.file.getvalue()


# --- the live view


def test_the_last_error_is_one_line_however_long_and_broken_it_is():
    faults = [
        ended(0, 1.0, state="failed", reason="the first"),
        ended(1, 2.0, state="oom", reason="CUDA out of memory.\n" + "Tried to allocate " * 40),
    ]
    lines = [line for line in shown(status_of(faults, make())).splitlines() if "last error" in line]
    assert len(lines) == 1
    assert "CUDA out of memory. Tried to allocate" in lines[0]


def test_the_view_says_how_to_stop_and_go_on_until_all_is_done():
    going = status_of([ended(0, 1.0), running(1, 1000.0)], make())
    assert f"Ctrl-C stops; {hints.command()} resume a goes on" in shown(going, hint=how_to_stop("a"))
    done = status_of([ended(0, 1.0)], make(n_trials=1), finished=True)
    assert "resume" not in shown(done, hint=how_to_stop("a"))


def test_of_each_objective_the_best_value_stands_with_the_trial_that_has_it():
    def completed(number, peak_mib, seconds, loss):
        costs = cost(peak_memory_mib=peak_mib, seconds_per_step=seconds)
        return trial(number, history=(measurement(200, loss),), cost=costs)

    trials = [completed(7, 812.0, 3.0, 1.9), completed(12, 900.0, 2.0, 1.234), completed(9, 812.0, 2.0, 1.3)]
    lucky = {"peak_mib": 700.0, "seconds": 1.0, "loss": 1.0}
    trials += [replace(completed(20, **lucky), origin=origin) for origin in ("replicate", "baseline replicate")]
    status = status_of(trials, make(objectives=DEFAULT))
    assert status.best_trial == {"peak_memory_mib": 7, "seconds_per_step": 9, "eval_loss_nats": 12}
    lines = shown(status).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("best"))
    assert [line.rstrip() for line in lines[first : first + 3]] == [
        "best    lowest peak MiB 812.0 (trial 7)",
        "        lowest ms/step 2000.0 (trial 9)",
        "        lowest loss (nats) 1.2340 (trial 12)",
    ]
    none = shown(status_of([running(1, 1.0)], make(objectives=("embedding_cosine",))))
    assert "best    highest cosine -\n" in re.sub(" +\n", "\n", none)


def test_how_many_are_done_is_said_of_trials_once():
    lines = shown(status_of([ended(0, 1.0), running(1, 1000.0)], make(n_trials=6))).splitlines()
    assert [line.strip() for line in lines if "trials" in line] == ["done    1 of 6 trials"]


def test_trials_at_work_have_a_line_each_and_of_many_the_first_few_have():
    step = measurement(50, 1.2345)
    first = trial(7, state="running", history=(step,), started_at=1.0, cost=cost(seconds_per_step=0.0123))
    text = shown(status_of([first, running(8, 1.0)], make()))
    assert "trial   7  16 bits rank 4   step  50 of 200  loss 1.2345    12.3 ms/step" in text
    assert re.search(r"trial   8  16 bits rank 4   200 steps *\n", text)
    assert "more" not in text
    many = shown(status_of([running(n, 1.0) for n in range(19)], make()))
    assert many.count("200 steps") == RUNNING_LINES - 1
    assert f"and {19 - RUNNING_LINES + 1} more" in many


@pytest.mark.parametrize("width", [80, 120])
def test_the_view_of_a_large_sweep_fits_a_terminal_without_a_line_cut_off(width):
    far = trial(12345, state="running", history=(measurement(99999, 12.3456),), cost=cost(seconds_per_step=2.3456))
    far = replace(far, config=replace(far.config, rank=128, max_steps=99999))
    console = Console(file=io.StringIO(), width=width)
    console.print(status_view("gpt2-medium", status_of([far], make())))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.rstrip().endswith("2345.6 ms/step") for line in lines)


def test_the_bar_of_a_running_sweep_never_goes_back_though_more_turns_out_to_be_left(tmp_path):
    desk = Desk(tmp_path, make(TPE, n_trials=8))
    desk.do(completes)
    desk.ledger.set_fact(SPENT, {"device_seconds": 0.0, "wall_seconds": 1e5})
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    display = ProgressDisplay(desk.settings, tmp_path / "ledger.db", console)
    display.start()
    try:
        wait_until(lambda: "completed 1" in console.file.getvalue())
        desk.do(completes)
        desk.ledger.set_fact(SPENT, {"device_seconds": 0.0, "wall_seconds": 1.0})
        wait_until(lambda: "completed 2" in console.file.getvalue().rpartition("completed 1")[2])
    finally:
        display.stop()
        desk.ledger.close()
    shares = [int(share) for share in re.findall(r"(\d+) %", console.file.getvalue())]
    assert shares == sorted(shares)
    assert shares[0] > 90


def test_the_bar_is_not_full_between_the_last_task_and_the_end_of_the_display(tmp_path):
    desk = Desk(tmp_path, make(n_trials=1))
    desk.finish()
    desk.ledger.close()
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    display = ProgressDisplay(desk.settings, tmp_path / "ledger.db", console)
    display.start()
    try:
        wait_until(lambda: "ended" in console.file.getvalue())
        assert "100 %" not in console.file.getvalue()
    finally:
        display.stop()
    assert "100 %" in console.file.getvalue()


def test_the_count_of_trials_says_what_makes_it_up_as_it_grows():
    settings = make(TPE, n_trials=3)
    searched = [ended(0, 1.0), ended(1, 1.0)]
    assert counted_line("a", status_of(searched, settings)) == "a: training, 2 of 3 trials"
    others = [ended(2, 1.0, origin="baseline"), ended(3, 1.0, origin="replicate")]
    others.append(ended(4, 1.0, origin="baseline replicate"))
    found = status_of([*searched, *others], settings)
    assert counted_line("a", found) == "a: training, 5 of 6 trials: 3 configs + 1 baseline + 2 seed replicates"
    assert sum(found.kinds.values()) == found.n_expected


def test_the_live_view_says_how_many_trials_were_reused():
    known = trial(0, reason="reused: sweep a ran it", ended_at=1000.0, train_seconds=None)
    assert "1 of 3 trials (1 reused)" in shown(status_of([known], make(n_trials=3)))
    assert "reused" not in shown(status_of([ended(0, 1.0)], make(n_trials=3)))


class Error(Exception):
    """NVML's."""


def nvml(*memory: tuple[float, float], broken: bool = False):
    """NVIDIA's library on a machine with GPUs of so many GiB in use and in all."""

    def init() -> None:
        if broken:
            raise Error("no driver")

    return SimpleNamespace(
        NVMLError=Error,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(memory),
        nvmlDeviceGetHandleByIndex=lambda index: memory[index],
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=int(gpu[0] * GIB), total=int(gpu[1] * GIB)),
    )


def test_memory_is_that_of_the_gpus_that_the_sweep_may_use(monkeypatch):
    library = nvml((1.5, 80.0), (3.0, 80.0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpu.index for gpu in gpu_memory(library)] == [0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpu_memory(library) == (GpuMemory(index=1, used_bytes=3 * GIB, total_bytes=80 * GIB),)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_memory(library) == ()


def test_memory_in_use_stands_in_the_view_and_nothing_where_there_is_no_gpu(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    status = status_of([running(0, 1000.0)], make())
    assert "GPU 0: 1.5 of 80.0 GiB in use" in shown(status, text_of(gpu_memory(nvml((1.5, 80.0)))))
    assert gpu_memory(nvml(broken=True)) == ()
    assert "memory" not in shown(status, text_of(()))


def test_elsewhere_than_on_a_terminal_each_trial_is_a_line_with_what_is_left_after_it(tmp_path):
    desk = Desk(tmp_path, make(n_trials=6))
    console = Console(file=io.StringIO(), width=200)
    display = ProgressDisplay(desk.settings, tmp_path / "ledger.db", console)
    display.start()
    try:
        wait_until(console.file.getvalue)  # what had ended before is not told
        desk.do(breaks)
        wait_until(lambda: "t: training, 1 of" in console.file.getvalue())
        desk.do(completes)
    finally:
        display.stop()
        desk.ledger.close()
    first, *lines = console.file.getvalue().splitlines()
    assert first.startswith(f"Ctrl-C stops; {hints.command()} resume t goes on")
    ledger = Ledger(tmp_path / "ledger.db", read_only=True)
    n_ended = sum(t.ended_at is not None for t in ledger.trials())
    ledger.close()
    assert sum(line.startswith("trial") for line in lines) == n_ended == 2
    assert any("diverged here" in line for line in lines)
    assert lines[-1].startswith("t: training, 2 of ")
    assert "left" in lines[-1]


# --- the front


def test_what_does_not_fit_a_narrow_terminal_is_left_out_alpha_first_then_the_cosine_before_targets_fold():
    targets = ("q_proj", "k_proj", "v_proj")
    config = TrialConfig(precision="16bit", rank=128, alpha=256, learning_rate=2e-4, targets=targets)
    front = front_of([trial(1, config=config)], make())

    def headings(width, **values):
        console = Console(file=io.StringIO(), width=width)
        console.print(front_table(replace(front, **values), width))
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= width
        return {word for word in ("alpha", "cosine", "q_proj k_proj v_proj") if word in text}

    whole = {"alpha", "cosine", "q_proj k_proj v_proj"}
    widths = [(90, whole), (78, whole - {"alpha"}), (70, whole - {"alpha", "cosine"}), (55, set())]
    for width, left in widths:
        assert headings(width) == left, width
    assert "cosine" in headings(55, objectives=("eval_loss_nats", "embedding_cosine"))


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_front_of_large_figures_fits_a_terminal_with_nothing_cut_off(width):
    config = TrialConfig(precision="16bit", rank=128, alpha=256, learning_rate=2e-4)
    figures = cost(peak_memory_mib=71234.5, seconds_per_step=1.2345)
    console = Console(file=io.StringIO(), width=width)
    console.print(front_table(front_of([trial(1234, config=config, cost=figures)], make()), width))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for shown_whole in ("1234", "16bit", "128", "256", "2e-04", "71234.5", "1234.5", "2.0000", "1.0000", "attn.c_attn"):
        assert shown_whole in text


def test_under_the_front_stand_its_noise_its_ties_and_who_is_nearly_on_it():
    def ranked(number: int, loss: float, mib: float = 100.0, **config):
        own = TrialConfig(**{"precision": "16bit", "rank": number + 1, "alpha": 8, **config})
        return trial(number, config=own, history=(measurement(200, loss),), cost=cost(peak_memory_mib=mib))

    seeds = [replace(ranked(7 + n, 3.0 + n / 100, rank=9, seed=n), origin="replicate") for n in range(2)]
    found = [ranked(0, 2.0), ranked(1, 2.01), ranked(2, 1.999, mib=101.0), *seeds]
    lines = noise_lines(front_of(found, make(objectives=("peak_memory_mib", "eval_loss_nats"))))
    assert lines[0].endswith("worse by more in none; noise: peak MiB 0, loss (nats) 0.0631 (1 degree of freedom)")
    assert lines[1].startswith("stability (share of resamples with that noise in which each is on the front): trial 0 ")
    assert lines[2] == "tied: trial 0 with 1"
    tie = "off the front by a tie that noise can turn, and on it in 25 % or more of the resamples: trial 2 "
    assert lines[3].startswith(tie)
    assert noise_lines(front_of([], make())) == []
