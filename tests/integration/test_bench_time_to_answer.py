"""The bench of a sweep's time: what it prints of sweeps that it has run, and a run of it over the demo."""

import json
from pathlib import Path

import pytest

from tests.bench import time_to_answer
from tests.bench.time_to_answer import FIGURES, main


def times(answered: float, n_trials: int) -> dict[str, float]:
    return {**dict.fromkeys(FIGURES.values(), 2.0), "answered": answered, "n_trials": n_trials}


def shown_of(*runs: list[tuple[str, dict[str, float]]], folder: Path) -> list[list[str]]:
    """Lines of the table of what these runs said, in words, but for most figures."""
    files = [folder / str(number) for number in range(len(runs))]
    for file, said in zip(files, runs, strict=True):
        file.write_text("".join(f"a warning\n{json.dumps({name: one})}\n" for name, one in said))
    shown: list[str] = []
    assert main(["--from", *map(str, files)], shown.append) == 0
    return [line.split() for line in shown if line.startswith(("cold", "warm", "command to front (s)", "trials"))]


ANSWERED = ["command", "to", "front", "(s)"]


def test_the_first_sweep_of_each_tree_in_each_run_is_cold_and_shown_apart_from_the_others(tmp_path):
    first = [("other", times(300, 40)), ("this", times(150, 60)), ("this", times(110, 61)), ("other", times(200, 41))]
    second = [("this", times(170, 64)), ("other", times(320, 44))]
    second += [("this", times(100, 62)), ("other", times(260, 42)), ("other", times(220, 43)), ("this", times(400, 63))]
    assert shown_of(first, second, folder=tmp_path) == [
        ["cold,", "median", "of", "2", "this", "other"],
        [*ANSWERED, "160.0", "310.0", "0.52", "of", "it"],
        ["trials", "62.0", "42.0"],
        ["warm,", "median", "of", "3", "this", "other"],
        [*ANSWERED, "110.0", "220.0", "0.50", "of", "it"],
        ["trials", "62.0", "42.0"],
    ]


def test_how_many_sweeps_a_median_is_of_is_said_of_both_trees(tmp_path):
    said = [("this", times(150, 60)), ("this", times(110, 61)), ("this", times(130, 61)), ("other", times(200, 41))]
    assert [line for line in shown_of(said, folder=tmp_path) if line[0] in ("cold,", "warm,")] == [
        ["cold,", "median", "of", "1", "this", "other"],
    ]
    said.append(("other", times(210, 41)))
    assert ["warm,", "median", "of", "2", "and", "1", "this", "other"] in shown_of(said, folder=tmp_path)


def test_files_without_a_sweep_are_named(tmp_path, capsys):
    (tmp_path / "none").write_text("a warning\n")
    with pytest.raises(SystemExit):
        main(["--from", str(tmp_path / "none")])
    assert f"there is no sweep in {tmp_path / 'none'}" in capsys.readouterr().err


def test_two_trees_at_once_need_another_tree_and_two_gpus(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(time_to_answer, "count_gpus", lambda: 1)
    for flags in (["--at-once"], ["--at-once", "--other", str(tmp_path)]):
        with pytest.raises(SystemExit):
            main(flags)
        assert "needs --other and two GPUs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_of_the_demo_comes_to_a_table_with_its_floor_and_its_timeline():
    shown: list[str] = []
    assert main(["--peer-trials", "0", "--", "--trials", "2", "--steps", "8"], shown.append) == 0
    result = json.loads(shown.pop())
    (sweep,) = result["sweeps"]["this"]
    assert 0 < sweep["first_begins"] < sweep["first_ends"] < sweep["answered"] < sweep["ended"]
    assert sweep["n_steps"] == 8 * sweep["n_trials"] > 0
    text = "\n".join(shown)
    assert all(words in text for words in ("cold, median of 1", "floor of a first trial's begin", "worker 0: "))
