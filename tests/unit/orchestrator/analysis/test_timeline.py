"""Where a sweep's time went."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.timeline import IDLE, bar, by_process, letters, lines, pauses
from trainables.values.spans import Span


def span(phase: str, began: float, ended: float, process: str = "worker 0") -> Span:
    return Span(process=process, phase=phase, began=began, ended=ended)


def test_what_lies_inside_another_span_counts_once_for_the_inner_one():
    (one,) = by_process([span("comparison", 0, 10), span("base", 2, 5)])
    assert one.seconds() == {"comparison": 7, "base": 3}


def test_between_two_spans_a_process_is_idle():
    (one,) = by_process([span("base", 0, 2), span("training", 5, 9)])
    assert one.seconds() == {"base": 2, IDLE: 3, "training": 4}


def test_the_driver_comes_first_and_workers_by_number():
    found = by_process([span("base", 0, 1, name) for name in ("worker 10", "worker 9", "driver")])
    assert [one.process for one in found] == ["driver", "worker 9", "worker 10"]


def test_a_pause_between_two_commands_is_left_out_of_every_process_and_said():
    first = [span("inputs", 0, 5, "driver"), span("training", 3, 9)]
    second = [span("inputs", 1009, 1012, "driver"), span("training", 1011, 1030)]
    assert pauses(first + second) == [(9, 1009)]
    driver, worker = by_process(first + second, pauses(first + second))
    assert (driver.began, driver.ended) == (0, 12)
    assert driver.seconds() == {"inputs": 8, IDLE: 4}
    assert worker.seconds() == {"training": 25, IDLE: 2}
    assert (
        next(lines(first + second, 80))
        == "30.0 s from the first thing noted to the last; 1000 s in which nothing was noted are left out"
    )
    assert next(lines(first, 80)) == "9.0 s from the first thing noted to the last"


def test_a_stretch_in_which_any_process_works_is_no_pause():
    assert not pauses([span("tasks", 0, 99, "driver"), span("training", 5, 6), span("training", 70, 90)])
    assert not pauses([span("inputs", 0, 5, "driver"), span("tasks", 14, 20, "driver")])
    assert not pauses([span("imports", 0, 22), span("base", 47, 60)]), (
        "a driver that is at work notes that when it ends"
    )
    assert not pauses([])


def test_pauses_of_other_spans_may_be_left_out():
    (driver,) = by_process([span("tasks", 0, 5, "driver"), span("inputs", 30, 32, "driver")], [(9, 28)])
    assert driver.seconds() == {"tasks": 5, IDLE: 6, "inputs": 2}


moments = st.integers(0, 9).map(float)


@given(st.lists(st.tuples(st.sampled_from("abc"), moments, moments), min_size=1))
def test_at_each_moment_a_process_is_in_the_phase_of_the_shortest_span_around_it(drawn):
    spans = [span(phase, min(at, to), max(at, to) + 1) for phase, at, to in drawn]
    (one,) = by_process(spans)
    assert all(before.ended == after.began for before, after in pairwise(one.pieces))
    assert sum(one.seconds().values()) == pytest.approx(one.ended - one.began)
    for piece in one.pieces:
        for moment in np.arange(piece.began + 0.5, piece.ended):
            around = [s for s in spans if s.began < moment < s.ended]
            shortest = min((s.seconds for s in around), default=0.0)
            assert piece.phase in ({s.phase for s in around if s.seconds == shortest} or {IDLE})


def test_a_bar_shows_the_phase_that_each_column_is_longest_in():
    (one,) = by_process([span("base", 0, 4), span("training", 5, 10)])
    of_phase = {"base": "b", "training": "t"}
    assert bar(one, 0, 10, 10, of_phase) == "bbbb·ttttt"
    assert bar(one, 0, 20, 5, of_phase) == "btt  ", "it is not there any more"
    assert bar(one, -10, 10, 10, of_phase) == "     bb·tt"


PHASES = ["imports", "base", "capture", "cost key", "training", "comparison", "test evaluation"]


@given(st.permutations(PHASES))
def test_no_two_phases_have_one_letter_and_each_is_of_its_name(phases):
    found = letters(phases)
    assert len(set(found.values())) == len(PHASES)
    assert all(letter in phase and letter != " " for phase, letter in found.items())
    assert list(letters(PHASES).values()) == ["i", "b", "c", "k", "t", "o", "e"]


def test_a_bars_letters_stand_in_brackets_in_the_names_above_it():
    spans = [span(phase, n, n + 1) for n, phase in enumerate(PHASES)]
    _, names, shown, *_ = lines([*spans, span("imports", 9, 10, "worker 1")], width=80)
    assert names.startswith("worker 0: [i]mports 1.0 s, [b]ase 1.0 s, [c]apture 1.0 s, cost [k]ey 1.0 s, [t]raining")
    assert names.endswith("c[o]mparison 1.0 s, test [e]valuation 1.0 s")
    assert shown == "worker 1: [i]mports 1.0 s"


def test_the_text_names_each_process_once_with_its_seconds_and_once_with_its_bar():
    said = list(lines([span("base", 0, 4), span("inputs", 0, 9, "driver"), span("training", 4, 9)], width=80))
    assert said[1:3] == ["driver: [i]nputs 9.0 s", "worker 0: [b]ase 4.0 s, [t]raining 5.0 s"]
    assert [line.split()[0] for line in said[3:5]] == ["driver", "worker"]
    assert all(len(line) <= 80 for line in said)


def test_without_spans_it_is_said_that_there_are_none():
    (line,) = lines([], width=80)
    assert "no timeline" in line
