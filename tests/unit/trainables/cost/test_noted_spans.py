"""What a process notes of what it does when."""

from itertools import count

import pytest

from trainables.cost.timeline import Timeline


def test_each_span_is_noted_once_with_its_moments_also_where_it_ends_by_an_error():
    timeline = Timeline(clock=map(float, count()).__next__)
    with timeline.span("comparison"), timeline.span("base"):
        pass
    with pytest.raises(ValueError, match="no"), timeline.span("training"):
        raise ValueError("no")
    found = [(span.process, span.phase, span.began, span.ended) for span in timeline.take("worker 3")]
    assert found == [
        ("worker 3", "base", 1.0, 2.0),
        ("worker 3", "comparison", 0.0, 3.0),
        ("worker 3", "training", 4.0, 5.0),
    ]
    assert timeline.take("worker 3") == ()
