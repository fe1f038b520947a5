"""`fit`: whether a model can be tuned on a GPU, before anything is bought or fetched."""

from typing import Annotated, Any

import typer

from orchestrator.analysis.choice import mib_of
from orchestrator.analysis.fit import Question, Recipes, question
from orchestrator.cli import fit_table
from orchestrator.cli.fit_answer import GIB, answer
from orchestrator.cli.options import AsJson, with_settings
from orchestrator.cli.output import print_json
from trainables.cost.fit import Budget, Fit, fit_of
from trainables.cost.gpus import NEWER_MIB, gpu_named
from trainables.cost.shape import Shape
from trainables.models.config_json import shape_of_model
from trainables.values.config import ComputeDtype
from trainables.values.errors import ConfigError, SweepError


def work(
    given: dict[str, Any],
    model: Annotated[str, typer.Argument(help="hub id, folder or config.json; no weights are read")],
    gpu: Annotated[str | None, typer.Option(help="by its name, e.g. T4")] = None,
    memory: Annotated[str | None, typer.Option(help="that tensors may take, in place of a GPU, e.g. 16GiB")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict whether a model can be tuned on a GPU: peak memory and its parts, the largest batch, what 4 bits save."""
    asked = question(given)
    budget, native = budget_of(gpu, memory)
    device = None if budget.memory_mib is None else f"one {gpu_named(gpu).name}" if gpu else memory
    recipes = Recipes(asked=asked, shape=_shape_of(model), native_dtype=native)
    fits = [fit_of(recipes.shape, recipe, budget) for recipe in recipes]
    if as_json:
        print_json(as_dict(model, recipes, fits, budget))
    else:
        show(model, recipes, fits, budget, device, is_named=gpu is not None)
    if budget.memory_mib is not None and not any(fit.fits for fit in fits):
        raise typer.Exit(1)


def _shape_of(model: str) -> Shape:
    """The base's shape; what cannot be found is said of the argument, which is --base-model of other commands."""
    try:
        return shape_of_model(model)
    except SweepError as error:
        error.args = (str(error).replace("BASE_MODEL=", "").replace("BASE_MODEL", "MODEL"),)
        raise


fit = with_settings(work, Question.model_fields)


def budget_of(gpu: str | None, memory: str | None) -> tuple[Budget, ComputeDtype]:
    """What the named device has, and the compute dtype that it has in hardware.

    Raises:
        ConfigError: no GPU has this name, the size is none, or both are given.
    """
    if gpu is not None and memory is not None:
        raise ConfigError("memory: give --gpu or --memory, not both")
    if gpu is not None:
        named = gpu_named(gpu)
        budget = Budget(memory_mib=named.usable_mib, workspaces_mib=named.workspaces_mib)
        return budget, named.dtype
    if memory is None:
        return Budget(), "bfloat16"
    try:
        return Budget(memory_mib=mib_of(memory)), "bfloat16"
    except ConfigError:
        raise ConfigError(f"memory must be a size such as 16GiB or 1500MiB, got {memory!r}") from None


def as_dict(model: str, recipes: Recipes, fits: list[Fit], budget: Budget) -> dict[str, Any]:
    """JSON-ready form: of one point its prediction, else of all of them."""
    whole = {"model": model, "weights": recipes.shape.n_weights, "memory_mib": budget.memory_mib}
    points = []
    for fit in fits:
        points.append(fit.to_dict())
    if recipes.asked.is_point:
        return whole | points[0]
    return whole | {"points": points, "four_bits": recipes.paying_rows(budget)}


def show(model: str, recipes: Recipes, fits: list[Fit], budget: Budget, device: str | None, *, is_named: bool) -> None:
    """The answer in a sentence, the table, and where 4 bits pay.

    Args:
        is_named: whether the device is a GPU by its name.
    """
    first, paying = fits[0].recipe, [] if recipes.asked.is_point else recipes.paying_rows(budget)
    print(answer(fits, paying, recipes.shape.context_tokens, device))
    print(f"{model}: {recipes.shape.n_weights / 1e6:,.1f} M weights")
    print(f"LoRA r{first.rank} on {recipes.asked.targets}, {first.compute_dtype}, {first.optimizer}")
    if budget.memory_mib is not None:
        print(f"{budget.memory_mib / GIB:.1f} GiB for tensors")
    if not is_named:
        print(f"of a GPU with bfloat16 before the H100; from that on {NEWER_MIB:.0f} MiB more (--gpu H100)")
    for line in fit_table.table(fits):
        print(line)
    print(fit_table.NOTES)
    if budget.memory_mib is not None:
        print(fit_table.LARGEST)
    for line in fit_table.baseline_lines(fits):
        print(line)
    for line in fit_table.paying_lines(paying, recipes.shape.context_tokens):
        print(line)
