"""The small world that rows and pretraining text speak of: plain tables, and the one function that varies wording."""

from __future__ import annotations

import re
from random import Random

NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]

NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Iris",
    "Jack",
    "Kate",
    "Leo",
    "Maria",
    "Nina",
    "Oscar",
    "Paul",
    "Rosa",
    "Sam",
    "Tom",
    "Vera",
]

# thing -> (kind, colour, size rank within its kind; larger is bigger)
THINGS: dict[str, tuple[str, str, int]] = {
    "ant": ("animal", "black", 1),
    "bee": ("animal", "yellow", 2),
    "mouse": ("animal", "grey", 3),
    "frog": ("animal", "green", 4),
    "robin": ("animal", "red", 5),
    "crow": ("animal", "black", 6),
    "duck": ("animal", "white", 7),
    "cat": ("animal", "grey", 8),
    "fox": ("animal", "orange", 9),
    "sheep": ("animal", "white", 10),
    "wolf": ("animal", "grey", 11),
    "lion": ("animal", "yellow", 12),
    "horse": ("animal", "brown", 13),
    "bear": ("animal", "brown", 14),
    "elephant": ("animal", "grey", 15),
    "whale": ("animal", "blue", 16),
    "cherry": ("fruit", "red", 1),
    "grape": ("fruit", "purple", 2),
    "plum": ("fruit", "purple", 3),
    "lemon": ("fruit", "yellow", 4),
    "peach": ("fruit", "orange", 5),
    "apple": ("fruit", "red", 6),
    "pear": ("fruit", "green", 7),
    "banana": ("fruit", "yellow", 8),
    "melon": ("fruit", "green", 9),
    "button": ("tool", "white", 1),
    "key": ("tool", "grey", 2),
    "pencil": ("tool", "yellow", 3),
    "spoon": ("tool", "grey", 4),
    "cup": ("tool", "white", 5),
    "hammer": ("tool", "brown", 6),
    "lamp": ("tool", "yellow", 7),
    "basket": ("tool", "brown", 8),
    "broom": ("tool", "brown", 9),
    "ladder": ("tool", "brown", 10),
    "daisy": ("plant", "white", 1),
    "tulip": ("plant", "red", 2),
    "rose": ("plant", "red", 3),
    "fern": ("plant", "green", 4),
    "bush": ("plant", "green", 5),
    "birch": ("plant", "white", 6),
    "pine": ("plant", "green", 7),
    "oak": ("plant", "brown", 8),
}
KINDS = ("animal", "fruit", "tool", "plant")
COLOURS = tuple(sorted({colour for _, colour, _ in THINGS.values()}))
IRREGULAR_PLURALS = {"mouse": "mice", "sheep": "sheep", "wolf": "wolves"}

OPPOSITES = tuple(
    pair.split("-")
    for pair in [
        "hot-cold",
        "big-small",
        "fast-slow",
        "old-young",
        "happy-sad",
        "light-dark",
        "high-low",
        "hard-soft",
        "full-empty",
        "wet-dry",
        "clean-dirty",
        "rich-poor",
        "strong-weak",
        "early-late",
        "open-closed",
        "loud-quiet",
        "long-short",
        "near-far",
        "left-right",
        "up-down",
        "day-night",
        "first-last",
        "good-bad",
        "sweet-sour",
        "thick-thin",
        "brave-afraid",
        "friend-enemy",
        "summer-winter",
        "begin-end",
        "push-pull",
        "buy-sell",
        "win-lose",
    ]
)

# present -> (past, what may follow)
VERBS: dict[str, tuple[str, tuple[str, ...]]] = {
    "walks": ("walked", ("to the river", "in the garden", "home")),
    "runs": ("ran", ("to the market", "in the park", "home")),
    "plays": ("played", ("in the garden", "near the lake", "with a ball")),
    "sings": ("sang", ("in the kitchen", "an old song", "at night")),
    "eats": ("ate", ("some bread", "a warm soup", "in the kitchen")),
    "drinks": ("drank", ("some milk", "cold water", "a cup of tea")),
    "finds": ("found", ("a silver coin", "an old map", "a small box")),
    "sees": ("saw", ("a tall tower", "the blue sea", "a bright star")),
    "buys": ("bought", ("some bread", "a new hat", "a small box")),
    "writes": ("wrote", ("a long letter", "a short poem", "in the library")),
    "reads": ("read", ("an old book", "a long letter", "in the library")),
    "paints": ("painted", ("a small boat", "the old door", "a tall tower")),
    "opens": ("opened", ("the old door", "a small box", "the window")),
    "sleeps": ("slept", ("near the fire", "in the forest", "at night")),
    "carries": ("carried", ("a heavy bag", "some water", "a small box")),
    "builds": ("built", ("a small boat", "a wooden house", "a tall tower")),
}
PLACES = ("forest", "garden", "market", "library", "park", "village", "kitchen", "river", "lake", "harbour")
TIMES = ("One morning", "One evening", "Last summer", "On a rainy day", "Long ago", "After school")
NEEDS = (  # (state, gift, ending)
    ("hungry", "a piece of bread", "It ate all of it"),
    ("thirsty", "a cup of water", "It drank slowly"),
    ("cold", "a warm blanket", "It fell asleep"),
    ("lost", "an old map", "It found the way home"),
    ("lonely", "a red ball", "They played until night"),
)

# English -> Spanish
SPANISH = dict(
    pair.split("-")
    for pair in [
        "house-casa",
        "dog-perro",
        "cat-gato",
        "water-agua",
        "bread-pan",
        "milk-leche",
        "sun-sol",
        "moon-luna",
        "sea-mar",
        "tree-árbol",
        "book-libro",
        "door-puerta",
        "window-ventana",
        "table-mesa",
        "chair-silla",
        "friend-amigo",
        "street-calle",
        "night-noche",
        "day-día",
        "fire-fuego",
        "king-rey",
        "flower-flor",
        "bird-pájaro",
        "fish-pez",
        "city-ciudad",
        "school-escuela",
        "apple-manzana",
        "horse-caballo",
    ]
)

REVIEWED = ("film", "book", "meal", "song", "hotel", "game", "play", "trip", "soup", "show")
PRAISE = ("wonderful", "lovely", "great", "charming", "delightful", "brilliant")
BLAME = ("terrible", "boring", "awful", "dull", "dreadful", "poor")
PRAISE_AFTER = ("I would gladly come back", "I smiled all evening", "I told all my friends about it", "It made my day")
BLAME_AFTER = ("I want my money back", "I left early", "I will never do it again", "It ruined my day")


def phrase(rng: Random, template: str) -> str:
    """Fill every `[one|or|another]` of the template at random, nested ones too, and begin with a capital letter."""
    text, n_filled = template, 1
    while n_filled:  # innermost first
        text, n_filled = re.subn(r"\[([^][]*)\]", lambda found: rng.choice(found[1].split("|")), text)
    return text[0].upper() + text[1:]


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The plural of one of THINGS or of a regular noun."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def things_of(kind: str) -> list[str]:
    """The THINGS of one kind, smallest first."""
    return [thing for thing, (its_kind, _, _) in THINGS.items() if its_kind == kind]
