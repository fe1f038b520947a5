"""How much disk a sweep takes, predicted from shapes before it starts."""

from typing import TYPE_CHECKING

from orchestrator.driver.duration import searched
from trainables.cost.predicted_memory import predicted_breakdown
from trainables.models.families import shape_named

if TYPE_CHECKING:
    from orchestrator.settings import SweepSettings

GIB = 2**30


def text(settings: "SweepSettings") -> str | None:
    """One line about it; None where the base's shape is not known here."""
    shape = shape_named(settings.base_model)
    if shape is None:
        return None
    configs, times = searched(settings)
    adapters_mib = times * sum(predicted_breakdown(shape, config, "float16").adapter_mib for config in configs)
    weights = 2 * shape.n_weights / GIB
    adapters = f"{adapters_mib / 1024:.1f} GiB" if adapters_mib >= 1024 else f"{adapters_mib:.0f} MiB"
    return (
        f"predicted disk: {adapters} of adapters if nothing is pruned; the base's weights, "
        f"{weights:.1f} GiB at 16 bits, where they are not here yet"
    )
