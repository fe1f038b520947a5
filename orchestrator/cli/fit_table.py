"""What `fit` prints: a table of at most 80 columns, and where 4 bits pay."""

from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.cli.fit_answer import GIB, row_length, size
from trainables.cost.fit import Fit

COLUMNS = (("peak", 6), ("weights", 7), ("adapter", 7), ("kept", 6), ("rest", 5))
"""Of memory, with their widths."""
NOTES = """
standard: a stock script with transformers and peft; *: prepared by peft, which
makes embeddings, head and norms float32. TRL's trainer puts embeddings and head
back to bfloat16; in float16 they stay, so their weights are twice as large.
blocks: kept whole, or run again (gradient checkpointing).
peak = weights + adapter, gradients, moments + kept activations + rest."""
LARGEST = "batch: the largest that fits."


def table(fits: Sequence[Fit]) -> Iterator[str]:
    """Lines: a heading for each row length, and what each recipe needs there, in GiB, or all in MiB where none needs
    one."""
    shown, in_gib = 0, any(fit.peak_mib >= GIB for fit in fits)
    for fit in fits:
        recipe = fit.recipe
        if recipe.max_length_tokens != shown:
            yield f"\n{recipe.batch_size} x {recipe.max_length_tokens:,} tokens, {'GiB' if in_gib else 'MiB'}"
            yield _heading(on_device=fit.fits is not None)
        shown = recipe.max_length_tokens
        yield _row(fit, in_gib=in_gib)


def _heading(*, on_device: bool) -> str:
    line = f"{'loop':<8}  {'base':<5}  {'blocks':<6}"
    for name, width in COLUMNS:
        line += f"  {name:>{width}}"
    return f"{line}  fits  {'batch':>7}" if on_device else line


def _row(fit: Fit, *, in_gib: bool) -> str:
    recipe, parts = fit.recipe, fit.parts
    weights = parts.base_weights_mib + parts.quantization_constants_mib
    adapter = parts.adapter_mib + parts.gradients_mib + parts.optimizer_mib
    loop = "standard" if recipe.script == "stock" else recipe.script
    base = recipe.precision + ("*" if recipe.prepare_kbit else "")
    line = f"{loop:<8}  {base:<5}  {'again' if recipe.gradient_checkpointing else 'kept':<6}"
    mib = (fit.peak_mib, weights, adapter, parts.activations_mib, parts.rest_mib)
    for part, (_, width) in zip(mib, COLUMNS, strict=True):
        line += f"  {part / GIB:>{width}.2f}" if in_gib else f"  {part:>{width}.1f}"
    if fit.fits is None:
        return line
    return f"{line}  {'yes' if fit.fits else 'no':>4}  {fit.largest_batch or 'none':>7}"


def paying_lines(rows: Sequence[dict[str, Any]], context_tokens: int) -> Iterator[str]:
    """Where 4 bits need less than 16, in words."""
    for row in rows:
        where = row_length(row, context_tokens)
        loop = row["loop"] + ("*" if row["prepare_kbit"] else "")
        blocks = _blocks(row["gradient_checkpointing"])
        yield f"4 bits need less {where} ({loop}, blocks {blocks}, batch {row['batch_size']})"


def _blocks(gradient_checkpointing: bool) -> str:
    return "run again" if gradient_checkpointing else "kept"


def baseline_lines(fits: Sequence[Fit]) -> Iterator[str]:
    """Where a 4-bit trial of the lean loop fits and its 16-bit baseline does not."""
    by_recipe = {_but_precision(fit): fit for fit in fits if fit.recipe.precision == "16bit"}
    for fit in fits:
        sixteen = by_recipe.get(_but_precision(fit))
        if fit.recipe.script == "lean" and fit.fits and fit.recipe.is_quantized and sixteen and not sixteen.fits:
            recipe, needed = fit.recipe, size(sixteen.peak_mib)
            where = f"lean, blocks {_blocks(recipe.gradient_checkpointing)}, {recipe.max_length_tokens:,} tokens"
            yield f"{where}: 4 bits fit; their"
            yield f"  16-bit baseline needs {needed}, so they cannot be compared here"


def _but_precision(fit: Fit) -> tuple[Any, ...]:
    recipe = fit.recipe
    return recipe.script, recipe.gradient_checkpointing, recipe.max_length_tokens
