"""What the search had found by when: hypervolume of the front against the training time spent."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure as PngFigure

from orchestrator.analysis import front
from orchestrator.analysis.pareto import growing_hypervolume
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures.style import PRECISION_COLOURS, PRECISION_NAMES, LeftOut, Picture, canvas, hover, legend
from trainables.values.config import TrialConfig
from trainables.values.results import TrialResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

NAME, TITLE = "hypervolume", "What the search had found by when"
Y_AXIS = "hypervolume (share of the box)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The search after one more trial ended.

    Attributes:
        seconds: training time on the device until then, summed over all trials that had ended.
        share: hypervolume by then, of the box between the best value of each objective and the reference point.
        volume: the same in the product of the objectives' units.
        at: when that was, seconds since the epoch; None at the start.
        trial: that raised it, else None.
    """

    seconds: float
    share: float
    volume: float = 0.0
    at: float | None = None
    trial: TrialResult | None = None


def curve(snapshot: SweepSnapshot) -> list[Moment]:
    """From nothing to the sweep's end; empty where no trial counts for the front.

    The reference point is that of the front as it is now, for all moments.
    """
    counted = {trial.key: losses for trial, losses in front.counted(snapshot.trials, snapshot.settings)}
    if snapshot.front.reference_point is None or not counted:
        return []
    reference = np.multiply(snapshot.front.reference_point, front.signs(snapshot.settings))
    box = float(np.prod(reference - np.min(list(counted.values()), axis=0)))
    ended = {trial.config: trial.ended_at for trial in snapshot.trials if trial.ended_at}
    moments = [Moment(seconds=0.0, share=0.0)]
    seconds = 0.0
    events: list[tuple[float, bool, int, TrialResult]] = []  # of one time what ends goes before what counts
    for trial in snapshot.trials:
        if trial.ended_at:
            events.append((trial.ended_at, False, trial.number, trial))
        if trial.key in counted:
            events.append((_counts_from(trial, ended), True, trial.number, trial))
    events.sort(key=lambda event: event[:3])
    volumes = iter(growing_hypervolume([counted[trial.key] for _, counts, _, trial in events if counts], reference))
    for at, counts, _, trial in events:
        if not counts:
            seconds += (trial.train_seconds or 0.0) * devices_per_trial(snapshot)
            moments.append(replace(moments[-1], seconds=seconds, at=at, trial=None))
            continue
        volume = float(next(volumes))
        raised = trial if volume > moments[-1].volume else None
        moments.append(Moment(seconds=seconds, share=volume / box, volume=volume, at=at, trial=raised))
    return moments


def _counts_from(trial: TrialResult, ended: Mapping[TrialConfig, float]) -> float:
    """A 4-bit trial counts once its 16-bit baseline has ended too: before, its similarity was not known."""
    own = trial.ended_at or 0.0
    return max(own, ended.get(trial.config.at_other_precision, own)) if trial.config.precision == "nf4" else own


def devices_per_trial(snapshot: SweepSnapshot) -> float:
    """By which a trial's seconds count: its share of a GPU, or one CPU worker."""
    return snapshot.settings.gpus_per_trial if snapshot.settings.device == "cuda" else 1.0


def draw(snapshot: SweepSnapshot) -> Picture | LeftOut:
    """The curve as steps, with a point where a trial raised it."""
    moments = curve(snapshot)
    if not moments:
        return LeftOut(name=NAME, reason="no trial counts for the front yet")
    unit = "GPU-seconds" if snapshot.settings.device == "cuda" else "CPU-worker seconds"
    notes = (
        f"Over {', '.join(snapshot.settings.objectives)}. The box goes from the best value of each to the reference "
        "point, the worst value and a tenth of the range beyond it, both over all trials of this sweep: "
        "curves of two sweeps cannot be compared. "
        "1 would be one trial that is the best in everything. "
        "Training is summed over all trials that had ended, pruned and failed ones too.",
    )
    x_axis = f"training until then ({unit})"
    return Picture(
        name=NAME, title=TITLE, notes=notes, png=partial(_png, moments, x_axis), html=partial(_html, moments, x_axis)
    )


def _top(moments: Sequence[Moment]) -> float:
    return 1.15 * moments[-1].share or 1.0


def _line(moments: Sequence[Moment]) -> tuple[list[float], list[float]]:
    """Seconds and shares."""
    return list(map(attrgetter("seconds"), moments)), list(map(attrgetter("share"), moments))


def _raised(moments: Sequence[Moment]) -> Iterator[tuple[str, str, list[Moment]]]:
    """Of each precision that raised the curve: colour, label, and when."""
    for precision, colour in PRECISION_COLOURS.items():
        raised = [moment for moment in moments if moment.trial and moment.trial.config.precision == precision]
        if raised:
            yield colour, f"raised by a trial at {PRECISION_NAMES[precision]}", raised


def _png(moments: Sequence[Moment], x_axis: str) -> PngFigure:
    figure = canvas(4.2)
    axes = figure.subplots()
    axes.step(*_line(moments), where="post", color="#444444", zorder=1)
    for colour, label, raised in _raised(moments):
        axes.scatter(*_line(raised), color=colour, label=label)
    axes.set_ylim(bottom=0, top=_top(moments))
    axes.set_xlabel(x_axis)
    axes.set_ylabel(Y_AXIS)
    axes.grid(alpha=0.25)
    legend(figure, 2)
    return figure


def _html(moments: Sequence[Moment], x_axis: str) -> "go.Figure":
    import plotly.graph_objects as go

    xs, ys = _line(moments)
    line = {"shape": "hv", "color": "#444444"}
    figure = go.Figure(go.Scatter(x=xs, y=ys, mode="lines", line=line, name="hypervolume"))
    for colour, label, raised in _raised(moments):
        xs, ys = _line(raised)
        text = [hover(moment.trial) for moment in raised if moment.trial]
        marker = {"color": colour, "size": 10}
        figure.add_scatter(x=xs, y=ys, mode="markers", marker=marker, name=label, text=text, hoverinfo="text")
    figure.update_xaxes(title=x_axis)
    figure.update_yaxes(title=Y_AXIS, range=[0, _top(moments)])
    return figure
