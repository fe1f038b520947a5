"""Settings -> Ready: a connected Ray, sound rows, the devices; then the base model and tokens, once for all trials.

In two parts: workers start and import what they need before the base model and the tokens, which a process of their
own brings meanwhile, are waited for.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster import private_ray, ray_cluster
from orchestrator.driver import duration, plan
from orchestrator.driver.fetching import Fetching
from orchestrator.driver.ready import Ready, SweepDevice
from trainables.data import hub_models
from trainables.data.formats import parse_columns
from trainables.data.hub import ADVICE
from trainables.data.rows import CheckedRows, read_rows
from trainables.data.splits import split_rows
from trainables.models import base_model
from trainables.values.errors import Unreachable

if TYPE_CHECKING:
    from orchestrator.settings import SweepSettings


@contextmanager
def prepare(settings: "SweepSettings", root: Path) -> Iterator[Callable[[], Ready]]:
    """Join the cluster, if one is given, and read and check the rows; ask for the devices.

    Base model and tokens begin once the rows are known to be sound, and without a cluster so does a private Ray, while
    this process imports Ray Tune.

    Args:
        root: caches lie under root/cache.
    Yields:
        What waits for the base model and the tokens, and with them gives all that a sweep begins with. It raises as
        this does.
    Raises:
        ConfigError, DataError, Unreachable: before any GPU is used.
    """
    if settings.address is not None:
        ray_cluster.connect(settings.address, insecure=settings.insecure)  # first: what does not answer is said at once
    plan.check_known_lengths(settings)
    rows = _sound_rows(settings)
    fetching = Fetching(
        base_source=settings.base_model,
        rows_source=settings.data,
        cache=(root / "cache").resolve(),
        data_split=settings.data_split,
        columns=settings.columns,
        rows=rows,
    )
    with closing(fetching):
        if settings.address is None:
            private_ray.begin(settings.gpus_per_trial)
        ray_cluster.spare_mlflow()
        from orchestrator.driver import tuning  # noqa: F401  # brings Ray Tune, while Ray starts
        from orchestrator.driver.devices import ask_device, check_nodes

        if settings.address is None:
            ray_cluster.connect(None)
        ray_cluster.n_slots(settings)  # refuses what no node has, before a task waits for it without end
        check_nodes(settings)
        yield partial(_ready, settings, root, fetching, ask_device(settings))


def _sound_rows(settings: "SweepSettings") -> CheckedRows:
    """The rows, of which there are enough; where the hub does not answer for them, a base not here is named, too.

    Raises:
        ConfigError, DataError, Unreachable: see trainables.data.rows.read_rows.
    """
    try:
        rows = read_rows(settings.data, split=settings.data_split, columns=parse_columns(settings.columns))
    except Unreachable as error:
        base = settings.base_model
        if base_model.local_folder(base) or hub_models.is_cached(base):
            raise
        raise Unreachable(f"{error}; nor is the base {base!r} in the cache or a path here: {ADVICE['model']}") from None
    split_rows(rows.rows)
    return rows


def _ready(settings: "SweepSettings", root: Path, fetching: Fetching, answer: Callable[[], SweepDevice]) -> Ready:
    import datasets  # noqa: F401  # what reads tokens, while they are made

    fetched = fetching.result()
    plan.check_lengths(settings, base_model.context_tokens(fetched.base.folder))
    counts = {**fetched.tokens.counts, **fetched.cut_counts(min(settings.lengths_tokens))}
    device = answer()
    duration.keep(settings, device, root)
    return Ready(workload=fetched.workload(device.compute_dtype), counts=counts, device=device)
