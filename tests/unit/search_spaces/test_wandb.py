"""W&B sweep files are taken as they are, and all that is wrong in a file is said at once."""

import doctest
import logging

import pytest
import yaml

from search_spaces import load, parse, wandb
from trainables.values.errors import ConfigError

# As https://docs.wandb.ai/guides/sweeps/define-sweep-configuration has them, with this program's settings.
FILE = """
program: train.py
method: bayes
metric: {name: eval_loss, goal: minimize}
parameters:
  rank: {min: 1, max: 16}
  precision: {value: nf4}
  targets: {distribution: constant, value: [qkv]}
  alpha: {distribution: categorical, values: [8, 16]}
  dropout: {min: 0.0, max: 0.1}
  learning_rate: {distribution: log_uniform_values, min: 1.0e-5, max: 1.0e-3}
early_terminate: {type: hyperband, min_iter: 3, eta: 2}
"""
OURS = """
method: tpe
parameters:
  rank: {distribution: int_uniform, min: 1, max: 16}
  alpha: {values: [8, 16]}
  dropout: {distribution: uniform, min: 0.0, max: 0.1}
  learning_rate: {distribution: log_uniform_values, min: 1.0e-5, max: 1.0e-3}
fixed: {precision: nf4, targets: [qkv]}
early_terminate: {type: asha, eta: 2}
"""


def test_a_file_of_wandb_is_the_space_that_says_the_same_in_our_keys(tmp_path, caplog):
    (tmp_path / "s.yaml").write_text(FILE)
    with caplog.at_level(logging.INFO):
        theirs = load(str(tmp_path / "s.yaml"))
    (tmp_path / "s.yaml").write_text(OURS)
    assert theirs == load(str(tmp_path / "s.yaml"))
    assert any("program, metric" in message and "W&B" in message for message in caplog.messages)
    assert any("bayes is tpe" in message for message in caplog.messages)
    assert any("hyperband is asha" in message for message in caplog.messages)


def test_the_example_of_the_docstring_holds():
    assert doctest.testmod(wandb).failed == 0
    assert doctest.testmod(wandb).attempted


def test_a_shipped_space_is_not_changed_by_being_read_so():
    for values in (yaml.safe_load(OURS), {"parameters": {"rank": {"values": [1]}}}):
        assert wandb.as_space(values, "test") == values


def test_a_value_that_fixed_names_too_is_not_passed_over(tmp_path):
    values = yaml.safe_load(FILE) | {"fixed": {"precision": "16bit"}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="precision is both in parameters and fixed"):
        load(str(tmp_path / "s.yaml"))


def test_what_is_neither_wandbs_nor_ours_is_named():
    with pytest.raises(ConfigError, match="unknown key 'metrik'"):
        parse(wandb.as_space(yaml.safe_load(FILE) | {"metrik": 1}, "s") | {"name": "s"}, source="s")


BAD = {
    "method: tpee": "method: Input should be 'tpe'",
    "min: 1.0e-2": "parameters.learning_rate: min must be under max",
    "precison": "no trial setting 'precison'; did you mean 'precision'?",
    "dropuot": "no trial setting 'dropuot'; did you mean 'dropout'?",
}
BAD_VALUES = ("rank must be", "no precision '8bit'", "alpha must be", "max_steps must be", "no trial setting 'engin'")


def test_all_faults_of_a_file_are_said_at_once_each_on_a_line():
    text = OURS.replace("method: tpe", "method: tpee").replace("min: 1.0e-5", "min: 1.0e-2")
    text = text.replace("precision", "precison").replace("dropout", "dropuot")
    with pytest.raises(ConfigError) as error:
        parse(yaml.safe_load(text) | {"name": "s"}, source="SPACE s")
    first, *lines = str(error.value).splitlines()
    assert first == f"SPACE s: {len(BAD)} faults"
    for fault in BAD.values():
        assert sum(line.strip().startswith(fault) for line in lines) == 1, lines
    assert len(lines) == len(BAD)


def test_all_values_that_no_trial_can_have_are_said_at_once():
    values = {"rank": {"values": [0, 2]}, "precision": {"values": ["nf4", "8bit"]}}
    with pytest.raises(ConfigError) as error:
        parse({"name": "s", "parameters": values, "fixed": {"alpha": -1, "max_steps": 0, "engin": 1}}, source="s")
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert len(lines) == len(BAD_VALUES)
    assert all(any(line.startswith(fault) for line in lines) for fault in BAD_VALUES), lines


def test_one_fault_stays_on_the_line_of_the_error():
    with pytest.raises(ConfigError) as error:
        parse(
            {"name": "s", "parameters": {"rank": {"values": [0]}}, "fixed": {"precision": "nf4", "alpha": 1}},
            source="s",
        )
    assert len(str(error.value).splitlines()) == 1
