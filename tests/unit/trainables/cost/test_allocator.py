"""The replayed allocator against its rules by hand, and against a plain one that knows every byte."""

from hypothesis import given
from hypothesis import strategies as st

from trainables.cost.allocator import SEGMENT, SMALL, Pool, unsplit_bytes
from trainables.cost.recipe import stock
from trainables.cost.resident import unsplit_weights
from trainables.models.families.gpt2 import HUB_SHAPES
from trainables.values.results import MIB

SIZES = st.lists(st.integers(1, 30 * MIB), max_size=30)


def test_a_tensor_of_11_mib_keeps_the_whole_of_its_12_mib():
    assert unsplit_bytes([11 * MIB] * 3) == 3 * MIB


def test_of_10_5_mib_the_rest_of_1_5_is_free_for_another():
    assert unsplit_bytes([21 * MIB // 2]) == 0
    assert unsplit_bytes([21 * MIB // 2, 5 * MIB // 4]) == MIB // 4


def test_the_last_tensor_of_a_20_mib_segment_keeps_a_rest_of_up_to_1_mib():
    assert unsplit_bytes([19 * MIB // 4] * 3) == 0
    assert unsplit_bytes([19 * MIB // 4] * 4) == MIB
    assert unsplit_bytes([9 * MIB // 2] * 4) == 0  # 2 MiB are left


def test_small_tensors_leave_nothing():
    assert unsplit_bytes([SMALL] * 50) == 0


def test_a_4_bit_weight_fills_what_the_full_one_before_it_has_left():
    """GPT-2 Medium on a GPU had 12.1 MiB beside its 72 weights of more than 1 MiB (one H200)."""
    recipe = stock(precision="nf4", rank=1, targets=(), batch_size=1, max_length_tokens=1, compute_dtype="bfloat16")
    assert abs(unsplit_weights(HUB_SHAPES["gpt2-medium"], recipe) / MIB - 12.1) < 0.2


@given(SIZES)
def test_no_tensor_keeps_more_than_1_mib_beyond_its_own(sizes):
    large = [size for size in sizes if size > SMALL]
    assert 0 <= unsplit_bytes(sizes) <= len(large) * SMALL


@given(st.lists(st.tuples(st.integers(SMALL + 1, 30 * MIB), st.integers(0, 5)), max_size=30))
def test_blocks_never_overlap_and_all_of_a_segment_is_free_once_its_tensors_are(takes):
    """Each tensor is followed by so many that are freed, the oldest first."""
    pool, live = Pool(), []
    for size, n_freed in takes:
        block = pool.take(size)
        assert size <= block[0] <= size + SMALL
        for given_size, start in live:
            assert block[1] + block[0] <= start or start + given_size <= block[1]
        live.append(block)
        for freed in live[:n_freed]:
            pool.give(freed)
        del live[:n_freed]
    whole = Pool()
    first = [whole.take(3 * MIB) for _ in range(6)]
    for block in first:
        whole.give(block)
    assert whole.take(SEGMENT - SMALL) == (SEGMENT, 0)
