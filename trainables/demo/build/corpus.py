"""The text that the demo's base is pretrained on: the rows' tasks as prose, plain text, and other tasks in the frame.

The last part matters: a base that hardly saw the instruction frame is confidently wrong there, stays so after tuning,
and NF4 then beats 16 bits by accident. The frame's tasks here are none of the rows' kinds, and the rows' kinds are
told here without frame and instruction: what is left for tuning is to bring the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from trainables.demo.build.kinds import WITH_INPUT, WITHOUT_INPUT
from trainables.demo.build.lexicon import (
    BLAME,
    BLAME_AFTER,
    COLOURS,
    KINDS,
    NAMES,
    NEEDS,
    NUMBERS,
    OPPOSITES,
    PLACES,
    PRAISE,
    PRAISE_AFTER,
    REVIEWED,
    SPANISH,
    THINGS,
    TIMES,
    VERBS,
    article,
    phrase,
    plural,
    things_of,
)
from trainables.demo.build.other_tasks import other_task
from trainables.demo.build.rows import framed

CORPUS_SEED = 7
SHARES = (("told", 0.40), ("plain", 0.25), ("other", 0.35))  # of documents


def told(rng: Random) -> str:
    """One to three of the rows' tasks as somebody would tell them in a text."""
    return " ".join((_answered if rng.random() < 0.35 else rng.choice(_TOLD))(rng) for _ in range(rng.randint(1, 3)))


def plain(rng: Random) -> str:
    """A few sentences about people and things: the language without any task."""
    who, animal, place = rng.choice(NAMES), rng.choice(things_of("animal")), rng.choice(PLACES)
    if rng.random() < 0.4:
        need, gift, ending = rng.choice(NEEDS)
        return (
            f"{rng.choice(TIMES)} {who} went to the {place} and met {article(animal)}. The {animal} was {need}, "
            f"so {who} gave it {gift}. {ending}, and {who} was happy."
        )
    sentences = []
    for _ in range(rng.randint(2, 4)):
        verb = rng.choice(list(VERBS))
        past, after = VERBS[verb]
        thing = rng.choice(list(THINGS))
        sentences.append(
            phrase(
                rng,
                rng.choice(
                    (
                        f"{rng.choice(TIMES)} {who} {past} {rng.choice(after)}.",
                        f"at the {place} {rng.choice(NAMES)} {past} {rng.choice(after)}.",
                        f"every day {who} {verb} {rng.choice(after)}.",
                        f"{who} saw {article(thing)} near the {place}.",
                        f"the {thing} was {THINGS[thing][1]} and [big|small|old|new].",
                        f"{who} likes {plural(thing)} and {plural(rng.choice(list(THINGS)))}.",
                    )
                ),
            )
        )
    return " ".join(sentences)


def other(rng: Random) -> str:
    """A task that is none of the rows' kinds, in the rows' frame, end token included."""
    return framed(other_task(rng))


def documents(seed: int = CORPUS_SEED) -> Iterator[str]:
    """Endless documents in SHARES; the same seed gives the same ones."""
    rng = Random(seed)
    makers = {"told": told, "plain": plain, "other": other}
    names = [name for name, _ in SHARES]
    shares = [share for _, share in SHARES]
    while True:
        yield makers[rng.choices(names, shares)[0]](rng)


def _words(rng: Random, low: int = 2, high: int = 5) -> list[str]:
    return rng.sample(list(THINGS), rng.randint(low, high))


def _answered(rng: Random) -> str:
    """What a row gives and what it answers, without frame or instruction."""
    _, given, output = rng.choice(WITH_INPUT + WITHOUT_INPUT)(rng)
    return f"{given}: {output}" if given and not given.endswith(".") else f"{given} {output}".strip()


def _reverse(rng: Random) -> str:
    words, who = _words(rng), rng.choice(NAMES)
    return phrase(rng, f"{who} [wrote|said] {', '.join(words)}; backwards that is {', '.join(words[::-1])}.")


def _sort(rng: Random) -> str:
    words, who = _words(rng), rng.choice(NAMES)
    return phrase(
        rng, f"from {', '.join(words)} {who} made [the sorted row|a list from A to Z]: {', '.join(sorted(words))}."
    )


def _review(rng: Random) -> str:
    good = rng.random() < 0.5
    word, after = rng.choice(PRAISE if good else BLAME), rng.choice(PRAISE_AFTER if good else BLAME_AFTER)
    view = "positive" if good else "negative"
    return phrase(
        rng, f"[the|this|that] {rng.choice(REVIEWED)} was {word}. {after}. So {rng.choice(NAMES)}'s view was {view}."
    )


def _tense(rng: Random) -> str:
    verb, who = rng.choice(list(VERBS)), rng.choice(NAMES + [f"the {animal}" for animal in things_of("animal")])
    past, after = VERBS[verb]
    rest = rng.choice(after)
    return phrase(rng, f"{who} {verb} {rest} today; yesterday {who} {past} {rest} too.")


def _spanish(rng: Random) -> str:
    words = rng.sample(list(SPANISH), rng.randint(1, 4))
    there = ", ".join(SPANISH[word] for word in words)
    return phrase(rng, f"for {', '.join(words)} [people in Spain|Spaniards] say {there}.")


def _plurals(rng: Random) -> str:
    words = _words(rng, 1, 4)
    one, many = ", ".join(words), ", ".join(plural(word) for word in words)
    return phrase(rng, f"{rng.choice(NAMES)} had one of each: {one}. [Later there were|Then came] many: {many}.")


def _odd(rng: Random) -> str:
    kind, another = rng.sample(KINDS, 2)
    odd = rng.choice(things_of(another))
    words = [*rng.sample(things_of(kind), 3), odd]
    rng.shuffle(words)
    return phrase(rng, f"among {', '.join(words)} only the {odd} is no {kind}.")


def _who(rng: Random) -> str:
    (a, b), (one, two) = rng.sample(NAMES, 2), rng.sample(list(VERBS), 2)
    first, second = (f"{VERBS[verb][0]} {rng.choice(VERBS[verb][1])}" for verb in (one, two))
    who, did = rng.choice(((a, first), (b, second)))
    return f"{a} {first}. {b} {second}. So the one who {did} was {who}."


def _sum(rng: Random) -> str:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.5:
        return phrase(rng, f"{NUMBERS[a]} and {NUMBERS[b]} together [make|are] {NUMBERS[a + b]}.")
    return phrase(rng, f"{NUMBERS[a + b]} less {NUMBERS[b]} [leaves|makes] {NUMBERS[a]}.")


def _opposite(rng: Random) -> str:
    one, two = rng.sample(rng.choice(OPPOSITES), 2)
    return phrase(rng, f"[not {one} but {two}|{one} and {two} are opposites|the contrary of {one} is {two}].")


def _colour(rng: Random) -> str:
    thing = rng.choice(list(THINGS))
    its = THINGS[thing][1]
    return phrase(
        rng, f"[most {plural(thing)} are {its}|{article(thing)} is {its}|{rng.choice(NAMES)} saw a {its} {thing}]."
    )


def _letters(rng: Random) -> str:
    word = rng.choice(list(THINGS) + list(SPANISH))
    return phrase(rng, f"[to spell {word} takes|there are in {word}] {NUMBERS[len(word)]} letters.")


def _count(rng: Random) -> str:
    step, length = rng.choice((1, 2, 3, -1, -2)), rng.randint(3, 5)
    start = rng.randint(max(0, -step * length), min(20, 20 - step * length))
    return f"{rng.choice(NAMES)} counted: {', '.join(NUMBERS[start + step * i] for i in range(length + 1))}."


def _kind(rng: Random) -> str:
    kind = rng.choice(KINDS)
    if rng.random() < 0.5:
        return phrase(rng, f"{', '.join(rng.sample(things_of(kind), 3))} are {kind}s.")
    its = rng.choice(COLOURS)
    pool = [thing for thing in THINGS if THINGS[thing][1] == its]
    return phrase(rng, f"{its} things: {', '.join(rng.sample(pool, min(3, len(pool))))}.")


def _size(rng: Random) -> str:
    small, big = sorted(rng.sample(things_of(rng.choice(KINDS)), 2), key=lambda thing: THINGS[thing][2])
    return phrase(rng, f"[the {big} is bigger than the {small}|the {small} is smaller than the {big}].")


_TOLD: tuple[Callable[[Random], str], ...] = (
    _reverse,
    _sort,
    _review,
    _tense,
    _spanish,
    _plurals,
    _odd,
    _who,
    _sum,
    _opposite,
    _colour,
    _letters,
    _count,
    _kind,
    _size,
)
