"""What a tuned model is asked begins as the rows did that it was tuned on."""

import pytest

from tests.support import tokenizers
from trainables.data.chat import Message
from trainables.data.prompts import prompt_tokens
from trainables.data.rows import check_rows
from trainables.data.template import Refused
from trainables.data.tokenized import tokenize
from trainables.data.tokenizer import open_tokenizer
from trainables.data.tokens import load

ANSWER = "one two three four " * 8
ROWS = {
    "Alpaca": lambda text: {"instruction": text, "output": ANSWER},
    "completion": lambda text: {"prompt": text, "completion": ANSWER},
    "chat": lambda text: {"messages": [Message("user", text)._asdict(), Message("assistant", ANSWER)._asdict()]},
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("make", [tokenizers.byte_level, tokenizers.sentencepiece_like])
def test_a_prompt_is_that_of_a_row_with_the_same_instruction(kind, make, tmp_path):
    template = tokenizers.CHATML if make is tokenizers.byte_level else tokenizers.STRICT
    folder = make(tmp_path / "tokenizer", template)
    texts = [f"Name the capital of {n}." for n in range(400)]
    checked = check_rows([ROWS[kind](text) for text in texts], "test")
    assert checked.kind == kind
    rows = load(tokenize(checked, folder, tmp_path).folder)
    in_rows = {row.input_ids[: row.n_prompt_tokens] for split in rows.values() for row in split}
    assert {*map(tuple, prompt_tokens(open_tokenizer(folder), kind, texts))} == in_rows
    assert len(in_rows) == 400


def test_a_template_that_refuses_a_lone_question_says_so(tmp_path):
    refuses = "{{ raise_exception('a system message is needed') }}"
    tokenizer = open_tokenizer(tokenizers.byte_level(tmp_path, refuses))
    with pytest.raises(Refused, match="a system message is needed"):
        prompt_tokens(tokenizer, "chat", ["Name the capital of France."])
