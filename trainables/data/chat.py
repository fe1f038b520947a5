"""A conversation, as OpenAI (`role`, `content`) and ShareGPT (`from`, `value`) write its messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""A role as data sets name it -> as chat templates do."""
NO_ASSISTANT_TURN = "no assistant turn"
"""Why a conversation is left out that is written well, but teaches nothing."""


class Message(NamedTuple):
    """One turn: who speaks (a value of ROLES), and what."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRow:
    """One checked conversation, with at least one assistant turn."""

    messages: tuple[Message, ...]

    @property
    def instruction(self) -> str:
        """The first text of the user, which decides the split and the kind of task."""
        for message in self.messages:
            if message.role == "user":
                return message.content
        return self.messages[0].content

    @property
    def input(self) -> str:
        """Chat rows have none."""
        return ""

    @property
    def n_assistant_turns(self) -> int:
        """How many turns the model learns from."""
        return sum(message.role == "assistant" for message in self.messages)


def fault(messages: Any) -> str | None:
    """Why a value is no conversation to learn from; None if it is one."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return "messages not a list"
    if not messages:
        return "messages empty"
    for message in messages:
        reason = _message_fault(message)
        if reason:
            return reason
    if all(_role(message) != "assistant" for message in messages):
        return NO_ASSISTANT_TURN
    return None


def _message_fault(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return "message without fields"
    role, content = _role(message), _content(message)
    if role is None:
        return "unknown role"
    if content is None:
        return "message without text"
    if not content.strip() and role != "system":  # an empty system message is a habit of ShareGPT's files
        return "empty message"
    if message.get("weight") == 0:  # OpenAI's way to leave a turn out of the loss
        return "message of weight 0"
    return None


def row_of(messages: Sequence[Mapping[str, Any]]) -> ChatRow:
    """The row of a conversation without a fault; what follows its last assistant turn teaches nothing and is left out.

    >>> row_of([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]).messages[1]
    Message(role='assistant', content='Hello')
    """
    turns = [Message(str(_role(message)), str(_content(message))) for message in messages]
    while turns[-1].role != "assistant":
        turns.pop()
    return ChatRow(messages=tuple(turns))


def _role(message: Mapping[str, Any]) -> str | None:
    name = message.get("role") or message.get("from")
    return ROLES.get(name.lower()) if isinstance(name, str) else None


def _content(message: Mapping[str, Any]) -> str | None:
    """The text of a message; None where it is no text. OpenAI's list of text parts is one text."""
    content = message.get("content", message.get("value"))
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not content:
        return None
    texts: list[str] = []
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            return None
        texts.append(part["text"])
    return "".join(texts)
