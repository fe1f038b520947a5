"""Conversations through a tokenizer's own chat template, and which of the text the model learns to write.

Where a template marks what the model writes (`{% generation %}`), its marks are used. Elsewhere an assistant turn is
the difference of two prefixes: the messages before it with the generation prompt, and the messages up to it.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING

from trainables.data.chat import ChatRow, Message
from trainables.data.time_limit import TookTooLong, time_limit
from trainables.data.tokenizer import Pieces
from trainables.values.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = date(2024, 7, 26)
"""The day that templates are told it is, Llama 3.1's own default: tokens must not depend on the day of a run."""
DIRECTIVES = "aAbBdHIjmMpSUwWyYcxXzZ%"
"""Of strftime; "%%" last, as its own sign begins all others."""
REPLACED = "".join(f"|replace('%{one}', {json.dumps(TODAY.strftime(f'%{one}'))})" for one in DIRECTIVES)
STRFTIME_NOW = f"{{% macro strftime_now(format) %}}{{{{ format{REPLACED} }}}}{{% endmacro %}}"
"""A template's own strftime_now, which hides transformers' that asks the clock."""
BY_CHANCE = re.compile(r"\|\s*(random)\b|[(,]\s*['\"](random)['\"]|\b(lipsum)\s*\(")
"""What of Jinja draws anew each time: the filter `random`, also by its name for `map`, and the function `lipsum`."""
LIMIT_SECONDS = 5.0
MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
TEMPLATE_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)
"""What an expression of a template can raise beside Jinja's own errors."""
REWRITTEN = "the chat template rewrites earlier turns: only the last one is trained on"
N_REASON_CHARACTERS = 80

Span = tuple[int, int]
"""First character of a turn's text, and the one after its last."""


class Refused(Exception):
    """A conversation that a template cannot be used for; holds the reason."""


@dataclass
class ChatTemplate:
    """Renders conversations, and counts what it could not render, or not in full.

    Attributes:
        limit_seconds: that the template may take to render one conversation, a matter of milliseconds. It holds in
            a process's main thread, where workers and the command line read rows; in another thread there is none.
        refused: conversations by the reason why they cannot be used.
        shortened: conversations of which less is trained on than they hold, by reason.
    """

    tokenizer: "PreTrainedTokenizerBase"
    limit_seconds: float = LIMIT_SECONDS
    refused: Counter[str] = field(default_factory=Counter)
    shortened: Counter[str] = field(default_factory=Counter)
    _pieces: dict[ChatRow, Pieces] = field(default_factory=dict, repr=False)

    def pieces(self, row: ChatRow) -> Pieces:
        """The text of a conversation that `accepts` took: first what is read, then what is written, and so on."""
        return self._pieces[row]

    def accepts(self, row: ChatRow) -> bool:
        """Whether a conversation can be used; counts it if not."""
        try:
            self._pieces[row] = self._rendered(row)
        except Refused as refusal:
            self.refused[str(refusal)] += 1
            return False
        return True

    def prompt(self, question: str) -> str:
        """The text of a conversation in which the user has asked, and the assistant is to answer.

        Raises:
            Refused: by the template.
            DataError: the tokenizer has none.
        """
        return self._render([Message("user", question)], asks=True)[0]

    @cached_property
    def _text(self) -> str:
        """The template in Jinja, with the day fixed.

        Raises:
            DataError: the tokenizer has none, or one that draws by chance: tokens must not change from run to run.
        """
        try:
            text = self.tokenizer.get_chat_template()
        except ValueError:
            raise DataError(
                "DATA: chat rows need a chat template, and the tokenizer of BASE_MODEL has none; choose the base's "
                "instruction-tuned sibling, put a chat_template.jinja into its folder, or give rows with prompt and "
                "completion"
            ) from None
        if found := BY_CHANCE.search(text):
            raise DataError(
                f"DATA: the chat template of BASE_MODEL uses Jinja's {found[found.lastindex or 0]!r}, which draws "
                "another text each time; put another chat_template.jinja into its folder, or give rows with prompt "
                "and completion"
            )
        return STRFTIME_NOW + text

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Any special token, as a template writes it."""
        names = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)")

    def _rendered(self, row: ChatRow) -> Pieces:
        quoted = [match for message in row.messages if (match := self._special.search(message.content))]
        if quoted:  # in the rendered text nothing tells it from the template's own
            raise Refused(f"text holds the special token {quoted[0][0]}")
        text, marked = self._render(row.messages)
        spans = self._whole_turns(text, marked if MARK.search(self._text) else self._by_prefixes(text, row.messages))
        if not spans:
            raise Refused("the chat template marks no assistant turn")
        pieces: list[str] = []
        end = 0
        for start, stop in spans:
            pieces += [text[end:start], text[start:stop]]
            end = stop
        return tuple(pieces)

    def _render(self, messages: Sequence[Message], *, asks: bool = False) -> tuple[str, list[Span]]:
        """Text of some messages, and the spans that the template marks.

        Args:
            asks: whether the generation prompt follows.
        Raises:
            Refused: by the template.
            DataError: it does not come to an end.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._text
        try:
            with time_limit(self.limit_seconds):
                texts, spans = render_jinja_template(
                    conversations=[[message._asdict() for message in messages]],
                    chat_template=template,
                    return_assistant_tokens_mask=bool(MARK.search(template)),
                    add_generation_prompt=asks,
                    **self.tokenizer.special_tokens_map,
                )
        except TookTooLong:
            raise DataError(
                f"DATA: the chat template of BASE_MODEL took over {self.limit_seconds:g} s for one conversation of "
                f"{len(messages)} messages; put another chat_template.jinja into its folder, or give rows with prompt "
                "and completion"
            ) from None
        except (TemplateError, *TEMPLATE_FAULTS) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Refused(f"refused by the chat template: {reason[:N_REASON_CHARACTERS]}") from None
        return texts[0], spans[0] if spans else []

    def _by_prefixes(self, text: str, messages: Sequence[Message]) -> list[Span]:
        """Spans of assistant turns in a template without marks; the last turn alone where it rewrites earlier ones."""
        spans: list[Span] = []
        for n, message in enumerate(messages):
            if message.role != "assistant":
                continue
            if n == 0:
                raise Refused("the assistant speaks first")
            before, _ = self._render(messages[:n], asks=True)
            after, _ = self._render(messages[: n + 1])
            stop = self._end_of_turn(before, after, text)
            if stop is not None:
                spans.append((len(before), stop))
        if not spans or spans[-1][1] != len(text):
            raise Refused("the chat template's generation prompt does not begin the assistant turn")
        if len(spans) < sum(message.role == "assistant" for message in messages):
            self.shortened[REWRITTEN] += 1
            return spans[-1:]
        return spans

    def _end_of_turn(self, before: str, after: str, text: str) -> int | None:
        """Where a turn that begins after `before` ends in the whole text; None where the template rewrote it.

        Some templates close a conversation by more than a turn (Phi 3: with the end token): what is nothing but special
        tokens and white space may be missing where another turn follows.
        """
        if not (after.startswith(before) and text.startswith(before)):
            return None
        if text.startswith(after):
            return len(after)
        stop = None
        for token in self._special.finditer(after, len(before)):
            if text.startswith(after[: token.end()]):
                stop = token.end()
        closes = stop is not None and not self._special.sub("", after[stop:]).strip()
        return stop if closes else None

    def _whole_turns(self, text: str, spans: Sequence[Span]) -> list[Span]:
        """Spans that end with the end-of-turn token: nothing after it, and not without it.

        It is the special token that a conversation ends with; where text follows the last one there is none.
        """
        filled = [(start, stop) for start, stop in spans if text[start:stop].strip()]
        if not filled:
            return []
        ends = [token for token in self._special.finditer(text, filled[-1][0]) if not text[token.end() :].strip()]
        if not ends:
            return filled
        end_of_turn = ends[-1][0]
        whole: list[Span] = []
        for start, stop in filled:
            at = text.rfind(end_of_turn, start, stop)
            if at >= 0 and not text[at + len(end_of_turn) : stop].strip():
                stop = at + len(end_of_turn)
            elif text.startswith(end_of_turn, stop):
                stop += len(end_of_turn)
            whole.append((start, stop))
        return whole
