"""What the tests on a real GPU share."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import GPT2Config, GPT2LMHeadModel

from trainables import demo
from trainables.values.workload import Workload


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def as_a_new_process() -> Iterator[Callable[[], None]]:
    """Each test begins as a worker does, and may begin again by calling this.

    A worker has one device and one dtype; accelerate refuses to change either within a process.
    """
    _forget()
    yield _forget
    _forget()


@pytest.fixture(scope="module")
def wide(workload, tmp_path_factory) -> Workload:
    """A float32 base of 4 layers x 256, so that what 4 bits save stands out; the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("wide-gpt2")
    shape = GPT2Config(
        n_layer=4, n_embd=256, n_head=4, n_positions=256, vocab_size=1024, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(shape).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((demo.FOLDER / name).read_bytes())
    return replace(workload, base_folder=str(folder), compute_dtype="float32")
