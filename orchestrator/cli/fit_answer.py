"""What `fit` begins with: in one sentence whether it fits, the largest batch, and where 4 bits need less than 16."""

from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import Any

from trainables.cost.fit import Fit

GIB = 1024
"""MiB."""
WIDTH = 80
BITS = {"16bit": "at 16 bits", "nf4": "at 4 bits"}


def answer(fits: Sequence[Fit], paying: Sequence[dict[str, Any]], context_tokens: int, device: str | None) -> str:
    """One sentence about the shortest rows that were asked for; the table has the others.

    Args:
        fits: of the recipes that were asked for.
        paying: see orchestrator.analysis.fit.Recipes.paying_rows; empty for one recipe.
        context_tokens: the longest row that the model reads.
        device: in words, "one T4"; None where none was named.
    """
    short = [fit for fit in fits if fit.recipe.max_length_tokens == fits[0].recipe.max_length_tokens]
    parts = [*_needs(short)] if device is None else [*_largest(short)]
    if paying:
        row = next((row for row in paying if row["loop"] == "lean"), paying[0])
        where = row_length(row, context_tokens)
        blocks = _blocks(row["gradient_checkpointing"])
        parts.append(f"4 bits begin to pay {where} ({row['loop']} loop, {blocks})")
    text = f"{_verdict(short, device)}: {'; '.join(parts)}."
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def size(mib: float) -> str:
    """Memory in words."""
    return f"{mib:.1f} MiB" if mib < GIB else f"{mib / GIB:.1f} GiB"


def row_length(row: dict[str, Any], context_tokens: int) -> str:
    """Rows at which 4 bits need less, in words."""
    longest = row["longest_row_tokens"]
    if longest >= context_tokens:
        return "at any row length"
    return f"up to {longest:,} tokens a row" if longest else "at no row length"


def _verdict(fits: Sequence[Fit], device: str | None) -> str:
    recipe = fits[0].recipe
    if device is None:
        return f"{recipe.batch_size} x {recipe.max_length_tokens:,} tokens need"
    if any(fit.fits for fit in fits):
        return f"Fits {device}"
    return f"Does not fit {device} in batches of {recipe.batch_size}"


def _by_precision(fits: Sequence[Fit]) -> Iterator[tuple[str, list[Fit]]]:
    for precision, words in BITS.items():
        of_precision = [fit for fit in fits if fit.recipe.precision == precision]
        if of_precision:
            yield words, of_precision


def _needs(fits: Sequence[Fit]) -> Iterator[str]:
    """For each precision the least memory."""
    for words, of_precision in _by_precision(fits):
        least = min(of_precision, key=lambda fit: fit.peak_mib)
        yield f"{words} {size(least.peak_mib)} ({_how(least)})"


def _largest(fits: Sequence[Fit]) -> Iterator[str]:
    """For each precision the most rows that fit."""
    for words, of_precision in _by_precision(fits):
        most = max(of_precision, key=lambda fit: fit.largest_batch or 0)
        if most.largest_batch:
            rows = f"{most.largest_batch:,} rows of {most.recipe.max_length_tokens:,} tokens"
            yield f"{words} up to {rows} ({_how(most)})"
        else:
            least = min(fit.peak_mib for fit in of_precision)
            yield f"{words} not one row ({size(least)} for {most.recipe.batch_size})"


def _how(fit: Fit) -> str:
    recipe = fit.recipe
    loop = "standard" if recipe.script == "stock" else recipe.script
    return f"{loop} loop, {_blocks(recipe.gradient_checkpointing)}"


def _blocks(gradient_checkpointing: bool) -> str:
    return "blocks run again" if gradient_checkpointing else "blocks kept"
