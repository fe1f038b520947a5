"""The picture of what each process did when."""

from dataclasses import replace

from orchestrator.figures import timeline
from orchestrator.figures.style import LeftOut
from tests.support.sweeps import TPE, make, snapshot
from trainables.values.spans import Span

SPANS = (
    Span(process="driver", phase="inputs", began=100.0, ended=104.0),
    Span(process="worker 0", phase="base", began=104.0, ended=106.0),
    Span(process="worker 0", phase="training", began=106.0, ended=116.0),
    Span(process="worker 1", phase="training", began=107.0, ended=112.0),
)


def test_each_bar_stands_where_its_process_was_in_its_phase():
    figure = timeline.draw(replace(snapshot(make(TPE), (), {}), spans=SPANS))
    found = set()
    for trace in figure.html().data:
        found |= {(trace.name, *bar) for bar in zip(trace.y, trace.base, trace.x, strict=True)}
    assert found == {(s.phase, s.process, s.began - 100.0, s.seconds) for s in SPANS}
    axes = figure.png().axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["driver", "worker 0", "worker 1"]
    assert sorted(bar.get_width() for bars in axes.containers for bar in bars) == [2.0, 4.0, 5.0, 10.0]


def test_a_sweep_without_spans_has_no_such_picture():
    assert isinstance(timeline.draw(snapshot(make(TPE), (), {})), LeftOut)


def test_the_picture_is_the_same_before_and_after_it_was_written_itself():
    written = Span(process="driver", phase="writing figures", began=116.0, ended=120.0)
    before, after = (replace(snapshot(make(TPE), (), {}), spans=spans) for spans in (SPANS, (*SPANS, written)))
    assert timeline.draw(before).html() == timeline.draw(after).html()


def test_a_pause_is_left_out_and_said_and_writing_which_no_bar_shows_is_none():
    def driver(phase: str, began: float, ended: float) -> Span:
        return Span(process="driver", phase=phase, began=began, ended=ended)

    resumed = (driver("inputs", 0, 5), driver("tasks", 5, 9), driver("inputs", 1020, 1022))
    writing = driver("writing figures", 9, 1018)
    for spans, begins, is_said in ((resumed, [0, 9], True), ((*resumed, writing), [0, 1020], False)):
        picture = timeline.draw(replace(snapshot(make(TPE), (), {}), spans=spans))
        (bars,) = [trace for trace in picture.html().data if trace.name == "inputs"]
        assert list(bars.base) == begins
        assert any("between two commands is left out" in note for note in picture.notes) == is_said
