"""Work beside other work on a real GPU: on a stream of its own, in order with what it needs and what needs it."""

import pytest
import torch

from trainables.capture.capture import captured
from trainables.models.branches import MAX_UNSETTLED, beside, branching, later, settle
from trainables.training.graph_cache import GraphCache
from trainables.values.errors import CaptureFailed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]
GPU = torch.device("cuda")


def slow() -> torch.Tensor:
    """A scalar 1 that takes the GPU some milliseconds."""
    a = torch.full((4096, 4096), 1 / 64, device=GPU)
    for _ in range(8):
        a = a @ a
        a = a / a.max()
    return a.max()


def test_work_beside_runs_on_another_stream_and_only_where_branches_are_open():
    streams = []

    def note() -> None:
        streams.append(torch.cuda.current_stream())

    beside(note)()
    with branching(GPU):
        beside(note)()
        beside(note)()
    beside(note)()
    main = torch.cuda.current_stream()
    assert [stream == main for stream in streams] == [True, False, False, True]
    assert streams[1] == streams[2]


def test_work_beside_sees_what_was_queued_before_it_and_what_follows_its_result_sees_it():
    x, y = torch.zeros((), device=GPU), torch.zeros((), device=GPU)
    slow()
    torch.cuda.synchronize()
    with branching(GPU):
        x += slow()

        def work() -> torch.Tensor:
            y.add_(x.clone() * slow())  # x is read at once: 0 if this did not follow
            return y

        result = beside(work)
        found = result() + 1
    assert float(found) == 2.0


def test_a_graph_captured_with_branches_replays_what_was_captured():
    x = torch.ones(64, 64, device=GPU)

    def work() -> None:
        first = beside(lambda: x @ x)
        second = x + 1
        x.copy_((first() + second) / 100)

    expected = x.clone()
    for _ in range(3):
        expected = (expected @ expected + expected + 1) / 100
    stream = torch.cuda.Stream()
    with branching(GPU):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            x @ x
        torch.cuda.synchronize()
        graph = captured(work, stream=stream)
    for _ in range(3):
        graph.replay()
    torch.testing.assert_close(x, expected)


def test_work_for_later_runs_beside_too_and_what_follows_its_settlement_sees_it():
    streams, y = [], torch.zeros((), device=GPU)
    slow()
    torch.cuda.synchronize()

    def work() -> torch.Tensor:
        streams.append(torch.cuda.current_stream())
        return y.add_(y.clone() + slow())  # y is read at once: one less if this did not follow

    assert later(work) is y
    with branching(GPU):
        y += slow()
        result = later(work)
        settle()
        found = result + 1
    assert float(found) == 6.0
    main = torch.cuda.current_stream()
    assert [stream == main for stream in streams] == [True, False]


@pytest.mark.parametrize("is_captured", [True, False])
def test_what_work_for_later_reads_stays_until_the_work_is_done_though_nothing_else_refers_to_it(is_captured):
    n, results = 5 * MAX_UNSETTLED, []

    def one(i: int) -> torch.Tensor:
        x = torch.full((1024, 1024), float(i), device=GPU)  # its memory is free for the next when this returns

        def work() -> torch.Tensor:
            slow()
            return x.clone()

        return later(work)

    def all_of_it() -> None:
        results.extend(one(i) for i in range(n))
        settle()

    slow()
    with branching(GPU):
        if is_captured:
            graph = captured(all_of_it, stream=torch.cuda.Stream())
            graph.replay()
        else:
            all_of_it()
    assert [(float(result.min()), float(result.max())) for result in results] == [(i, i) for i in range(n)]


def test_a_capture_ends_though_work_for_later_was_never_settled():
    x = torch.ones(64, device=GPU)
    with branching(GPU):
        graph = captured(lambda: later(lambda: x.add_(1)), stream=torch.cuda.Stream())
    graph.replay()
    assert torch.equal(x, torch.full_like(x, 2.0))


def test_work_that_runs_out_of_memory_with_a_branch_open_leaves_the_next_capture_possible():
    x, cache = torch.ones(64, 64, device=GPU), GraphCache()

    def work() -> None:
        beside(lambda: x + 1)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with branching(GPU), pytest.raises(CaptureFailed, match="out of memory"), cache._capturing():
        captured(work, stream=cache._stream)
    assert cache.fault is None
    with branching(GPU), cache._capturing():
        captured(lambda: x.add_(beside(lambda: x * 2)()), stream=cache._stream).replay()
    assert torch.equal(x, torch.full_like(x, 3.0))
