"""An instruction as the base read those that it was tuned on: in Alpaca's frame, by its chat template, or bare."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainables.data.alpaca import Row
from trainables.data.template import ChatTemplate
from trainables.data.tokenizer import Encoder, start_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainables.values.config import RowKind


def prompt_tokens(
    tokenizer: "PreTrainedTokenizerBase", kind: "RowKind", instructions: Sequence[str]
) -> list[list[int]]:
    """The tokens of the prompt of each instruction, as in rows of that kind; a BOS token where those have one.

    Raises:
        Refused, DataError: of chat rows, see trainables.data.template.ChatTemplate.prompt.
    """
    if kind == "chat":
        template = ChatTemplate(tokenizer)
        return Encoder(tokenizer, reads_special=True)([template.prompt(text) for text in instructions])
    texts = list(instructions)
    if kind == "Alpaca":
        texts = [Row(instruction=text, input="", output="").prompt for text in instructions]
    start = start_tokens(tokenizer)
    return [start + prompt for prompt in Encoder(tokenizer, reads_special=False)(texts)]
