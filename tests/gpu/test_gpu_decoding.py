"""Decoding on a real GPU, a token a row by one kernel: against attention by its formula, and against no cache."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.families import CASES, write
from trainables.evaluation.decoding import greedy_texts
from trainables.models import base_model
from trainables.models.compile_ahead import compile_ahead
from trainables.models.kernels import can_launch

decode_kernels = pytest.importorskip("trainables.models.decode_kernels", reason="no Triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
N_COLUMNS, AT = 224, 200
STARTS = (0, 37, 136, 199, 200)
"""Of rows: with a tile of columns that is not full, with the token before alone, with no token before."""


def by_formula(query, keys, values, *, starts, at, window, scale) -> torch.Tensor:
    """Softmax over the columns that each row sees, in float64; the new token is in keys and values already."""
    columns = torch.arange(keys.shape[2], device=keys.device)
    seen = (columns >= starts[:, None]) & (columns <= at)
    if window is not None:
        seen &= columns > at - window
    group = query.shape[1] // keys.shape[1]
    of_head = [x.double().repeat_interleave(group, dim=1) for x in (keys, values)]
    scores = scale * query.double() @ of_head[0].transpose(-1, -2)
    shares = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(dim=-1)
    return (shares @ of_head[1]).transpose(1, 2)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "groups", "head_dim"), [(16, 16, 64), (12, 4, 64), (8, 1, 128), (6, 3, 24)])
@pytest.mark.parametrize("window", [None, 5, 100])
def test_one_token_reads_the_columns_of_its_row_and_is_written_behind_them(dtype, heads, groups, head_dim, window):
    generator = torch.Generator("cuda").manual_seed(heads + head_dim)
    n_rows, sizes = len(STARTS), [heads * head_dim, groups * head_dim, groups * head_dim]
    joined = torch.randn(n_rows, 1, sum(sizes), device="cuda", generator=generator).to(dtype)  # as GPT-2's come
    query, key, value = (x.unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in joined.split(sizes, dim=-1))
    shape = (n_rows, groups, N_COLUMNS, head_dim)
    keys, values = (torch.randn(shape, device="cuda", generator=generator).to(dtype) for _ in range(2))
    starts, at = torch.tensor(STARTS, device="cuda"), torch.tensor([AT], device="cuda")
    of_row = {"starts": starts, "at": at, "window": window, "scale": 0.2}
    found_keys, found_values = keys.clone(), values.clone()
    found = decode_kernels.attend(query, key, value, found_keys, found_values, **of_row)
    keys[:, :, AT], values[:, :, AT] = key[:, :, 0], value[:, :, 0]
    expected = by_formula(query, keys, values, **of_row)
    assert torch.equal(found_keys, keys)
    assert torch.equal(found_values, values)
    assert (found.dtype, found.shape) == (dtype, (n_rows, 1, heads, head_dim))
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("head_dim", decode_kernels.USUAL_HEAD_DIMS)
def test_what_is_compiled_ahead_is_what_decoding_needs(head_dim):
    def n_compiled() -> int:
        return len(decode_kernels._attend.device_caches[torch.cuda.current_device()][0])

    decode_kernels._attend.device_caches.clear()  # of tests before this one
    assert n_compiled() == 0  # makes it anew: threads that do so at once lose what one of them compiled but on disk
    compile_ahead(torch.bfloat16).wait()
    before = n_compiled()
    query, key, value = torch.randn(3, 2, 6, 1, head_dim, device="cuda").bfloat16()
    keys, values = torch.zeros(2, 2, 6, 40, head_dim, device="cuda").bfloat16()
    of_row = {"starts": torch.zeros(2, dtype=torch.int64, device="cuda"), "at": torch.tensor([7], device="cuda")}
    decode_kernels.attend(query, key, value, keys, values, window=None, scale=0.3, **of_row)
    assert n_compiled() == before > 0


PROMPTS = ([5], [9, 8, 7, 6], list(range(300, 320)), [17] * 11)
N_NEW = 20


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_greedy_text_of_every_family_is_that_of_a_loop_without_a_cache(tmp_path, case):
    folder = base_model.find(str(write(case, tmp_path / "base")), tmp_path).folder
    core = AutoModelForCausalLM.from_pretrained(folder).eval().cuda()
    assert can_launch()
    expected = []
    with torch.no_grad():
        for prompt in PROMPTS:
            ids = list(prompt)
            for _ in range(N_NEW):
                ids.append(int(core(input_ids=torch.tensor([ids], device="cuda")).logits[0, -1].argmax()))
            expected.append(ids[len(prompt) :])
    assert len({token for text in expected for token in text}) > len(PROMPTS)
    assert greedy_texts(core, PROMPTS, n_new=N_NEW, ends=[]) == expected
