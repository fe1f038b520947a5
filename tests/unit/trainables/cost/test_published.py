"""Predictions against training peaks that others measured and published."""

from collections import Counter
from pathlib import Path

import pytest

from tests.bench import memory_published
from tests.bench.memory_published import rows
from trainables import cost


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_a_published_peak_is_predicted_within_5_per_cent(row):
    assert row.predicted_mib == pytest.approx(row.peak_mib, rel=0.05)


def test_the_published_rows_cover_what_is_promised():
    found = [row.recipe for row in rows()]
    assert len(found) == 15
    assert Counter((r.precision, r.prepare_kbit) for r in found) == {
        ("16bit", False): 7,
        ("nf4", True): 7,
        ("nf4", False): 1,
    }
    assert {r.double_quantization for r in found if r.is_quantized} == {True, False}
    assert {r.compute_dtype for r in found} == {"float16", "bfloat16"}


def test_the_table_says_each_row_and_fits_80_columns(capsys):
    memory_published.show()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for row in rows():
        (line,) = [line for line in lines if line.startswith(f"{row.name} ") and f"{row.peak_mib:.1f}" in line]
        assert f"{row.predicted_mib:.1f}" in line
    assert "0 of 15" in lines[-2]


def test_the_rooms_page_has_the_table():
    page = (Path(cost.__file__).parent / "README.md").read_text(encoding="utf-8")
    for row in rows():
        assert f"| {row.name} | {row.peak_mib:.1f} | {row.predicted_mib:.1f} | {row.error_per_cent:+.2f} |" in page
