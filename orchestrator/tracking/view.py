"""The table of a sweep's trials on MLflow's pages: a view that is saved under a name, as its "share" button saves one.

MLflow keeps such a view in a tag of the experiment, JSON of what its page holds (MLflow 3.17.2,
useSharedExperimentViewState): a filter, an order, columns. Whoever opens its address sees that, with columns of their
own the next time.
"""

import json

from orchestrator.tracking.store import MODEL_TRAINING

TAG = "mlflow.sharedViewState."
"""Of the experiment; the view's name follows."""
COLUMNS = {
    "params.`rank`": 58,
    "params.`precision`": 85,
    "metrics.`peak_memory_mib`": 142,
    "metrics.`eval_loss_nats`": 114,
    "metrics.`lost_share`": 92,
    "metrics.`seconds_per_step`": 135,
    "metrics.`embedding_cosine`": 140,
    "metrics.`kl_nats`": 80,
    "params.`learning_rate`": 110,
    "params.`alpha`": 70,
    "params.`targets`": 130,
    "tags.`on_pareto_front`": 120,
    "tags.`state`": 90,
}
"""What one chooses a trial by, in its order, with widths in pixels: the first five fit beside MLflow's Assistant on a
screen of 1,440."""
FIRST = {"attributes.`Run Name`": 208, "runDateAndNestInfo": 44}
"""MLflow keeps these on the left: a trial's name, and when it began, narrowed to the sign of its state."""
LAST = {"duration": 80}
CHILD_OF = "child_of_sweep"
"""Tag of each trial's run: its sweep's id."""
ORDER = "metrics.`eval_loss_nats`"


def page_of(experiment_id: str, sweep_id: str) -> str:
    """The table on any MLflow server."""
    return f"#/experiments/{experiment_id}/runs?{MODEL_TRAINING}&viewStateShareKey={sweep_id}"


def tag_of(sweep_id: str) -> tuple[str, str]:
    """The experiment's tag that keeps the view: name and value."""
    widths = FIRST | COLUMNS | LAST
    state = {
        "searchFilter": f"tags.{CHILD_OF} = '{sweep_id}'",
        "orderByKey": ORDER,
        "orderByAsc": True,
        "selectedColumns": [*COLUMNS],
        "columnOrder": [*widths],
        "columnWidths": widths,
    }
    return f"{TAG}{sweep_id}", json.dumps(state)
