"""Tasks in the instruction frame that are none of the rows' kinds: pretraining alone sees them.

Many are neighbours of a rows' kind (the way back from Spanish, the present of a past): they teach the base to read an
instruction and to answer from the input, and leave the rows' own wording and answers to tuning.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from trainables.demo.build.lexicon import (
    NAMES,
    NEEDS,
    NUMBERS,
    PLACES,
    SPANISH,
    THINGS,
    TIMES,
    VERBS,
    article,
    phrase,
    plural,
    things_of,
)
from trainables.demo.build.other_facts import (
    Task,
    about,
    are_opposites,
    count_up,
    day,
    greet,
    has_colour,
    is_it,
    next_number,
    sound,
    two_sizes,
    which_kind,
)

_LIST = "the [words|list|words below|given words|text]"
_TEXT = "the [text|sentence|line|sentence below|text below|given text]"


def other_task(rng: Random) -> dict[str, str]:
    """One task as a row: instruction, input, output."""
    instruction, given, output = rng.choice(_TASKS)(rng)
    lead = "[|||please |now |task: |kindly |in this exercise, ]" if not instruction.endswith("?") else ""
    return {
        "instruction": phrase(rng, lead + instruction),
        "input": given,
        "output": phrase(rng, output) if output.endswith(".") else output,
    }


def _words(rng: Random, low: int = 2, high: int = 5) -> list[str]:
    return rng.sample(list(THINGS), rng.randint(low, high))


def _deed(rng: Random, who: str) -> tuple[str, str, str]:
    """Present, past and what follows, told of one person."""
    verb = rng.choice(list(VERBS))
    past, after = VERBS[verb]
    rest = rng.choice(after)
    return f"{who} {verb} {rest}.", f"{who} {past} {rest}.", rest


def repeat(rng: Random) -> Task:
    words = ", ".join(_words(rng))
    return f"[repeat|copy|write again|give back] {_LIST}.", words, words


def end_word(rng: Random) -> Task:
    words = _words(rng)
    which, i = rng.choice((("first", 0), ("second", 1), ("last", -1)))
    return (
        f"[find|give|name|pick|say] the {which} word[| below| of the list].",
        ", ".join(words),
        f"The {which} word is {words[i]}.",
    )


def how_many(rng: Random) -> Task:
    words = _words(rng, 2, 6)
    return (
        "[count the words|say how many words there are][| below| in the list].",
        ", ".join(words),
        f"There are {NUMBERS[len(words)]} words.",
    )


def without_first(rng: Random) -> Task:
    words = _words(rng, 3, 5)
    return f"[write|give|put] {_LIST} without the [first one|first word].", ", ".join(words), ", ".join(words[1:])


def numbered(rng: Random) -> Task:
    words = _words(rng, 2, 4)
    return (
        f"[number|make a numbered list of] {_LIST}.",
        ", ".join(words),
        "\n".join(f"{i}. {word}" for i, word in enumerate(words, 1)),
    )


def singulars(rng: Random) -> Task:
    words = _words(rng, 2, 4)
    return (
        "[write|give|form|find] the [singular|singular form] of [each|every] [word|noun][| below].",
        ", ".join(plural(word) for word in words),
        ", ".join(words),
    )


def from_spanish(rng: Random) -> Task:
    words = rng.sample(list(SPANISH), rng.randint(1, 4))
    return (
        "[translate|turn|put] the [words|list|Spanish words] into [English|the English language].",
        ", ".join(SPANISH[word] for word in words),
        ", ".join(words),
    )


def present(rng: Random) -> Task:
    now, before, _ = _deed(rng, rng.choice(NAMES + [f"the {animal}" for animal in things_of("animal")]))
    return (
        f"[put {_TEXT} into|rewrite {_TEXT} in|change {_TEXT} to] the [present tense|present].",
        phrase(rng, before),
        now,
    )


def where(rng: Random) -> Task:
    place = rng.choice(PLACES)
    _, before, _ = _deed(rng, rng.choice(NAMES))
    return (
        "[say where it happened|find the place|where did it happen?]",
        f"At the {place} {before}",
        f"The place is the {place}.",
    )


def what_did(rng: Random) -> Task:
    (a, b) = rng.sample(NAMES, 2)
    (_, first, _), (_, second, _) = _deed(rng, a), _deed(rng, b)
    who, answer = rng.choice(((a, first), (b, second)))
    return f"[say|tell|read the text and say] what {who} did.", f"{first} {second}", answer


def persons(rng: Random) -> Task:
    (a, b) = rng.sample(NAMES, 2)
    return (
        f"[name|list|find] the people in {_TEXT}.",
        f"{_deed(rng, a)[1]} {_deed(rng, b)[1]}",
        f"The people are {a} and {b}.",
    )


def replace_name(rng: Random) -> Task:
    (a, b), (_, before, _) = rng.sample(NAMES, 2), _deed(rng, "X")
    return f"[write|say] {_TEXT} with {b} [for|instead of] {a}.", before.replace("X", a), before.replace("X", b)


def go_on(rng: Random) -> Task:
    who, animal, place = rng.choice(NAMES), rng.choice(things_of("animal")), rng.choice(PLACES)
    need, gift, ending = rng.choice(NEEDS)
    given = f"{rng.choice(TIMES)} {who} went to the {place} and met {article(animal)}. The {animal} was {need}."
    return "[continue|finish|end] the [story|tale|text|small story].", given, f"{who} gave it {gift}. {ending}."


def liked(rng: Random) -> Task:
    who = rng.choice(NAMES)
    word, view = rng.choice((("glad", "Yes"), ("happy", "Yes"), ("angry", "No"), ("sad", "No")))
    return (
        "[say whether the person liked it|did the person like it?]",
        f"{who} was {word} about it.",
        f"{view}, {who} was {word}.",
    )


def diary(rng: Random) -> Task:
    who, place = rng.choice(NAMES), rng.choice(PLACES)
    return (
        f"[write|tell|invent|make up] a [line|note|few words] about {who} at the {place}.",
        "",
        (f"{rng.choice(TIMES)} {_deed(rng, who)[1]} The {place} was [quiet|full|dark|near]."),
    )


_TASKS: tuple[Callable[[Random], Task], ...] = (
    repeat,
    end_word,
    how_many,
    without_first,
    numbered,
    singulars,
    from_spanish,
    present,
    where,
    what_did,
    persons,
    replace_name,
    go_on,
    liked,
    is_it,
    has_colour,
    which_kind,
    are_opposites,
    about,
    count_up,
    next_number,
    two_sizes,
    sound,
    day,
    greet,
    diary,
)
