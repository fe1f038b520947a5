"""The bench of a sweep's time: what it prints of sweeps that it has run, and a run of it over the demo."""

import json

import pytest

from tests.bench import time_to_answer
from tests.bench.time_to_answer import FIGURES, main


def times(answered: float, n_trials: int) -> dict[str, float]:
    return {**dict.fromkeys(FIGURES.values(), 2.0), "answered": answered, "n_trials": n_trials}


def test_the_first_sweep_of_each_tree_is_shown_apart_and_of_the_others_the_median(tmp_path):
    said = [("other", times(300, 40)), ("this", times(150, 60)), ("this", times(110, 61)), ("other", times(200, 41))]
    said += [("this", times(100, 62)), ("other", times(260, 42)), ("other", times(220, 43)), ("this", times(400, 63))]
    files = [tmp_path / "a", tmp_path / "b"]
    for file, some in zip(files, (said[:3], said[3:]), strict=True):
        file.write_text("".join(f"a warning\n{json.dumps({name: one})}\n" for name, one in some))
    shown: list[str] = []
    assert main(["--from", *map(str, files)], shown.append) == 0
    assert [line.split() for line in shown if line.startswith(("the", "median", "command to front (s)", "trials"))] == [
        ["the", "first,", "cold", "this", "other"],
        ["command", "to", "front", "(s)", "150.0", "300.0", "0.50", "of", "it"],
        ["trials", "60.0", "40.0"],
        ["median", "of", "3", "this", "other"],
        ["command", "to", "front", "(s)", "110.0", "220.0", "0.50", "of", "it"],
        ["trials", "62.0", "42.0"],
    ]
    shown.clear()
    main(["--from", str(files[0])], shown.append)
    assert not [line for line in shown if line.startswith("median")], "of sweeps of one tree alone"


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
    assert all(words in text for words in ("the first, cold", "floor of a first trial's begin", "worker 0: "))
