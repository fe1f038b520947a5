"""Work beside other work on a CPU: done at once, on the spot."""

import pytest
import torch

from trainables.models.branches import beside, branching, joined, later, settle


def test_on_a_cpu_work_beside_is_done_where_it_stands_and_once():
    done = []

    def work() -> int:
        done.append(len(done))
        return 7

    with branching(torch.device("cpu")):
        result = beside(work)
        assert done == [0]
        assert result() == 7
    assert done == [0]


def test_on_a_cpu_work_for_later_is_done_where_it_stands_too():
    with branching(torch.device("cpu")):
        assert later(lambda: 7) == 7
        settle()


def test_what_fails_beside_fails_where_it_stands():
    with branching(torch.device("cpu")), pytest.raises(ZeroDivisionError), joined():
        beside(lambda: 1 / 0)
