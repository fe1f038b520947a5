"""Attention over rows that lie one after the other, on a real GPU: FlashAttention's kernel against a padded batch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainables.models import padding_free
from trainables.models.padding_free import FlatRows
from trainables.worker_cache import WorkerCache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]

LENGTHS = (9, 130, 64, 1)


class Attention(nn.Module):
    """What transformers' attention asks of its module."""

    is_causal = True

    def __init__(self, n_groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = n_groups


def drawn(n_heads: int, n_kv_heads: int, head_dim: int) -> list[torch.Tensor]:
    """Query, key, value, and a gradient of the output; float32."""
    generator = torch.Generator("cuda").manual_seed(0)
    sizes = [n_heads, n_kv_heads, n_kv_heads, n_heads]
    return [torch.randn(1, n, sum(LENGTHS), head_dim, generator=generator, device="cuda") for n in sizes]


def read(tensors, flat: FlatRows, **kwargs) -> list[torch.Tensor]:
    """Output and gradients of query, key and value, in float64."""
    *inputs, upstream = tensors
    inputs = [x.detach().requires_grad_() for x in inputs]
    module = Attention(inputs[0].shape[1] // inputs[1].shape[1])
    out, _ = padding_free._attend(module, *inputs, None, flat=flat, scaling=0.3, **kwargs)
    out.backward(upstream.transpose(1, 2))
    return [t.double() for t in (out.detach(), *(x.grad for x in inputs))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("window", [None, 20, 500])
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), [(4, 4, 64), (4, 2, 32), (2, 2, 20)])
def test_attention_in_16_bits_is_that_in_32_up_to_rounding(dtype, window, n_heads, n_kv_heads, head_dim):
    """Whether the kernel serves (heads of a multiple of 8, no window) or the rows are padded for it."""
    flat = FlatRows.on_host(LENGTHS).to("cuda")
    exact = [x.to(dtype).float() for x in drawn(n_heads, n_kv_heads, head_dim)]
    expected = read(exact, flat, sliding_window=window)
    found = read([x.to(dtype) for x in exact], flat, sliding_window=window)
    eps = torch.finfo(dtype).eps
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < eps


def test_the_kernel_serves_where_it_can():
    query, *_ = drawn(4, 2, 64)
    assert not padding_free._has_kernel(query)
    assert padding_free._has_kernel(query.bfloat16()) == (torch.cuda.get_device_capability() >= (8, 0))
    assert not padding_free._has_kernel(query.bfloat16()[..., :20])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_captured_rows_may_be_of_other_lengths_at_each_replay(dtype):
    tensors = [x.to(dtype) for x in drawn(4, 4, 64)]
    lengths = torch.tensor(LENGTHS, device="cuda")

    def work() -> list[torch.Tensor]:
        return read(tensors, FlatRows.of(lengths, n_tokens=sum(LENGTHS), length=150))

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        captured = work()
    for n_tokens in (LENGTHS, (100, 4, 50, 50)):
        lengths.copy_(torch.tensor(n_tokens))
        graph.replay()
        expected = read(tensors, FlatRows.on_host(n_tokens).to("cuda"))
        for ours, theirs in zip(captured, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [64, 192, 256])
def test_gradients_are_finite_where_every_score_is_far_below_zero(wide, length):
    """cuDNN's are not, with a mask and at 64 and 192 tokens on Hopper: https://github.com/pytorch/pytorch/issues/196678"""
    WorkerCache(wide, "cuda").base("16bit")  # a base on a GPU is the end of cuDNN's attention in this process
    query, key, value = (0.1 * torch.randn(4, 2, length, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    query[..., 0], key[..., 0] = 1.0, -120 * 8
    tensors = [x.requires_grad_() for x in (query, key, value)]
    mask = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()[None, None]
    out = F.scaled_dot_product_attention(*tensors, attn_mask=mask)
    out.backward(torch.randn_like(out))
    assert all(x.grad.isfinite().all() for x in tensors)
