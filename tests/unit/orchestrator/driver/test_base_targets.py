"""Settings and their base: groups resolved on the driver, coverage said, a base of no family run the generic way."""

import json
import re
from contextlib import closing
from pathlib import Path

import pytest

import search_spaces
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.driver import base_targets, plan, sweep
from orchestrator.driver.ready import Ready, SweepDevice
from orchestrator.ledger import Ledger
from orchestrator.settings import stored
from tests.support.families import CASES, UNKNOWN, write
from tests.support.sweeps import WORKLOAD
from trainables.values.errors import ConfigError

LLAMA = next(case for case in CASES if case.name == "Llama")
NOBODY = {"space": None, "base_model": "nobody/has-this", "data": "demo", "trials": 2}


def chosen(base_model: str, **given):
    device = given.pop("device", "cpu")
    return plan.choose("t", device, {"space": None, "base_model": base_model, "data": "demo", "trials": 2}, given)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    return str(write(LLAMA, tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def neox(tmp_path_factory) -> str:
    return str(write(UNKNOWN[0], tmp_path_factory.mktemp("neox")))


def test_settings_keep_the_resolved_modules_of_the_bases_family(llama, tmp_path):
    settings = chosen(llama)
    choices = ("q_proj+k_proj+v_proj", "q_proj+k_proj+v_proj+o_proj+gate_proj+up_proj+down_proj")
    assert settings.space.parameters["targets"].choices == choices
    stored.save(settings, tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text())["space"]["parameters"]["targets"]["values"] == [
        choice.split("+") for choice in choices
    ]


def test_each_choice_of_targets_has_a_line_of_what_it_covers(llama):
    assert base_targets.coverage_lines(chosen(llama)) == [
        "targets: q_proj k_proj v_proj in 2 of 2 blocks, 22.2 % of their linear weights",
        "targets: q_proj k_proj v_proj o_proj gate_proj up_proj down_proj in 2 of 2 blocks, 100.0 % of their linear "
        "weights",
    ]


def test_what_they_cover_survives_the_ledger(llama, tmp_path):
    asked = chosen(llama)
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        device = SweepDevice(names=frozenset({"CPU"}), compute_dtype=WORKLOAD.compute_dtype)
        sweep._note_start(asked, ledger, Ready(workload=WORKLOAD, counts={}, device=device))
        snapshot = SweepSnapshot.of(asked, ledger)
    assert [f"targets: {found}" for found in snapshot.coverage] == base_targets.coverage_lines(asked)
    assert snapshot.facts["generic_base"] is None
    assert snapshot.coverage == tuple(base_targets.coverages(asked))


def test_a_base_of_no_family_runs_eagerly_by_the_standard_loop_on_a_gpu_too_and_one_line_says_so(neox, caplog):
    with caplog.at_level("INFO"):
        settings = chosen(neox, device="cuda")
    assert (settings.engine, settings.loop) == ("eager", "standard")
    assert [line for line in caplog.messages if "no family here describes 'gpt_neox'" in line]
    assert base_targets.generic_type(settings) == "gpt_neox"
    assert chosen("demo", device="cuda").engine == "graph"
    assert plan.predicted_peaks_mib(settings, plan.first_configs(settings, 1)) == [None]


def test_a_space_that_fixes_the_lean_loop_is_refused_for_a_base_of_no_family(neox, tmp_path):
    fixed = "parameters: {rank: {values: [2]}}\nfixed: {precision: nf4, alpha: 2, loop: lean}\n"
    (tmp_path / "lean.yaml").write_text(fixed)
    with pytest.raises(ConfigError, match="engine and loop are eager and lean in space lean, but a base of type"):
        plan.choose("t", "cpu", NOBODY | {"space": str(tmp_path / "lean.yaml"), "base_model": neox}, {})


def test_targets_of_another_family_are_refused_with_the_nearest_group(llama, tmp_path):
    text = "parameters: {rank: {values: [2]}}\nfixed: {precision: nf4, alpha: 2, targets: [attn.c_attn]}\n"
    (tmp_path / "old.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"'attn\.c_attn' is a module of GPT-2, and the base is of Llama; say 'qkv'"):
        plan.choose("t", "cpu", NOBODY | {"space": str(tmp_path / "old.yaml"), "base_model": llama}, {})


def test_nf4_over_a_size_that_is_no_multiple_of_64_is_refused_before_anything_runs(llama, tmp_path):
    values = json.loads((Path(llama) / "config.json").read_text()) | {"intermediate_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=re.escape("down_proj (100 x 64) has 100 inputs, no multiple of 64")):
        chosen(f"random:{tmp_path}")


def test_what_only_the_hub_knows_keeps_its_groups_until_it_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    settings = plan.choose("t", "cpu", NOBODY, {})
    assert settings.space == search_spaces.load("demo")
    assert base_targets.coverage_lines(settings) == [
        "targets: what they cover is said once the base's config.json is here"
    ]
