"""What a 4-bit trial, its 16-bit baseline and the untuned base write after the same few test prompts, as text."""

import unicodedata
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from trainables.evaluation.held_out import N_DECODED_ROWS, prompts_of
from trainables.values.findings import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainables.data.tokens import TokenRow
    from trainables.evaluation.readers import Texts

N_SAMPLES = 5
"""Test rows that are quoted; the same ones for all trials over the same rows, so that a sweep quotes no more."""
SEED = 5
MAX_CHARS = 300
"""Of each text that is kept."""
DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn round the direction of what is around them."""


def chosen(rows: "Sequence[TokenRow]") -> list[int]:
    """Places of the quoted rows, in order: drawn by SEED from the decoded rows, each of a group of its own."""
    first_of_group: dict[int, int] = {}
    for place, row in enumerate(rows[:N_DECODED_ROWS]):
        first_of_group.setdefault(row.group, place)
    places = list(first_of_group.values())
    return sorted(Random(SEED).sample(places, min(N_SAMPLES, len(places))))


def samples(
    rows: "Sequence[TokenRow]",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    quantized: "Texts",
    baseline: "Texts",
    untuned: "Texts",
) -> tuple[Sample, ...]:
    """The quoted rows with what each model writes.

    Args:
        quantized, baseline, untuned: greedy continuations, one of each decoded row, as tokens.
    """

    def text(tokens: Sequence[int]) -> str:
        return shown(tokenizer.decode(tokens, skip_special_tokens=True))

    found = []
    for place in chosen(rows):
        row = rows[place]
        start, stop = row.responses[0]
        found.append(
            Sample(
                prompt=text(prompts_of([row])[0]),
                response=text(row.input_ids[start:stop]),
                quantized=text(quantized[place]),
                baseline=text(baseline[place]),
                untuned=text(untuned[place]),
            )
        )
    return tuple(found)


def shown(text: str) -> str:
    """At most MAX_CHARS of a text, without white space around it; what would steer a terminal or a page is replaced."""
    plain = "".join("\ufffd" if _steers(char) else char for char in text.strip())
    return plain if len(plain) <= MAX_CHARS else plain[: MAX_CHARS - 3] + "..."


def _steers(char: str) -> bool:
    return char in DIRECTIONS or (unicodedata.category(char) == "Cc" and char not in "\n\t")
