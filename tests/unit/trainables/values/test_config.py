"""The values that travel, and the key that names an outcome."""

import json
import math
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainables.models.families.gpt2 import TARGETS
from trainables.values.config import FINAL_STATES, TrialConfig, canonical_json, rungs
from trainables.values.errors import ConfigError, SweepError, TrialFailed
from trainables.values.workload import Workload

POSITIVE = st.floats(min_value=1e-300, max_value=1e30) | st.integers(min_value=1, max_value=10**9)
CONFIGS = st.builds(
    TrialConfig,
    precision=st.sampled_from(["16bit", "nf4"]),
    rank=st.integers(1, 64),
    alpha=POSITIVE,
    targets=st.sets(st.sampled_from(TARGETS), min_size=1).map(lambda chosen: tuple(t for t in TARGETS if t in chosen)),
    dropout=st.floats(0, 1, exclude_max=True) | st.just(0),
    rank_stabilized=st.booleans(),
    learning_rate=POSITIVE,
    batch_size=st.integers(1, 64),
    max_length_tokens=st.integers(1, 1024),
    max_steps=st.integers(1, 10_000),
    seed=st.integers(0, 2**32 - 1),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup_share=st.floats(0, 1, exclude_max=True) | st.just(0),
    gradient_checkpointing=st.booleans(),
    optimizer=st.sampled_from(["adamw", "adamw_8bit"]),
)
CONFIG = TrialConfig(precision="nf4", rank=8, alpha=16)
OTHER_VALUES = {
    "precision": "16bit",
    "rank": 4,
    "alpha": 32,
    "targets": ("attn.c_attn", "attn.c_proj"),
    "dropout": 0.1,
    "rank_stabilized": True,
    "learning_rate": 3e-4,
    "batch_size": 8,
    "max_length_tokens": 128,
    "max_steps": 100,
    "seed": 1,
    "schedule": "linear",
    "warmup_share": 0.1,
    "gradient_checkpointing": True,
    "optimizer": "adamw_8bit",
    "keep_16bit": ("transformer.h.0",),
}
WORKLOAD = Workload(
    base_model="demo",
    base_folder="/somewhere",
    base_fingerprint="aa",
    weights="demo",
    data="demo",
    data_folder="/tokens",
    data_digest="bb",
    compute_dtype="float32",
)


@given(CONFIGS)
def test_a_config_survives_json_and_back(config):
    assert TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(CONFIGS, CONFIGS)
@example(CONFIG, replace(CONFIG, alpha=16.0))
@example(replace(CONFIG, dropout=0), replace(CONFIG, dropout=0.0))
@example(CONFIG, replace(CONFIG, seed=1))
def test_keys_are_equal_exactly_where_configs_are(one, other):
    assert (WORKLOAD.key(one) == WORKLOAD.key(other)) == (one == other)


def test_every_searchable_field_of_the_config_changes_the_key():
    single = {"engine", "loop"}  # one value each so far
    assert set(OTHER_VALUES) == {f.name for f in fields(TrialConfig)} - single
    keys = {WORKLOAD.key(replace(CONFIG, **{name: value})) for name, value in OTHER_VALUES.items()}
    assert len(keys | {WORKLOAD.key(CONFIG)}) == len(OTHER_VALUES) + 1


def test_the_key_follows_base_data_and_dtype_but_not_where_they_lie():
    key = WORKLOAD.key(CONFIG)
    for name in ("base_fingerprint", "data_digest"):
        assert replace(WORKLOAD, **{name: "other"}).key(CONFIG) != key
    assert replace(WORKLOAD, compute_dtype="bfloat16").key(CONFIG) != key
    for name in ("base_model", "base_folder", "data", "data_folder", "data_split", "columns"):
        assert replace(WORKLOAD, **{name: "other"}).key(CONFIG) == key
    assert len(key) == 64
    assert int(key, 16) >= 0


@given(CONFIGS)
def test_the_config_at_the_other_precision_differs_in_precision_alone_and_twice_is_itself(config):
    assert {config.precision, config.at_other_precision.precision} == {"16bit", "nf4"}
    assert replace(config.at_other_precision, precision=config.precision) == config
    assert config.at_other_precision.at_other_precision == config


def test_a_cost_key_depends_on_what_memory_and_time_depend_on():
    free = {"alpha", "rank_stabilized", "learning_rate", "max_steps", "seed", "schedule", "warmup_share"}
    for name, value in OTHER_VALUES.items():
        same = replace(CONFIG, **{name: value}).cost_key == CONFIG.cost_key
        assert same == (name in free or name == "dropout"), name
    assert replace(CONFIG, dropout=0.0).cost_key != CONFIG.cost_key


def test_rank_stabilized_scaling_divides_by_the_root_of_the_rank():
    assert replace(CONFIG, rank=16).scaling == 1.0
    assert replace(CONFIG, rank=16, rank_stabilized=True).scaling == 4.0


@given(st.integers(1, 100_000))
def test_rungs_rise_to_the_full_budget_and_double(max_steps):
    steps = rungs(max_steps)
    assert steps[-1] == max_steps
    assert 1 <= len(steps) <= 4
    assert steps[0] == math.ceil(max_steps / 8)
    assert all(a < b for a, b in pairwise(steps))
    assert all(b == 2 * a for a, b in pairwise(steps[:-1]))


@pytest.mark.parametrize("name", ["rank", "batch_size", "max_length_tokens", "max_steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 4.0, True, "4", None, math.nan, 10**400])
def test_a_count_that_is_no_positive_whole_number_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be a whole number"):
        replace(CONFIG, **{name: value})


@pytest.mark.parametrize("name", ["alpha", "learning_rate"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "1", None, 1e31, 10**400])
def test_a_rate_that_is_not_positive_and_finite_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be positive and finite"):
        replace(CONFIG, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("precision", "8bit", "no precision '8bit'; did you mean '16bit'?"),
        ("precision", ["nf4"], "no precision"),
        ("engine", "eagre", "did you mean 'eager'?"),
        ("loop", "leen", "no loop 'leen'"),
        ("dropout", 1.0, "dropout must be at least 0 and under 1"),
        ("dropout", math.nan, "dropout"),
        ("dropout", True, "dropout"),
        ("rank_stabilized", 1, "rank_stabilized must be true or false"),
        ("gradient_checkpointing", "yes", "gradient_checkpointing must be true or false"),
        ("warmup_share", 1.0, "warmup_share must be at least 0 and under 1"),
        ("schedule", "cosin", "no schedule 'cosin'; did you mean 'cosine'?"),
        ("optimizer", "adamw8bit", "did you mean 'adamw_8bit'?"),
        ("seed", -1, "seed"),
        ("seed", 2**32, "seed"),
        ("seed", 0.0, "seed"),
        ("targets", (), "at least one"),
        ("targets", "attn.c_attn", "targets"),
        ("targets", ("",), "targets must be names of modules"),
        ("targets", ("attn.c_attn", "attn.c_attn"), "targets must be distinct"),
        ("targets", ("attn.c_attn", "attn.c_attn"), "distinct"),
    ],
)
def test_a_bad_setting_is_refused_with_its_name(name, value, message):
    with pytest.raises(ConfigError) as caught:
        replace(CONFIG, **{name: value})
    assert message in str(caught.value)


def test_eight_bit_moments_are_refused_under_a_cuda_graph_which_would_freeze_their_step():
    with pytest.raises(ConfigError, match="needs engine: eager"):
        replace(CONFIG, optimizer="adamw_8bit", engine="graph")


def test_a_config_without_the_later_fields_keeps_its_json_and_cost_key():
    """Literals from before there were such fields: keys and stored costs are hashes of, or named by, these texts."""
    written = (
        '{"alpha":16.0,"batch_size":4,"dropout":0.05,"engine":"eager","learning_rate":0.0002,"loop":"standard",'
        '"max_length_tokens":256,"max_steps":200,"precision":"nf4","rank":8,"rank_stabilized":false,"seed":0,'
        '"targets":["attn.c_attn"]}'
    )
    assert canonical_json(CONFIG.to_dict()) == written
    assert TrialConfig.from_dict(json.loads(written)) == CONFIG
    assert CONFIG.cost_key == (
        '{"batch_size":4,"dropout":true,"engine":"eager","loop":"standard","max_length_tokens":256,"precision":"nf4",'
        '"rank":8,"targets":["attn.c_attn"]}'
    )


def test_from_dict_offers_the_nearest_name_and_names_what_is_missing():
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        TrialConfig.from_dict(CONFIG.to_dict() | {"learning_rat": 1e-4})
    for name in ("precision", "rank", "alpha"):
        with pytest.raises(ConfigError, match=f"^{name} is missing"):
            TrialConfig.from_dict({key: value for key, value in CONFIG.to_dict().items() if key != name})


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        CONFIG.rank = 2


def test_canonical_json_ignores_the_order_of_keys_and_refuses_nan():
    assert canonical_json({"b": 1, "a": [1, 2]}) == canonical_json({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'
    with pytest.raises(ValueError, match=r"NaN|nan|Out of range"):
        canonical_json(math.nan)


def test_a_failed_trial_carries_a_final_state():
    assert TrialFailed("oom", "too large").state in FINAL_STATES
    assert {"queued", "running"}.isdisjoint(FINAL_STATES)


def test_each_error_says_by_its_exit_code_what_to_do():
    codes = {error.__name__: error.exit_code for error in SweepError.__subclasses__()}
    own = {"ConfigError": 2, "DataError": 3, "DiskFull": 4, "Unreachable": 5}
    assert codes == own | {"LedgerDamaged": 1, "TrialFailed": 1, "DeviceLost": 1, "Interrupted": 130}


def test_an_error_comes_whole_out_of_another_process():
    error = pickle.loads(pickle.dumps(TrialFailed("oom", "too large")))
    assert (error.state, str(error)) == ("oom", "too large")
