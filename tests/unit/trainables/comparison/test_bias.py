"""The paired probe of bias: distances against plain loops, no gap between equal words."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from trainables.comparison import bias
from trainables.evaluation.held_out import response_states
from trainables.models import lora
from trainables.values.findings import BiasShift


def rows_of(folder, kind="Alpaca", n_tokens=128):
    return bias.prompt_rows(folder, kind, n_tokens)


def gaps_of(model, folder, kind="Alpaca"):
    return bias.gaps(model, response_states(model, rows_of(folder, kind)))


def p_of(model, prompts):
    return bias.next_token_probabilities(model, response_states(model, bias.as_rows(prompts)))


@pytest.fixture(scope="module", params=["16bit", "nf4"])
def base(request, cache):
    return cache.base(request.param)


def test_every_instruction_of_a_pair_is_the_other_with_one_word_changed():
    found = list(bias.instructions())
    assert Counter(about for about, _, _ in found) == {about: 3 * 8 for about in bias.WORDS}
    assert {"gender", "origin", "religion", "age"} == set(bias.WORDS)
    assert len(set(found)) == len(found)
    pairs = {tuple(sorted(pair)) for words in bias.WORDS.values() for pair in words}
    for _, first, second in found:
        assert first != second
        assert any(
            first.replace(f"an {a}", f"a {a}").replace(a, b) == second.replace(f"an {b}", f"a {b}")
            for pair in pairs
            for a, b in (pair, pair[::-1])
        )
        assert not {" a a", " a e", " a i", " a o"} & {first[i : i + 4] for i in range(len(first))}, "needs 'an'"


def test_gaps_are_the_total_variation_distances_of_a_plain_loop(base, tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder, trust_remote_code=False)

    def p(text):
        framed = f"### Instruction:\n{text}\n\n### Response:\n"
        ids = torch.tensor([tokenizer(framed, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            return base(input_ids=ids, use_cache=False).logits[0, -1].double().softmax(dim=0).numpy()

    found = gaps_of(base, tiny_folder)
    expected: dict[str, list[float]] = {}
    for about, first, second in bias.instructions():
        a, b = p(first), p(second)
        expected.setdefault(about, []).append(a[a > b].sum() - b[a > b].sum())  # largest difference over events
    assert list(found) == list(expected)
    for about, gaps in found.items():
        assert gaps.shape == (24,)
        np.testing.assert_allclose(gaps, expected[about], atol=1e-5)
        assert 0 < gaps.min() < gaps.max() <= 1


def test_equal_prompts_have_no_gap_and_reading_repeats_exactly(base, tiny_folder):
    prompts = [[5, 6, 7], [5, 6, 7], [9], [9]]
    p = p_of(base, prompts)
    assert torch.equal(p[0::2], p[1::2])
    assert torch.equal(p, p_of(base, prompts))
    first, second = gaps_of(base, tiny_folder), gaps_of(base, tiny_folder)
    assert all(np.array_equal(first[about], second[about]) for about in first)


def test_other_prompts_change_no_prompts_distribution(base):
    torch.testing.assert_close(p_of(base, [[5, 6, 7], [9] * 40])[:1], p_of(base, [[5, 6, 7]]))


def test_the_token_that_stands_for_a_response_changes_nothing(base, tiny_folder):
    rows = rows_of(tiny_folder)
    others = [replace(row, input_ids=(*row.input_ids[:-1], 7)) for row in rows]
    assert torch.equal(response_states(base, rows), response_states(base, others))


def test_prompts_longer_than_what_is_read_leave_no_probe(tiny_folder, caplog):
    longest = max(len(row.input_ids) for row in rows_of(tiny_folder))
    assert len(rows_of(tiny_folder, n_tokens=longest)) == 2 * len(list(bias.instructions()))
    assert rows_of(tiny_folder, n_tokens=longest - 1) == ()
    assert "longer than" in caplog.text


def test_the_adapter_is_read_through(cache, small_config, tiny_folder):
    bare = gaps_of(cache.base("16bit"), tiny_folder)
    model = lora.attach(cache.base("16bit"), small_config(), base_name="tiny")
    try:
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p)
        tuned = gaps_of(model, tiny_folder)
    finally:
        lora.detach(model)
    assert all(not np.allclose(tuned[about], bare[about]) for about in bare)


def test_the_prompts_are_of_the_kind_of_rows_that_the_model_was_tuned_on(cache, tiny_folder, tmp_path):
    base, folder = cache.base("16bit"), shutil.copytree(tiny_folder, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text("User: {{ messages[0]['content'] }} Assistant:")
    found = {kind: gaps_of(base, folder, kind) for kind in ("Alpaca", "chat", "completion")}
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    asked = [text for about, *pair in bias.instructions() for text in pair if about == "age"]
    framed = [f"User: {text} Assistant:" for text in asked]
    for kind, texts in (("chat", framed), ("completion", asked)):
        p = p_of(base, tokenizer(texts, add_special_tokens=False)["input_ids"])
        expected = (p[0::2] - p[1::2]).abs().sum(dim=1) / 2
        np.testing.assert_allclose(found[kind]["age"], expected.numpy(), atol=1e-7)
    assert not np.allclose(found["Alpaca"]["age"], found["chat"]["age"])


def test_a_template_that_refuses_a_lone_question_leaves_no_probe_and_stops_nothing(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('a system message is needed') }}")
    assert rows_of(folder, "chat") == ()
    assert bias.shifts({}, {}) == ()


def test_a_shift_is_the_mean_paired_difference():
    rng = np.random.default_rng(0)
    before = {"age": rng.uniform(size=32), "gender": rng.uniform(size=32)}
    after = {"age": before["age"] + rng.normal(0.05, 0.01, size=32), "gender": before["gender"]}
    age, gender = bias.shifts(before, after)
    assert (age.about, gender.about, age.n_prompts) == ("age", "gender", 32)
    assert age.change.value == pytest.approx((after["age"] - before["age"]).mean())
    assert 0.04 < age.change.low < age.change.high < 0.06, "paired: the spread of the prompts drops out"
    assert age.gap_16bit.value == pytest.approx(before["age"].mean())
    assert age.gap_nf4.value == pytest.approx(after["age"].mean())
    assert isinstance(gender, BiasShift)
    assert (gender.change.value, gender.change.low, gender.change.high) == (0, 0, 0)
    (few,) = bias.shifts({"age": before["age"][:24]}, {"age": after["age"][:24]})
    assert few.change.value == pytest.approx((after["age"] - before["age"])[:24].mean())
    assert (few.change.low, few.gap_16bit.high) == (None, None), "of 24 prompts there is no interval"
