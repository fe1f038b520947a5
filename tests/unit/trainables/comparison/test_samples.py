"""Which test rows are quoted, and how much of a text."""

from hypothesis import given
from hypothesis import strategies as st

from trainables.comparison import samples
from trainables.data.tokens import TokenRow
from trainables.evaluation.held_out import N_DECODED_ROWS


def rows_of(groups: list[int]) -> list[TokenRow]:
    return [TokenRow(input_ids=(1, i, 2), n_prompt_tokens=1, group=group) for i, group in enumerate(groups)]


@given(st.lists(st.integers(0, 9), max_size=100))
def test_at_most_five_decoded_rows_are_quoted_each_of_another_group_and_always_the_same(groups):
    rows = rows_of(groups)
    found = samples.chosen(rows)
    assert found == sorted(found) == samples.chosen(rows)
    quoted = [rows[place].group for place in found]
    n_groups = len(set(groups[:N_DECODED_ROWS]))
    assert len(quoted) == len(set(quoted)) == min(samples.N_SAMPLES, n_groups)
    assert all(place < N_DECODED_ROWS for place in found)


def test_the_quoted_rows_are_not_simply_the_first_ones():
    assert samples.chosen(rows_of(list(range(200)))) != [0, 1, 2, 3, 4]


@given(st.text())
def test_a_text_is_short_and_steers_neither_a_terminal_nor_the_direction_of_a_page(text):
    shown = samples.shown(text)
    assert len(shown) <= samples.MAX_CHARS
    assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e", "\u2066"} & set(shown)


def test_plain_text_stays_as_it_is():
    assert samples.shown("  Größe: 5 €\n1. ab\n") == "Größe: 5 €\n1. ab"
    assert samples.shown("a" * 400) == "a" * 297 + "..."
