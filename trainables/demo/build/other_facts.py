"""Tasks in the instruction frame that need no input and are none of the rows' kinds: facts about the small world."""

from __future__ import annotations

from random import Random

from trainables.demo.build.lexicon import COLOURS, KINDS, NAMES, NUMBERS, OPPOSITES, THINGS, article, things_of

Task = tuple[str, str, str]
_SOUNDS = dict(
    pair.split("-")
    for pair in ["cat-meow", "sheep-baa", "duck-quack", "lion-roar", "horse-neigh", "bee-buzz", "mouse-squeak"]
)
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def is_it(rng: Random) -> Task:
    thing, kind = rng.choice(list(THINGS)), rng.choice(KINDS)
    yes = THINGS[thing][0] == kind
    return (
        f"[is {article(thing)} {article(kind)}?|say whether {article(thing)} is {article(kind)}.]",
        "",
        (f"{'Yes' if yes else 'No'}, {article(thing)} is {'' if yes else 'not '}{article(kind)}."),
    )


def has_colour(rng: Random) -> Task:
    thing = rng.choice(list(THINGS))
    its, asked = THINGS[thing][1], rng.choice(COLOURS)
    return (
        f"[is {article(thing)} {asked}?|say whether {article(thing)} is {asked}.]",
        "",
        (f"Yes, it is {its}." if its == asked else f"No, it is {its}."),
    )


def which_kind(rng: Random) -> Task:
    thing = rng.choice(list(THINGS))
    return (
        f'[say what "{thing}" is|tell me what "{thing}" is|name the kind of "{thing}"].',
        "",
        f"{article(thing)} is {article(THINGS[thing][0])}.",
    )


def are_opposites(rng: Random) -> Task:
    one, two = rng.sample(rng.choice(OPPOSITES), 2)
    return f'[tell me|say|write] something about the word "{one}".', "", f'"{one}" and "{two}" are opposites.'


def about(rng: Random) -> Task:
    thing = rng.choice(list(THINGS))
    kind, its, _ = THINGS[thing]
    return (
        f"[tell me|say|write|give] [something|a fact|a sentence] about {article(thing)}.",
        "",
        rng.choice(
            (
                f"{article(thing)} is {its}.",
                f"{article(thing)} is {article(kind)}.",
                f"{article(thing)} has {NUMBERS[len(thing)]} letters.",
                f"{rng.choice(NAMES)} saw {article(thing)}.",
            )
        ),
    )


def count_up(rng: Random) -> Task:
    low = rng.randint(0, 15)
    high = rng.randint(low + 2, min(20, low + 5))
    names = NUMBERS[low : high + 1]
    if rng.random() < 0.5:
        return f"[count|go] down from {NUMBERS[high]} to {NUMBERS[low]}.", "", ", ".join(names[::-1])
    return f"[count|go] from {NUMBERS[low]} to {NUMBERS[high]}.", "", ", ".join(names)


def next_number(rng: Random) -> Task:
    i = rng.randint(0, 19)
    if rng.random() < 0.5:
        return f"[which|what] number comes after {NUMBERS[i]}?", "", f"The number is {NUMBERS[i + 1]}."
    return f"[which|what] number comes before {NUMBERS[i + 1]}?", "", f"The number is {NUMBERS[i]}."


def two_sizes(rng: Random) -> Task:
    small, big = sorted(rng.sample(things_of(rng.choice(KINDS)), 2), key=lambda thing: THINGS[thing][2])
    one, two = rng.sample((small, big), 2)
    return (
        f"[say|tell me] whether {article(one)} is [big|small] beside {article(two)}.",
        "",
        (f"{article(big)} is big and {article(small)} is small."),
    )


def sound(rng: Random) -> Task:
    animal = rng.choice(list(_SOUNDS))
    return f"[what does {article(animal)} say?|tell me what {article(animal)} says.]", "", f"It says {_SOUNDS[animal]}."


def day(rng: Random) -> Task:
    i = rng.randrange(7)
    return f"[which day comes|what is the day] after {_DAYS[i]}?", "", f"After {_DAYS[i]} comes {_DAYS[(i + 1) % 7]}."


def greet(rng: Random) -> Task:
    who = rng.choice(NAMES)
    return f"[greet|say hello to|welcome] {who}.", "", f"Hello {who}, it is good to see you."
