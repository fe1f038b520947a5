"""A token a row, over every family: the states and the cache that it has in transformers' own way."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.families import CASES, write
from trainables.evaluation.decoding import GreedyDecoder
from trainables.models import base_model
from trainables.models.cached_attention import Place, one_token_states

PROMPTS = ([5], [9, 8, 7, 6], list(range(300, 320)), [17] * 11)
N_NEW = 12


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_token_a_row_has_the_states_that_it_has_under_a_models_own_mask_and_is_kept_like_it(tmp_path, case):
    folder = base_model.find(str(write(case, tmp_path / "base")), tmp_path).folder
    core = AutoModelForCausalLM.from_pretrained(folder).eval()
    masked, plain = (GreedyDecoder(core, PROMPTS, n_new=N_NEW, ends=[]) for _ in range(2))
    for decoder in (masked, plain):
        decoder.first(core)
    place = Place(cache=plain._cache, starts=plain._n_padding[:, 0], at=plain._at)
    drawn = torch.randint(1, 200, (N_NEW, len(PROMPTS), 1), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tokens in drawn:
            expected = masked._states(core, tokens, masked._at)
            found = one_token_states(core, tokens, plain._positions(plain._at), place)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            for decoder in (masked, plain):
                decoder._at.add_(1)
    for ours, theirs in zip(plain._cache.layers, masked._cache.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.values, theirs.values, rtol=1e-4, atol=1e-5)
    assert core.config._attn_implementation == "sdpa"
