"""Figures that others published: NF4's error, and the bytes of loaded 7 B and 8 B models."""

import numpy as np
import pytest

from tests.bench import outside
from tests.bench.outside import MAX_DEVIATIONS, MAX_RESIDENT_PER_CENT, RESIDENT


@pytest.mark.parametrize("round_trip", [outside.by_numpy, outside.by_bitsandbytes])
def test_nf4_has_the_error_that_bitsandbytes_publishes(round_trip):
    errors = outside.mean_errors(round_trip, 1)
    assert outside.deviations(errors) < MAX_DEVIATIONS, errors


def test_the_emulation_and_bitsandbytes_round_nearly_every_weight_alike():
    weights = np.random.default_rng(1).standard_normal((64, 1024), dtype=np.float32)
    same = np.isclose(outside.by_numpy(weights), outside.by_bitsandbytes(weights), rtol=1e-5, atol=1e-7)
    assert same.mean() > 0.9999


@pytest.mark.parametrize("row", RESIDENT, ids=lambda row: f"{row.model}, batch {row.batch_size}")
def test_predicted_resident_memory_is_that_of_models_that_others_loaded(row):
    assert abs(row.error_per_cent) < MAX_RESIDENT_PER_CENT


def test_the_bench_prints_every_published_figure(capsys):
    outside.show(1)
    printed = capsys.readouterr().out
    assert f"{outside.PUBLISHED_ERROR:.6f}" in printed
    assert all(f"{row.published:,}" in printed for row in RESIDENT)
    assert "0 of 15 off by more than" in printed
