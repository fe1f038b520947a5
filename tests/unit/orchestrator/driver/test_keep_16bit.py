"""Modules kept at 16 bits, in the settings and the search: `--keep-16bit`, a space's `keep_16bit`, shared baselines."""

import pytest

import search_spaces
from orchestrator.driver import plan
from tests.support.sweeps import GRID, Desk, make, similarity, space
from trainables.values.errors import ConfigError

BLOCK = "transformer.h.0"
EACH_MODULE = [f"{BLOCK}.{name}" for name in ("mlp.c_proj", "attn.c_attn", "attn.c_proj", "mlp.c_fc")]


def chosen(space_name="diagnostic", **given):
    chosen = {"space": space_name, "trials": None, "base_model": "demo", "data": "demo"}
    return plan.choose("t", "cpu", chosen, given)


@pytest.mark.parametrize("said", [",".join(EACH_MODULE), EACH_MODULE, [BLOCK], f" {BLOCK} , {BLOCK}"])
def test_4_bit_trials_keep_what_was_said_and_16_bit_trials_have_nothing_to_keep(said):
    settings = chosen(keep_16bit=said)
    assert settings.keep_16bit == (BLOCK,)
    assert settings.config({"precision": "nf4", "rank": 2}).keep_16bit == (BLOCK,)
    assert settings.config({"precision": "16bit", "rank": 2}).keep_16bit == ()


def test_a_space_may_search_what_is_kept(tmp_path):
    path = tmp_path / "kept.yaml"
    path.write_text(
        "method: grid\n"
        "parameters: {precision: {values: [16bit, nf4]}, keep_16bit: {values: [[], [transformer.h.0]]}}\n"
        "fixed: {rank: 2, alpha: 4, targets: [qkv]}\n"
    )
    settings = chosen(str(path))
    configs = {settings.config(point) for point in settings.space.grid()}
    assert {(c.precision, c.keep_16bit) for c in configs} == {("16bit", ()), ("nf4", ()), ("nf4", (BLOCK,))}


@pytest.mark.parametrize(
    ("precisions", "fixed", "said", "words"),
    [
        (["16bit"], {}, BLOCK, "every trial of space t is at 16 bits"),
        (["nf4"], {"keep_16bit": [BLOCK]}, BLOCK, "leave one of them out"),
        (["16bit"], {"keep_16bit": [BLOCK]}, "", "every trial is at 16 bits"),
    ],
)
def test_what_could_never_be_kept_is_refused(precisions, fixed, said, words):
    parameters = {"rank": {"values": [1, 2]}, "precision": {"values": precisions}}
    with pytest.raises(ConfigError, match=words):
        make(space(GRID, name="t", parameters=parameters, fixed={**GRID["fixed"], **fixed}), keep_16bit=said)


@pytest.mark.parametrize("given", [{"keep_16bit": "transformer.h.00"}, {"keep_16bit": "model.layers.0"}])
def test_a_module_that_the_base_lacks_is_refused_before_anything_is_loaded(given):
    with pytest.raises(ConfigError, match=r"keep_16bit: .*transformer\.h\."):
        chosen(**given)


def test_two_4_bit_trials_that_differ_in_what_they_keep_share_one_baseline_and_both_are_compared(tmp_path):
    parameters = {"rank": {"values": [2]}, "precision": {"values": ["nf4"]}}
    parameters["keep_16bit"] = {"values": [[], [BLOCK]]}
    desk = Desk(tmp_path, make(search_spaces.parse({**GRID, "parameters": parameters}, source="test")))
    desk.finish()
    halves = [trial for trial in desk.candidates if trial.config.precision == "nf4"]
    assert [trial.config.keep_16bit for trial in halves] == [(), (BLOCK,)]
    assert {desk.ledger.entry(trial.key).result.similarity for trial in halves} == {similarity()}
    assert sum(trial.origin == "baseline" for trial in desk.candidates) == 1
    told = [trial.user_attrs["key"] for trial in desk.study.trials if "key" in trial.user_attrs]
    assert sorted(told) == sorted(trial.key for trial in halves)
