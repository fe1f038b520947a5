"""Conversations through chat templates: what the model reads, what it learns to write, and what is left out."""

import os
import signal
from collections import Counter
from datetime import date
from pathlib import Path
from time import monotonic, sleep

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.support import tokenizers
from trainables.data import template as templates
from trainables.data.chat import ChatRow, Message
from trainables.data.rows import CheckedRows, check_rows
from trainables.data.template import REWRITTEN, ChatTemplate
from trainables.data.time_limit import TookTooLong, time_limit
from trainables.data.tokenized import tokenize
from trainables.data.tokenizer import Encoder, open_tokenizer
from trainables.data.tokens import IGNORE, TokenRow, load, pad
from trainables.values.errors import DataError

SMOLLM2 = Path(os.environ.get("QLORA_SWEEP_SMOLLM2", "nowhere"))
"""Folder of SmolLM2-135M-Instruct; tests that read it skip where it is absent."""

TEXTS = st.text(alphabet="ab é\n\t.日", min_size=1, max_size=12).filter(str.strip)
CHATS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)


def chat(*texts: str, system: str | None = None) -> ChatRow:
    """User and assistant by turns."""
    messages = [Message("system", system)] if system is not None else []
    messages += [Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
    return ChatRow(messages=tuple(messages))


def opened(folder: Path) -> ChatTemplate:
    return ChatTemplate(open_tokenizer(folder))


def pieces_of(template: ChatTemplate, row: ChatRow) -> tuple[str, ...]:
    assert template.accepts(row), template.refused
    return template.pieces(row)


def supervised(folder: Path, row: ChatRow) -> list[str]:
    """Texts of the supervised tokens, response by response."""
    template = opened(folder)
    parts = Encoder(template.tokenizer, reads_special=True).pieces([pieces_of(template, row)])[0]
    return [template.tokenizer.decode(ids) for ids in parts[1::2]]


@pytest.fixture(scope="module")
def chatml(tmp_path_factory) -> dict[str, ChatTemplate]:
    """One tokenizer under templates that write the same texts."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("CHATML", "CHATML_MARKED", "MARKS_WITHOUT_END")}
    return {name: opened(tokenizers.byte_level(folder, getattr(tokenizers, name))) for name, folder in folders.items()}


@settings(max_examples=60)
@given(CHATS)
def test_supervised_tokens_decode_to_exactly_the_assistant_texts_and_their_end(chatml, turns):
    row = chat(*(text for turn in turns for text in turn))
    for template in chatml.values():
        encoder = Encoder(template.tokenizer, reads_special=True)
        parts = encoder.pieces([pieces_of(template, row)])[0]
        texts = [template.tokenizer.decode(ids) for ids in parts]
        assert texts[1::2] == [f"{answer}<|im_end|>" for _, answer in turns]
        whole = template.tokenizer.apply_chat_template([m._asdict() for m in row.messages], tokenize=False)
        assert "".join(texts) + "\n" == whole


@settings(max_examples=60)
@given(CHATS)
def test_marks_and_the_difference_of_prefixes_give_the_same_pieces(chatml, turns):
    row = chat(*(text for turn in turns for text in turn), system="Be brief.")
    pieces = {name: pieces_of(template, row) for name, template in chatml.items()}
    assert pieces["CHATML"] == pieces["CHATML_MARKED"] == pieces["MARKS_WITHOUT_END"]


@settings(max_examples=30)
@given(CHATS)
def test_what_is_read_has_the_tokens_that_the_model_is_asked_with(chatml, turns):
    """The tokens before each response are those of the conversation so far with the generation prompt."""
    template = chatml["CHATML"]
    row = chat(*(text for turn in turns for text in turn))
    parts = Encoder(template.tokenizer, reads_special=True).pieces([pieces_of(template, row)])[0]
    asked = [m._asdict() for m in row.messages[:1]]
    prompt = template.tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert parts[0] == prompt


def test_the_supervised_tokens_are_those_of_transformers_own_mask(chatml):
    template = chatml["CHATML_MARKED"]
    row = chat("Name the capital.", "Paris is.", "And two?", "three four")
    encoded = template.tokenizer.apply_chat_template(
        [m._asdict() for m in row.messages], return_dict=True, return_assistant_tokens_mask=True
    )
    theirs = [token for token, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    newline = template.tokenizer("\n")["input_ids"]
    parts = Encoder(template.tokenizer, reads_special=True).pieces([pieces_of(template, row)])[0]
    assert parts[1] + newline + parts[3] + newline == theirs  # the template's marks take in the line end


def test_a_template_that_rewrites_earlier_turns_trains_the_last_one_alone_and_is_counted(tmp_path):
    folder = tokenizers.byte_level(tmp_path, tokenizers.STRIPS_THOUGHTS)
    template = opened(folder)
    row = chat("one", "<think>hm</think>two", "three", "four")
    assert pieces_of(template, row)[1::2] == ("<think>\n\n</think>\n\nfour<|im_end|>",)
    assert "<|im_start|>assistant\ntwo<|im_end|>" in pieces_of(template, row)[0]
    assert set(template.shortened) == {REWRITTEN}
    assert pieces_of(opened(folder), chat("one", "two"))[1] == "<think>\n\n</think>\n\ntwo<|im_end|>"


def test_an_end_token_after_the_whole_conversation_alone_is_no_rewriting(tmp_path):
    template = opened(tokenizers.byte_level(tmp_path, tokenizers.CLOSES_WITH_END))
    learned = pieces_of(template, chat("one", "two", "three", "four"))[1::2]
    assert learned == ("two<|im_end|>", "four<|im_end|>\n<|endoftext|>")
    assert not template.shortened


def test_a_turn_rewritten_after_a_special_token_is_noticed_too(tmp_path):
    template = opened(tokenizers.byte_level(tmp_path, tokenizers.CHANNELS))
    learned = pieces_of(template, chat("one", "two", "three", "four"))[1::2]
    assert learned == ("<|endoftext|>none<|endoftext|>four<|im_end|>",)
    assert template.shortened == {REWRITTEN: 1}


def test_a_generation_prompt_that_no_turn_begins_with_is_refused_and_not_masked_wrongly(tmp_path):
    text = tokenizers.CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}")
    template = opened(tokenizers.byte_level(tmp_path, text))
    assert not template.accepts(chat("one", "two"))
    assert list(template.refused) == ["the chat template's generation prompt does not begin the assistant turn"]


@pytest.mark.parametrize("marks", [("", ""), ("{% generation %}", "{% endgeneration %}")])
def test_a_special_token_that_begins_a_turn_is_not_taken_for_its_end(tmp_path, marks):
    turn = marks[0] + "<|im_start|>{{ message['content'] }}\n" + marks[1]
    text = (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}" + turn + "{% else %}"
        "user: {{ message['content'] }}\n{% endif %}{% endfor %}"
    )
    template = opened(tokenizers.byte_level(tmp_path, text))
    learned = pieces_of(template, chat("one", "two", "three", "four"))[1::2]
    assert learned == ("<|im_start|>two\n", "<|im_start|>four\n")


@pytest.mark.parametrize(
    "expression",
    ["1 / 0", "2.0 ** 100000", "range(10 ** 7)", "'a' * 10 ** 14", "none.foo()", "''.__class__.__mro__", "m(1)"],
)
def test_an_expression_that_fails_refuses_the_conversation_and_ends_nothing(tmp_path, expression):
    endless = "{% macro m(x) %}{{ m(x) }}{% endmacro %}"
    folder = tokenizers.byte_level(tmp_path, endless + "{{ " + expression + " }}" + tokenizers.CHATML)
    template = opened(folder)
    assert not template.accepts(chat("one", "two"))
    assert next(iter(template.refused)).startswith("refused by the chat template: ")


def test_conversations_that_a_template_refuses_are_counted_by_reason(tmp_path):
    folder = tokenizers.sentencepiece_like(tmp_path, tokenizers.STRICT)
    template = opened(folder)
    twice = ChatRow(messages=(Message("user", "a"), Message("user", "b"), Message("assistant", "c")))
    first = ChatRow(messages=(Message("assistant", "a"), Message("user", "b"), Message("assistant", "c")))
    rows = [chat("a", "b"), twice, first, chat("a </s>", "b")]
    assert [template.accepts(row) for row in rows] == [True, False, False, False]
    order = "refused by the chat template: Conversation roles must alternate user/assistant/user/assistant/..."
    assert template.refused == {order: 2, "text holds the special token </s>": 1}


def test_the_assistant_speaking_first_is_refused_where_it_cannot_be_told_from_the_prompt(chatml):
    first = ChatRow(messages=(Message("assistant", "Hello"), Message("user", "b"), Message("assistant", "c")))
    template = ChatTemplate(chatml["CHATML"].tokenizer)
    assert not template.accepts(first)
    assert template.refused == {"the assistant speaks first": 1}
    assert ChatTemplate(chatml["CHATML_MARKED"].tokenizer).accepts(first)


def test_a_start_token_is_written_once_and_sentencepiece_adds_no_space_to_a_response(tmp_path):
    folder = tokenizers.sentencepiece_like(tmp_path, tokenizers.STRICT)
    rows = tuple(chat(f"one {i}", "two", "three", f"four {i}") for i in range(300))
    data = load(tokenize(CheckedRows(rows=rows, dropped={}), folder, tmp_path / "cache").folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = [tokenizer.apply_chat_template([m._asdict() for m in row.messages])["input_ids"] for row in rows]
    assert all(ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id for ids in whole)
    assert Counter(row.input_ids for part in data.values() for row in part) == Counter(map(tuple, whole))


DAYS = [
    "strftime_now('%d %b %Y')",
    'strftime_now( "%d %b %Y" )',
    "strftime_now(form)",
    "now('%d %b %Y')",
    "'100 ' if strftime_now('%%') != '%' else strftime_now(['%d', '%b', '%Y']|join(' '))",
]


@pytest.mark.parametrize("call", DAYS)
def test_tokens_do_not_depend_on_the_day_of_the_run(tmp_path, call):
    names = "{% set form = '%d %b %Y' %}{% set now = strftime_now %}"
    folder = tokenizers.byte_level(tmp_path, names + "Today is {{ " + call + " }}\n" + tokenizers.CHATML)
    assert pieces_of(opened(folder), chat("one", "two"))[0].startswith("Today is 26 Jul 2024\n")
    assert date.today() > templates.TODAY


@pytest.mark.parametrize("marks", [("", ""), ("{% generation %}", "{% endgeneration %}")])
def test_a_template_that_does_not_come_to_an_end_is_broken_off_and_named(tmp_path, marks):
    loops = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    folder = tokenizers.byte_level(tmp_path, tokenizers.CHATML + marks[0] + loops + marks[1])
    begin = monotonic()
    with pytest.raises(DataError, match=r"chat template of BASE_MODEL took over 0.3 s for one conversation of 2"):
        ChatTemplate(open_tokenizer(folder), limit_seconds=0.3).accepts(chat("one", "two"))
    assert monotonic() - begin < 3


@pytest.mark.parametrize(
    ("chance", "name"),
    [
        ("{{ ['a', 'b']|random }}", "random"),
        ("{{ ['a', 'b'] | random }}", "random"),
        ("{{ [['a', 'b']] | map('random') | first }}", "random"),
        ("{{ lipsum(n=1) }}", "lipsum"),
    ],
)
def test_a_template_that_draws_by_chance_is_refused_by_the_name_of_what_draws(chance, name, tmp_path):
    template = opened(tokenizers.byte_level(tmp_path, chance + tokenizers.CHATML))
    with pytest.raises(DataError, match=rf"chat template of BASE_MODEL uses Jinja's '{name}', .* chat_template\.jinja"):
        template.accepts(chat("one", "two"))


def test_a_template_that_only_speaks_of_chance_is_used(tmp_path):
    template = opened(tokenizers.byte_level(tmp_path, "You may be random. " + tokenizers.CHATML))
    assert pieces_of(template, chat("one", "two"))[0].startswith("You may be random. ")


def test_a_timer_that_was_set_before_goes_on_after_a_limit():
    reached = []
    handler = signal.signal(signal.SIGALRM, lambda *_: reached.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with time_limit(5.0):
            pass
        sleep(0.3)
        with time_limit(0.05), pytest.raises(TookTooLong):
            sleep(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert reached == [True]


def test_a_tokenizer_without_a_template_is_refused_with_what_to_do(tmp_path):
    folder = tokenizers.byte_level(tmp_path)
    rows = tuple(chat(f"one {i}", "two") for i in range(300))
    with pytest.raises(DataError, match=r"chat rows need a chat template.* has none; choose .* prompt and completion"):
        tokenize(CheckedRows(rows=rows, dropped={}), folder, tmp_path / "cache")


def test_a_data_set_of_which_the_template_refuses_all_is_refused_with_the_reasons(tmp_path):
    folder = tokenizers.sentencepiece_like(tmp_path, tokenizers.STRICT)
    rows = tuple(ChatRow(messages=(Message("user", "a"), *chat(f"b {i}", "c").messages)) for i in range(300))
    with pytest.raises(
        DataError, match=r"none of the 300 conversations can be used: 300 with refused .* must alternate"
    ):
        tokenize(CheckedRows(rows=rows, dropped={}), folder, tmp_path / "cache")


def test_what_a_template_cost_is_counted_and_said(tmp_path, caplog):
    folder = tokenizers.byte_level(tmp_path, tokenizers.STRIPS_THOUGHTS)
    rows = (*(chat(f"one {i}", "two", "three", "four") for i in range(300)), chat("<|im_end|>", "x"))
    counts = tokenize(CheckedRows(rows=rows, dropped={}), folder, tmp_path / "cache").counts
    assert counts["read"] == 301
    assert counts["dropped: text holds the special token <|im_end|>"] == 1
    assert counts[REWRITTEN] == 300
    assert caplog.messages == [
        "1 conversations: text holds the special token <|im_end|>",
        f"300 conversations: {REWRITTEN}",
    ]


@settings(max_examples=30)
@given(CHATS, st.integers(0, 400))
def test_labels_of_a_padded_batch_hold_the_assistant_texts_alone(chatml, turns, pad_id):
    """Whatever token pads, the end token too: it is never supervised."""
    template = chatml["CHATML"]
    row = chat(*(text for turn in turns for text in turn))
    parts = Encoder(template.tokenizer, reads_special=True).pieces([pieces_of(template, row)])[0]
    spans, ids = [], []
    for n, part in enumerate(parts):
        if n and n % 2 == 0:
            spans.append((len(ids), len(ids) + len(part)))
        ids += part
    token_row = TokenRow(input_ids=tuple(ids), n_prompt_tokens=len(parts[0]), later_prompts=tuple(spans))
    short = TokenRow(input_ids=(5, 6), n_prompt_tokens=1)
    _, labels = pad([token_row, short], max_length_tokens=512, pad_id=pad_id)
    learned = [[token for token in row if token != IGNORE] for row in labels.tolist()]
    assert template.tokenizer.decode(learned[0]) == "".join(f"{answer}<|im_end|>" for _, answer in turns)
    assert learned[1] == [6]


@pytest.mark.skipif(not (SMOLLM2 / "chat_template.jinja").is_file(), reason="QLORA_SWEEP_SMOLLM2 names no folder")
def test_smollm2s_own_template_gives_its_own_frame_and_end(tmp_path):
    assert supervised(SMOLLM2, chat("Hi", "Hello.", "And?", " So.")) == ["Hello.<|im_end|>", " So.<|im_end|>"]
    records = [
        {"conversations": [{"from": "human", "value": f"Say {i}"}, {"from": "gpt", "value": f"{i}."}]}
        for i in range(300)
    ]
    data = load(tokenize(check_rows(records, "x"), SMOLLM2, tmp_path).folder)
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    row = data["train"][0]
    prompt = tokenizer.decode(row.input_ids[: row.n_prompt_tokens])
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(row.response_tokens).endswith(".<|im_end|>")
