"""From names of a base and of rows to both on this machine."""

import json

from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tests.support import tokenizers
from trainables.data.tokens import load
from trainables.models import inputs


def test_conversations_under_another_column_name_reach_a_workload_as_tokens(tmp_path):
    base = tokenizers.byte_level(tmp_path / "base", tokenizers.CHATML_MARKED)
    shape = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=512, n_positions=96, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(shape).save_pretrained(base)
    turns = [
        [{"from": "human", "value": f"Say {i}"}, {"from": "gpt", "value": f"{i}. " * (1 + i % 40)}] for i in range(400)
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"dialogue": turn}) for turn in turns))
    found = inputs.fetch(str(base), str(rows), tmp_path / "cache", columns="conversations=dialogue")
    workload = found.workload("float32")
    assert (workload.data, workload.data_split, workload.columns) == (str(rows), None, "conversations=dialogue")
    assert workload.data_digest == found.tokens.digest
    splits = load(workload.data_folder)
    assert max(len(row.input_ids) for name in ("validation", "test") for row in splits[name]) == 96, (
        "as many as it reads"
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    whole = [row for row in splits["train"] if len(row.input_ids) < 96]
    assert {tokenizer.decode(row.input_ids[-1:]) for row in whole} == {"<|im_end|>"}
