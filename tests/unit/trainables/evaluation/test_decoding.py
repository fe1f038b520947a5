"""Greedy text of many prompts at once against one prompt at a time, without cache or padding."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support import families
from trainables import demo
from trainables.evaluation.decoding import greedy_texts
from trainables.models import base_model, lora
from trainables.models.architecture import context_of
from trainables.models.families.gpt2 import TARGETS
from trainables.values.config import TrialConfig

END = 0
PROMPTS = ([5], [9, 8, 7, 6], list(range(300, 340)), [17] * 11)


@pytest.fixture(scope="module", params=["16bit", "nf4"])
def model(request, workload):
    """The demo's base under an adapter that is not without effect."""
    base = base_model.load(replace(workload, base_folder=str(demo.FOLDER)), request.param, "cpu")
    config = TrialConfig(precision=request.param, rank=4, alpha=8, targets=TARGETS)
    tuned = lora.attach(base, config, base_name="demo").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.02, generator=generator)
    return tuned


@torch.no_grad()
def plain(model, prompt: list[int], n_new: int, end: int) -> list[int]:
    text: list[int] = []
    while len(text) < n_new and end not in text:
        logits = model(input_ids=torch.tensor([prompt + text]), use_cache=False).logits
        text.append(int(logits[0, -1].argmax()))
    return text


@pytest.mark.parametrize("n_new", [1, 2, 3, 24])
def test_each_prompt_of_a_batch_is_continued_as_if_it_were_alone(model, n_new):
    assert greedy_texts(model, PROMPTS, n_new=n_new, ends=[END]) == [plain(model, p, n_new, END) for p in PROMPTS]


def test_a_text_does_not_depend_on_the_prompts_beside_it(model):
    together = greedy_texts(model, PROMPTS, n_new=12, ends=[END])
    alone = [greedy_texts(model, [prompt], n_new=12, ends=[END])[0] for prompt in PROMPTS]
    backwards = greedy_texts(model, PROMPTS[::-1], n_new=12, ends=[END])[::-1]
    assert together == alone == backwards
    assert len({tuple(text) for text in together}) > 1, "all texts are equal: the test shows too little"


def test_a_text_ends_with_the_first_end_token_even_where_it_is_the_first_of_all(model):
    whole = plain(model, PROMPTS[2], 12, end=-1)
    for end in set(whole):
        (text,) = greedy_texts(model, [PROMPTS[2]], n_new=12, ends=[end])
        assert text == whole[: whole.index(end) + 1]


def test_on_a_cpu_nothing_is_read_after_every_text_has_ended(model):
    whole = plain(model, PROMPTS[2], 12, end=-1)
    reads: list[int] = []
    hook = model.get_base_model().transformer.register_forward_hook(lambda *_: reads.append(1))
    try:
        for end in set(whole):
            reads.clear()
            (text,) = greedy_texts(model, [PROMPTS[2]], n_new=12, ends=[end])
            assert len(reads) == len(text)
    finally:
        hook.remove()


def test_an_end_token_within_a_prompt_ends_nothing(model):
    prompt = [9, END, 8, END]
    assert greedy_texts(model, [prompt, PROMPTS[2]], n_new=8, ends=[END])[0] == plain(model, prompt, 8, END)


def test_a_prompt_and_its_text_may_fill_the_base_to_its_last_position(model):
    prompt = [int(i) for i in torch.randint(1, 1024, (250,), generator=torch.Generator().manual_seed(2))]
    assert greedy_texts(model, [prompt, [5]], n_new=6, ends=[END])[0] == plain(model, prompt, 6, END)


def test_a_long_prompt_is_read_whole_and_continued_to_the_bases_last_position_while_the_others_go_on(model):
    prompt = [int(i) for i in torch.randint(1, 1024, (251,), generator=torch.Generator().manual_seed(2))]
    long, short = greedy_texts(model, [prompt, PROMPTS[2]], n_new=24, ends=[])
    assert long == plain(model, prompt, 5, end=-1)
    assert short == plain(model, PROMPTS[2], 24, end=-1)


# --- a base of no family described here


@pytest.mark.parametrize("case", families.UNKNOWN, ids=lambda case: case.name)
def test_prompts_of_an_unknown_base_are_continued_together_as_each_is_alone(case, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(families.write(case, tmp_path)).eval()
    room = context_of(base.config)
    prompts = [*PROMPTS, [7] * (room - 3), [9] * (room - 3)]
    texts = greedy_texts(base, prompts, n_new=9, ends=[END])
    assert texts == [plain(base, prompt, min(9, room - len(prompt)), END) for prompt in prompts]


BART = families.Case(
    name="BART's decoder, positions of its own",
    model_type="bart",
    values={
        "d_model": 64,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 128,
        "is_decoder": True,
    },
)


def test_a_base_that_counts_its_tokens_itself_reads_one_prompt_at_a_time():
    base = families.tiny(BART)
    base.generation_config.forced_eos_token_id = None  # its own, at the longest text
    prompts = [[5], [9, 8, 7, 6], [17] * 11]
    texts = greedy_texts(base, prompts, n_new=9, ends=[END])
    assert texts == [plain(base, prompt, 9, END) for prompt in prompts]


def test_a_base_with_a_state_that_cannot_be_masked_reads_one_prompt_at_a_time(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(families.write(families.UNKNOWN[0], tmp_path)).eval()
    n_read = []
    base.register_forward_pre_hook(lambda _, given, named: n_read.append(len(named["input_ids"])), with_kwargs=True)
    greedy_texts(base, PROMPTS, n_new=2, ends=[END])
    assert set(n_read) == {len(PROMPTS)}
    base._is_stateful = True
    n_read.clear()
    greedy_texts(base, PROMPTS, n_new=2, ends=[END])
    assert set(n_read) == {1}
