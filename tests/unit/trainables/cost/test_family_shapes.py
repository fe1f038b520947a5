"""The shapes over which predictions for model families are measured, and the table of their errors."""

import pytest

from tests.bench import memory_families
from tests.bench.memory_families import FAMILIES, FIRST_DRAW, N_SHAPES, SECOND_DRAW, drawn, predicted, tolerance_mib
from trainables.models.families.gated import gated_shape


def line_of(family, values, config, part=SECOND_DRAW):
    line = {"part": part, "family": family, "values": values, "config": config.to_dict()}
    return line | {"dtype": "bfloat16", "peak_mib": 0.0}


def test_at_least_60_shapes_are_held_out_and_none_of_them_is_seen():
    parts = {part: [(f, v, c) for f in FAMILIES for v, c in drawn(f, part)] for part in N_SHAPES}
    assert len(FAMILIES) == 5
    assert len(parts[SECOND_DRAW]) >= 60
    assert not [shape for shape in parts[SECOND_DRAW] if shape in parts["seen"] + parts[FIRST_DRAW]]
    for part in parts.values():
        configs = [config for _, _, config in part]
        assert {(c.precision, c.loop) for c in configs} == {
            (p, k) for p in ("16bit", "nf4") for k in ("standard", "lean")
        }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_drawn_shape_is_one_that_its_family_has(family):
    for part in N_SHAPES:
        for values, config in drawn(family, part):
            shape = gated_shape(values)
            assert set(config.targets) <= set(shape.modules)
            assert all(linear.inputs * linear.outputs % 64 == 0 for linear in shape.linears)
            assert config.max_length_tokens <= shape.context_tokens


def test_the_table_names_what_is_off_by_more_than_is_allowed(capsys):
    (values, config), (other, second) = list(drawn("llama", SECOND_DRAW))[:2]
    lines = [line_of("llama", values, config), line_of("llama", other, second)]
    lines[0]["peak_mib"] = predicted(lines[0])
    lines[1]["peak_mib"] = predicted(lines[1]) - 2 * tolerance_mib(predicted(lines[1]))
    memory_families.show(lines)
    table = capsys.readouterr().out.splitlines()
    (row,) = [line for line in table if line.startswith(f"{SECOND_DRAW} llama")]
    assert row.split()[-5] == "2"
    assert row.split()[-1] == "1"
    assert sum(line.startswith(f"{SECOND_DRAW}, llama: +") for line in table) == 1
