"""How much disk a sweep takes, said before it starts."""

import search_spaces
from orchestrator.driver import disk
from tests.support.sweeps import GRID, make
from trainables.models.families.gpt2 import HUB_SHAPES

MEDIUM = HUB_SHAPES["gpt2-medium"]


def grid(**values) -> dict:
    fixed = GRID["fixed"] | {"targets": ["attn.c_attn"], "precision": "16bit"} | values
    return GRID | {"parameters": {"rank": {"values": [8, 64]}}, "fixed": fixed}


def test_adapters_of_a_grid_take_what_their_float32_matrices_do():
    bytes_of_rank_1 = MEDIUM.n_layer * 4 * (1024 + 3072)
    line = disk.text(make(grid(), base_model="gpt2-medium", n_trials=2))
    assert f"predicted disk: {bytes_of_rank_1 * (8 + 64) / 2**20:.0f} MiB of adapters if nothing is pruned" in line
    assert f"weights, {2 * MEDIUM.n_weights / 2**30:.1f} GiB at 16 bits" in line


def test_4_bit_trials_bring_their_baselines_and_many_adapters_are_counted_in_gib():
    line = disk.text(make(grid(precision="nf4"), base_model="gpt2-medium", n_trials=2))
    twice = 2 * MEDIUM.n_layer * 4 * (1024 + 3072) * (8 + 64) / 2**20
    assert f"{twice:.0f} MiB of adapters" in line
    large = disk.text(make(search_spaces.load("pareto"), base_model="gpt2-medium"))
    assert "GiB of adapters" in large


def test_nothing_is_said_of_a_base_whose_shape_is_not_known():
    assert disk.text(make(base_model="somebody/unknown")) is None
