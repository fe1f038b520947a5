"""GraphReaders on a CPU, whose graphs are the work itself: what they read is what an eager reader does."""

import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support import families
from tests.support.adapters import drawn_files
from trainables.capture.capture import attached_matrices
from trainables.comparison.compare import attached
from trainables.data.tokens import TokenRow
from trainables.evaluation import held_out
from trainables.evaluation.readers import EagerReader, GraphReader, Reader, ReaderBuffers, RowSets
from trainables.models import lora
from trainables.models.families import gpt2
from trainables.models.full_weights import drop_full_weights, keeping, kept_weights
from trainables.values.config import TrialConfig
from trainables.worker_cache import WorkerCache

Rows = tuple[TokenRow, ...]


class Uncaptured(GraphReader):
    """Does what a CUDA graph would replay, where the matrices are attached."""

    def _captured(self, work):
        return SimpleNamespace(replay=torch.no_grad()(work))


def drawn(n: int, seed: int, *, prompt: tuple[int, int] = (1, 30), response: tuple[int, int] = (1, 20)) -> Rows:
    """Rows of random tokens; `prompt` and `response` are least and largest lengths."""
    rng, rows = random.Random(seed), []
    for _ in range(n):
        n_prompt, n_response = rng.randint(*prompt), rng.randint(*response)
        ids = tuple(rng.randrange(1, 97) for _ in range(n_prompt + n_response))
        rows.append(TokenRow(input_ids=ids, n_prompt_tokens=n_prompt))
    return tuple(rows)


def assert_reads_as_if_attached(case: families.Case, sets: RowSets) -> None:
    """Adapters, the base alone and sets take turns; none leaves a trace in the next."""
    base, other, targets = families.tiny(case), families.tiny(case), case.family.targets
    widest = TrialConfig(precision="16bit", rank=64, alpha=1, targets=targets, dropout=0.0)
    reader = Uncaptured(base, widest, ReaderBuffers(base, sets), pool=None, stream=None)
    config = TrialConfig(precision="16bit", rank=5, alpha=10, targets=targets)
    some = TrialConfig(precision="16bit", rank=32, alpha=8, targets=targets[:1], seed=1)
    with attached_matrices(base, widest, reader._weights, scaling=1.0):
        for files in (drawn_files(other, config), None, drawn_files(other, some)):
            reader.load(lora.read_files(files) if files else None)
            with attached(other, files) if files else nullcontext(other) as model:
                for rows in (*sets.decoded, *sets.others, sets.decoded[0]):
                    assert_same(reader, EagerReader(model), rows, is_decoded=rows in sets.decoded)


def assert_same(captured: Reader, eager: Reader, rows: Rows, *, is_decoded: bool) -> None:
    torch.testing.assert_close(captured.states(rows), eager.states(rows), rtol=2e-4, atol=2e-4)
    if is_decoded:
        texts = eager.texts(rows)
        assert captured.texts(list(rows)) == texts
        assert len(texts) == min(len(rows), held_out.N_DECODED_ROWS)
        found, expected = captured.pooled(rows, texts), eager.pooled(rows, texts)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@families.every_case
def test_of_every_family_one_reader_reads_all_sets_with_each_adapter_as_if_it_were_attached(case):
    """Of the second set fewer are decoded, after longer prompts, in the same places."""
    sets = RowSets(decoded=(drawn(9, 1), drawn(4, 2, prompt=(20, 60))), others=(drawn(5, 3),))
    assert_reads_as_if_attached(case, sets)


@pytest.mark.parametrize(
    "sets",
    [
        RowSets(decoded=(drawn(1, 1), drawn(70, 2))),
        RowSets(decoded=(drawn(70, 1), drawn(3, 2, prompt=(30, 60)))),
        RowSets(decoded=(drawn(6, 1, prompt=(1, 230)), drawn(4, 2, prompt=(240, 250), response=(1, 5)))),
        RowSets(decoded=(drawn(5, 1), drawn(5, 1)), others=(drawn(5, 1),)),
    ],
    ids=["one row beside many", "few beside many", "up to the last position", "equal rows"],
)
def test_sets_of_any_sizes_share_the_places(sets):
    assert_reads_as_if_attached(families.CASES[0], sets)


def test_a_reader_of_a_4_bit_base_that_keeps_no_full_weights_reads_by_some_of_its_own_with_the_adapter(workload):
    base, other = (WorkerCache(workload, "cpu").base("nf4") for _ in range(2))
    for each in (base, other):
        drop_full_weights(each)
    sets = RowSets(decoded=(drawn(6, 1),))
    widest = TrialConfig(precision="nf4", rank=64, alpha=1, targets=gpt2.TARGETS, dropout=0.0)
    files = drawn_files(other, TrialConfig(precision="nf4", rank=5, alpha=10, targets=gpt2.TARGETS))
    with keeping(base, ()):
        reader = Uncaptured(base, widest, ReaderBuffers(base, sets), pool=None, stream=None)
        reader.load(lora.read_files(files))
        with attached_matrices(base, widest, reader._weights, scaling=1.0), attached(other, files) as model:
            assert_same(reader, EagerReader(model), sets.decoded[0], is_decoded=True)
    assert not kept_weights(base)
