"""The kind of task that an instruction sets, by a table of verbs; only to group rows in a report.

The first word of the instruction that stands in the table gives the kind; "list" in "given a list" is passed over, as
are other words after an article or the like. A few words, as "make", ask for a new text
where there is no input and for a change of the input where there is one. The rule is coarse: "write a summary" is
"write". Instructions without any of the words are "other".
"""

import re

TASK_KINDS = ("write", "rewrite", "classify", "explain", "other")

WORDS = {
    "write": """write generate create compose design construct develop come provide suggest produce build draft devise
        brainstorm propose invent formulate craft prepare imagine compile implement plan share output code narrate
        collect synthesize continue list name tell""",
    "rewrite": """rewrite edit convert translate summarize summarise paraphrase rephrase reword simplify shorten correct
        transform reverse replace format transcribe update improve modify fix remove delete insert merge combine
        condense rearrange reorder repeat sort arrange order capitalize punctuate""",
    "classify": """classify identify categorize categorise select choose pick find determine decide detect predict label
        rank rate evaluate assess compare calculate compute count match extract solve whether tag group
        sum check true which add subtract multiply divide""",
    "explain": """explain describe what why how discuss analyze analyse outline define who when where illustrate
        elaborate interpret research examine justify state answer""",
    "change": "make turn change expand complete reduce give put take fill",
}
"""Kind -> its words; those of "change" are "rewrite" where there is an input, else "write"."""

_KIND_OF = {word: kind for kind, words in WORDS.items() for word in words.split()}
_WORD = re.compile(r"[a-z]+")
_BEFORE_A_NOUN = frozenset(
    ("a", "an", "the", "this", "that", "these", "those", "my", "your", "of", "given", "following")
)


def task_kind(instruction: str, input: str = "") -> str:
    """One of TASK_KINDS.

    >>> task_kind("Given a list of words, write a poem.", "sun, moon")
    'write'
    >>> task_kind("Make the sentence polite.", "Go away."), task_kind("Make a shopping list.")
    ('rewrite', 'write')
    """
    words = _WORD.findall(instruction.lower())
    previous = ""
    for word in words:
        if word in _KIND_OF and previous not in _BEFORE_A_NOUN:
            kind = _KIND_OF[word]
            if kind == "change":
                return "rewrite" if input else "write"
            return kind
        previous = word
    return "other"
