"""The eighteen kinds of task that the demo's rows are made of; half of them bring an input.

A kind is a function of a random source to (instruction, input, output). Content stands in the instruction where there
is no input; wording varies where there is one: splits go by the instruction, so few may be equal.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

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

Kind = Callable[[Random], tuple[str, str, str]]

_LEAD = "[|please |now |task: |kindly |in this exercise, |your job: |for this one, ]"


def reverse_words(rng: Random) -> tuple[str, str, str]:
    words = rng.sample(list(THINGS), rng.randint(3, 5))
    ask = "[write|give|put|repeat] the [words|list|words below|given words] "
    ask += "[in reverse order|backwards|from last to first]."
    return phrase(rng, _LEAD + ask), ", ".join(words), ", ".join(reversed(words))


def sort_words(rng: Random) -> tuple[str, str, str]:
    words = rng.sample(list(THINGS), rng.randint(3, 5))
    ask = "[sort|order|arrange] the [words|list|words below|given words] "
    ask += "[by the alphabet|from A to Z|alphabetically]."
    return phrase(rng, _LEAD + ask), ", ".join(words), ", ".join(sorted(words))


def sentiment(rng: Random) -> tuple[str, str, str]:
    good = rng.random() < 0.5
    adjective, after = rng.choice(PRAISE if good else BLAME), rng.choice(PRAISE_AFTER if good else BLAME_AFTER)
    text = phrase(rng, f"[the|this|that] {rng.choice(REVIEWED)} was [really |very |simply |]{adjective}. {after}.")
    ask = "[say whether|decide if|tell whether] the [review|opinion|comment|text][ below| given|] "
    ask += "is positive or negative."
    return phrase(rng, _LEAD + ask), text, f"The review is {'positive' if good else 'negative'}."


def extract_name(rng: Random) -> tuple[str, str, str]:
    name, verb = rng.choice(NAMES), rng.choice(list(VERBS))
    past, after = VERBS[verb]
    text = rng.choice(
        (
            f"{rng.choice(TIMES)} {name} {past} {rng.choice(after)}.",
            f"At the {rng.choice(PLACES)} {name} {past} {rng.choice(after)}.",
        )
    )
    ask = "[find|extract|give|write down] the [name|person's name|name of the person] "
    ask += "from the [text|sentence|line][ below| given|]."
    return phrase(rng, _LEAD + ask), text, f"The name is {name}."


def past_tense(rng: Random) -> tuple[str, str, str]:
    verb = rng.choice(list(VERBS))
    past, after = VERBS[verb]
    who, rest = rng.choice(NAMES + [f"the {animal}" for animal in things_of("animal")]), rng.choice(after)
    what = "the [sentence|text|line|sentence below|given sentence]"
    ask = f"[put {what} into|rewrite {what} in|change {what} to|turn {what} into] [the past tense|the simple past]."
    return phrase(rng, _LEAD + ask), phrase(rng, f"{who} {verb} {rest}."), phrase(rng, f"{who} {past} {rest}.")


def translate(rng: Random) -> tuple[str, str, str]:
    words = rng.sample(list(SPANISH), rng.randint(2, 4))
    ask = "[translate|turn|put|bring] the [words|list|words below|English words] "
    ask += "into [Spanish|the Spanish language]."
    return phrase(rng, _LEAD + ask), ", ".join(words), ", ".join(SPANISH[word] for word in words)


def plurals(rng: Random) -> tuple[str, str, str]:
    words = rng.sample(list(THINGS), rng.randint(2, 4))
    ask = (
        "[write|give|form|find] the [plural|plural form] of [each|every|each given] [word|noun][ below| in the list|]."
    )
    return phrase(rng, _LEAD + ask), ", ".join(words), ", ".join(plural(word) for word in words)


def odd_one_out(rng: Random) -> tuple[str, str, str]:
    kind, other = rng.sample(KINDS, 2)
    odd = rng.choice(things_of(other))
    words = [*rng.sample(things_of(kind), 3), odd]
    rng.shuffle(words)
    ask = "[find|name|pick|say] [the odd one out|the word that does not fit|the word that does not belong]"
    ask += "[| in the list| of the four| of these]."
    return phrase(rng, _LEAD + ask), ", ".join(words), f"The odd one is {odd}, because it is not {article(kind)}."


def who_did_it(rng: Random) -> tuple[str, str, str]:
    first, second = rng.sample(NAMES, 2)
    deeds = rng.sample(list(VERBS), 2)
    pasts = [f"{VERBS[deed][0]} {rng.choice(VERBS[deed][1])}" for deed in deeds]
    chosen = rng.randrange(2)
    who = (first, second)[chosen]
    ask = f"[use the text and say|read the text and tell|say from the text|tell from the text] who {pasts[chosen]}."
    return phrase(rng, _LEAD + ask), f"{first} {pasts[0]}. {second} {pasts[1]}.", f"It was {who} who {pasts[chosen]}."


def arithmetic(rng: Random) -> tuple[str, str, str]:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.5:
        a, b = max(a, b), min(a, b)
        total, sign, ask = a - b, "minus", "[what is|work out|compute|how much is] A minus B"
    else:
        total, sign, ask = a + b, "plus", "[what is|work out|compute|how much is] A plus B"
    ask = phrase(rng, ask).replace("A ", f"{NUMBERS[a]} ").replace(" B", f" {NUMBERS[b]}")
    return (
        ask + ("?" if ask.startswith(("What", "How")) else "."),
        "",
        phrase(rng, f"{NUMBERS[a]} {sign} {NUMBERS[b]} is {NUMBERS[total]}."),
    )


def opposite(rng: Random) -> tuple[str, str, str]:
    word, other = rng.sample(rng.choice(OPPOSITES), 2)
    ask = f'[what is|tell me|give|name|write|which word is] the opposite of [|the word ]"{word}".'
    return _question(phrase(rng, ask)), "", f'The opposite of "{word}" is "{other}".'


def colour(rng: Random) -> tuple[str, str, str]:
    thing = rng.choice(list(THINGS))
    ask = f"[what is|tell me|name|give|say|write] the [usual |typical |]colour of {article(thing)}."
    return _question(phrase(rng, ask)), "", phrase(rng, f"{article(thing)} is usually {THINGS[thing][1]}.")


def count_letters(rng: Random) -> tuple[str, str, str]:
    word = rng.choice(list(THINGS) + list(SPANISH))
    ask = f'[what is|count|tell me|give|find] the number of letters in [|the word ]"{word}".'
    return _question(phrase(rng, ask)), "", f'The word "{word}" has {NUMBERS[len(word)]} letters.'


def pattern(rng: Random) -> tuple[str, str, str]:
    step, length = rng.choice((1, 2, 3, -1, -2)), rng.randint(3, 4)
    low = max(0, -step * length)
    start = rng.randint(low, min(20, 20 - step * length))
    numbers = [NUMBERS[start + step * i] for i in range(length + 1)]
    ask = "[continue|complete|go on with|give the next number of|find the next number in] the [pattern|row|series]: "
    ask += ", ".join(numbers[:-1]) + "."
    return phrase(rng, ask), "", phrase(rng, f"the next number is {numbers[-1]}.")


def list_items(rng: Random) -> tuple[str, str, str]:
    n, kind = rng.randint(2, 4), rng.choice(KINDS)
    if rng.random() < 0.5:
        about, pool = "", things_of(kind)
    else:
        about = rng.choice(COLOURS)
        pool = [thing for thing, (_, its_colour, _) in THINGS.items() if its_colour == about]
        kind, about, n = "thing", f"{about} ", min(n, len(pool))
    noun = plural(kind) if n > 1 else kind
    ask = "[list|name|give me|write down|think of|tell me] "
    ask += f"{NUMBERS[n]} [different |]{about}{noun}[| that you know| you can think of]."
    return phrase(rng, ask), "", "\n".join(f"{i}. {thing}" for i, thing in enumerate(rng.sample(pool, n), 1))


def story(rng: Random) -> tuple[str, str, str]:
    name, animal, place = rng.choice(NAMES), rng.choice(things_of("animal")), rng.choice(PLACES)
    need, gift, ending = rng.choice(NEEDS)
    ask = "[write|tell|invent|make up] a [short story|little tale|small story] "
    ask += f"about {name} and {article(animal)} [at|near|by] the {place}."
    told = (
        f"{rng.choice(TIMES)} {name} went to the {place} and met {article(animal)}. The {animal} was {need}, "
        f"so {name} gave it {gift}. {ending}, and {name} was happy."
    )
    return phrase(rng, ask), "", told


def compare(rng: Random) -> tuple[str, str, str]:
    kind = rng.choice(KINDS)
    pair = rng.sample(things_of(kind), 2)
    small, big = sorted(pair, key=lambda thing: THINGS[thing][2])
    bigger = rng.random() < 0.5
    winner, loser, word = (big, small, "bigger") if bigger else (small, big, "smaller")
    ask = f"[which is|say which is|tell me which is|decide which is] {word}, {article(pair[0])} or {article(pair[1])}."
    return _question(phrase(rng, ask)), "", phrase(rng, f"{article(winner)} is {word} than {article(loser)}.")


def make_sentence(rng: Random) -> tuple[str, str, str]:
    thing, place = rng.choice(list(THINGS)), rng.choice(PLACES)
    ask = f'[write|make|form|give me] a [sentence|short sentence] with [|the words ]"{thing}" and "{place}".'
    return phrase(rng, ask), "", f"{rng.choice(NAMES)} saw {article(thing)} near the {place}."


def _question(ask: str) -> str:
    return ask[:-1] + "?" if ask.startswith(("What", "Which")) else ask


WITH_INPUT: tuple[Kind, ...] = (
    reverse_words,
    sort_words,
    sentiment,
    extract_name,
    past_tense,
    translate,
    plurals,
    odd_one_out,
    who_did_it,
)
WITHOUT_INPUT: tuple[Kind, ...] = (
    arithmetic,
    opposite,
    colour,
    count_letters,
    pattern,
    list_items,
    story,
    compare,
    make_sentence,
)
