"""Search spaces: what ships is whole, what is wrong is refused with the nearest name."""

import itertools
import math
from contextlib import suppress
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import search_spaces
from search_spaces import FOLDER, load, names, parse
from trainables.models.families import FAMILIES, gpt2, llama
from trainables.models.families.gpt2 import TARGETS
from trainables.values.config import canonical_json
from trainables.values.errors import ConfigError

SMALL = {"name": "small", "parameters": {"rank": {"values": [2, 4]}}, "fixed": {"precision": "nf4", "alpha": 16}}
KEYS = ("description", "method", "parameters", "fixed", "early_terminate", "rank", "values", "min", "max", "targets")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["nf4", "grid", "int_uniform", "log_uniform_values", "uniform", "mlp.c_fc", 2, 10**400])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from((*KEYS, *search_spaces.NAMES, "distribution", "type", "eta")), inner, max_size=3
        )
    ),
    max_leaves=12,
)
RANGES = st.fixed_dictionaries(
    {},
    optional={
        "distribution": st.sampled_from(["uniform", "int_uniform", "log_uniform_values"]),
        "min": st.floats() | st.integers(),
        "max": st.floats() | st.integers(),
        "values": st.lists(SCALARS, max_size=3),
    },
)


def small(parameters=None, fixed=None, **top):
    """A valid space with some parts replaced or added."""
    merged = SMALL | {"fixed": SMALL["fixed"] | (fixed or {})} | top
    return parse(merged | {"parameters": SMALL["parameters"] | (parameters or {})}, source="test")


def load_text(text: str):
    with TemporaryDirectory() as folder:
        path = f"{folder}/space.yaml"
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return load(path)


@pytest.mark.parametrize("name", names())
def test_each_shipped_space_loads_and_both_ends_of_it_are_trials(name):
    space = load(name)
    assert space.name == name
    assert space.description
    for pick in (0, -1):
        config = space.config({key: parameter.samples[pick] for key, parameter in space.parameters.items()})
        assert config.max_steps == space.fixed["max_steps"]


def test_the_shipped_spaces_are_found_by_name():
    assert names() == ["card_keep", "card_rates", "demo", "diagnostic", "pareto"]
    assert names() == sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_the_diagnostic_grid_is_the_model_cards_at_both_precisions():
    space = load("diagnostic").for_family(gpt2.FAMILY)
    configs = [space.config(point) for point in space.grid()]
    assert {(c.rank, c.precision) for c in configs} == set(itertools.product((2, 4, 8, 16), ("nf4", "16bit")))
    assert {(c.alpha, c.targets, c.dropout, c.learning_rate, c.batch_size, c.max_steps) for c in configs} == {
        (16, ("attn.c_attn",), 0.05, 2e-4, 4, 200)
    }


@settings(max_examples=30)
@given(
    ranks=st.sets(st.integers(1, 64), min_size=1, max_size=4),
    rates=st.sets(st.floats(1e-5, 1e-1), min_size=1, max_size=3),
    seeds=st.sets(st.integers(0, 9), min_size=1, max_size=3),
)
def test_a_grid_covers_the_product_exactly_once(ranks, rates, seeds):
    choices = {"rank": ranks, "learning_rate": rates, "seed": seeds}
    space = small({name: {"values": list(values)} for name, values in choices.items()}, method="grid")
    points = [tuple(point[name] for name in choices) for point in space.grid()]
    assert len(points) == space.n_points == len(set(points))
    assert set(points) == set(itertools.product(*choices.values()))


def test_a_range_has_no_number_of_points_and_no_grid():
    rate = {"learning_rate": {"distribution": "uniform", "min": 1e-5, "max": 1e-3}}
    assert small(rate).n_points is None
    with pytest.raises(ConfigError, match="method grid needs values, learning_rate has a range"):
        small(rate, method="grid")


@given(st.integers(1, 64), st.sampled_from([0.5, 1, 2, 4]))
def test_alpha_ratio_times_rank_is_alpha_so_that_the_scale_stays(rank, ratio):
    parameters = {"rank": {"values": [rank]}, "alpha_ratio": {"values": [ratio]}}
    space = parse({"name": "x", "parameters": parameters, "fixed": {"precision": "nf4"}}, source="test")
    config = space.config({"rank": rank, "alpha_ratio": ratio})
    assert config.alpha == ratio * rank
    assert config.scaling == ratio


@pytest.mark.parametrize("ratio", ["2", True, None, math.nan, 0, -1])
def test_a_bad_alpha_ratio_is_refused(ratio):
    fixed = {"precision": "nf4", "alpha_ratio": ratio}
    with pytest.raises(ConfigError, match="alpha"):
        parse({"name": "x", "parameters": {"rank": {"values": [2]}}, "fixed": fixed}, source="test")


def test_targets_are_joined_for_the_search_and_put_in_order_for_the_trial():
    space = small({"targets": {"values": [["mlp.c_fc", "attn.c_attn"], "mlp.c_proj"]}})
    assert space.parameters["targets"].choices == ("mlp.c_fc+attn.c_attn", "mlp.c_proj")
    assert space.config({"rank": 2, "targets": "mlp.c_fc+attn.c_attn"}).targets == ("attn.c_attn", "mlp.c_fc")
    assert small(fixed={"targets": list(reversed(TARGETS))}).config({"rank": 2}).targets == TARGETS


def test_what_the_sweep_sets_goes_before_the_spaces_own():
    assert small(fixed={"max_steps": 50}).config({"rank": 2}, max_steps=7).max_steps == 7


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", math.nan, 10**400])
def test_a_rank_that_is_no_positive_whole_number_is_refused(value):
    with pytest.raises(ConfigError, match="test: rank must be a whole number"):
        small({"rank": {"values": [2, value]}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fixed": {"precision": "8bit"}}, "no precision '8bit'; did you mean '16bit'?"),
        ({"fixed": {"learning_rate": math.nan}}, "learning_rate must be positive and finite (at most 1e+30), got nan"),
        ({"parameters": {"learning_rate": {"values": [math.nan]}}}, "learning_rate must be positive and finite"),
        ({"parameters": {"learnin_rate": {"values": [1e-3]}}}, "did you mean 'learning_rate'?"),
        ({"fixed": {"precision": "4bit"}}, "no precision '4bit'; did you mean 'nf4'?"),
        ({"parameters": {"rank": {"values": 2}}}, "parameters.rank.values: Input should be a valid list, got 2"),
        ({"fixed": {"rnk": 4}}, "no trial setting 'rnk'; did you mean 'rank'?"),
        ({"metod": "tpe"}, "unknown key 'metod'; did you mean 'method'?"),
        ({"parameters": {"rank": {"valeus": [2]}}}, "'parameters.rank.valeus'; did you mean 'values'?"),
        ({"early_terminate": {"typ": "asha"}}, "did you mean 'type'?"),
        ({"early_terminate": {"eta": 1}}, "early_terminate.eta"),
        ({"method": "bayes"}, "method"),
        ({"parameters": {"rank": {"values": []}}}, "parameters.rank: values must hold at least one"),
        ({"parameters": {"rank": {"values": [2, 2]}}}, "rank: values must be distinct"),
        ({"parameters": {"dropout": {"values": [0, 0.0]}}}, "dropout: values must be distinct"),
        ({"parameters": {"rank": {"values": [2], "min": 1}}}, "parameters.rank: give either values, or"),
        ({"parameters": {"rank": {"min": 1, "max": 8}}}, "parameters.rank: needs values, or distribution"),
        ({"parameters": {"dropout": {"distribution": "uniform", "min": 0.5, "max": 0.5}}}, "min must be under max"),
        ({"parameters": {"dropout": {"distribution": "uniform", "min": 0, "max": 1}}}, "dropout must be"),
        ({"parameters": {"rank": {"distribution": "int_uniform", "min": 1, "max": math.inf}}}, "whole numbers"),
        ({"parameters": {"rank": {"distribution": "int_uniform", "min": 1.5, "max": 4}}}, "whole numbers"),
        ({"parameters": {"dropout": {"distribution": "log_uniform_values", "min": 0, "max": 0.1}}}, "above 0"),
        ({"parameters": {"precision": {"values": ["nf4"]}}}, "precision is both in parameters and fixed"),
        ({"fixed": {"alpha_ratio": 2}}, "give one of alpha and alpha_ratio"),
        ({"fixed": {"targets": [["mlp.c_fc"]]}}, "targets must be names of modules"),
    ],
)
def test_a_wrong_space_is_refused_with_where_and_the_nearest_name(change, message):
    with pytest.raises(ConfigError) as caught:
        small(**change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_space_without_alpha_or_rank_is_refused():
    with pytest.raises(ConfigError, match="one of alpha and alpha_ratio"):
        parse(SMALL | {"fixed": {"precision": "nf4"}}, source="test")
    with pytest.raises(ConfigError, match="rank is missing"):
        parse({"name": "x", "parameters": {}, "fixed": {"precision": "nf4", "alpha": 1}}, source="test")


def test_an_unknown_name_is_refused_with_the_nearest_space(tmp_path):
    with pytest.raises(ConfigError, match=r"no search space 'parto'; did you mean 'pareto'\?"):
        load("parto")
    with pytest.raises(ConfigError, match="SPACE: no file"):
        load(str(tmp_path / "gone.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="not readable YAML"):
        load(str(tmp_path / "folder.yaml"))
    (tmp_path / "latin.yaml").write_bytes("description: caf\xe9".encode("latin-1"))
    with pytest.raises(ConfigError, match="not readable YAML"):
        load(str(tmp_path / "latin.yaml"))


@settings(max_examples=150)
@given(st.text(st.characters(codec="utf-8"), max_size=40) | st.text("[]{}&*a:,!-? \n'\"#|>%@0x_.1", max_size=30))
@example("2001-02-30")
@example("!!bool maybe")
@example("!!timestamp x")
@example("0x_")
@example("&a [*a]")
@example("parameters: &a {rank: *a}")
@example("[" * 3000)
@example("? {a: 1}\n: 2")
def test_text_that_is_no_space_raises_nothing_but_a_config_error(text):
    with pytest.raises(ConfigError, match="SPACE"):
        load_text(text)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(KEYS), TREES, max_size=4))
def test_yaml_of_the_right_keys_and_any_values_raises_nothing_but_a_config_error(values):
    with suppress(ConfigError):
        assert load_text(yaml.safe_dump(values)).name == "space"


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(search_spaces.NAMES), RANGES, max_size=3),
    st.dictionaries(st.sampled_from(search_spaces.NAMES), TREES, max_size=3),
)
def test_any_parameters_either_make_valid_trials_or_a_config_error(parameters, fixed):
    try:
        space = small(parameters, fixed)
    except ConfigError:
        return
    first = {name: parameter.samples[0] for name, parameter in space.parameters.items()}
    for name, parameter in space.parameters.items():
        for value in parameter.samples:
            assert space.config(first | {name: value}).rank >= 1


@pytest.mark.parametrize(("text", "value"), [("2e-4", 2e-4), ("5E+0", 5.0), ("-1e3", -1e3), ("2.0e-4", 2e-4)])
def test_scientific_notation_without_a_point_is_a_number(text, value):
    assert yaml.load(f"rate: {text}", Loader=search_spaces.Loader) == {"rate": value}


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({}, ["names no rule; hypervolume"]),
        ({"early_terminate": {"type": "moasha", "eta": 3, "stratum_share": 0.1}}, ["moasha is no rule any more"]),
        ({"early_terminate": {"type": "hypervolume"}}, []),
    ],
)
def test_a_space_that_names_no_rule_or_one_that_is_gone_gets_hypervolume_and_one_line_says_so(named, words, caplog):
    parameters = {"rank": {"values": [1, 2]}}
    with caplog.at_level("INFO", "search_spaces"):
        found = parse(
            {"name": "t", "parameters": parameters, "fixed": {"alpha": 8, "precision": "nf4"}, **named}, source="t"
        )
    assert found.early_terminate.type == "hypervolume"
    assert len(caplog.messages) == len(words)
    assert all(word in line for word, line in zip(words, caplog.messages, strict=True))


# --- targets of every family


OLD_PARETO = (
    "attn.c_attn",
    "attn.c_attn+attn.c_proj",
    "mlp.c_fc+mlp.c_proj",
    "attn.c_attn+attn.c_proj+mlp.c_fc+mlp.c_proj",
)


def test_the_groups_of_the_shipped_spaces_are_on_gpt2_the_very_choices_that_sweeps_have_made():
    """Else no sweep could learn from an earlier one: a choice is known by its text."""
    assert load("pareto").for_family(gpt2.FAMILY).parameters["targets"].choices == OLD_PARETO
    assert load("demo").for_family(gpt2.FAMILY).parameters["targets"].choices == (OLD_PARETO[0], OLD_PARETO[3])
    assert load("diagnostic").for_family(gpt2.FAMILY).fixed["targets"] == ["attn.c_attn"]


def test_the_canonical_json_of_a_gpt2_config_stays_byte_for_byte():
    space = load("pareto").for_family(gpt2.FAMILY)
    point = {"precision": "nf4", "rank": 8, "alpha_ratio": 2, "learning_rate": 2e-4, "dropout": 0.05}
    config = space.config(point | {"targets": OLD_PARETO[1]})
    assert canonical_json(config.to_dict()) == (
        '{"alpha":16.0,"batch_size":4,"dropout":0.05,"engine":"eager","learning_rate":0.0002,"loop":"standard",'
        '"max_length_tokens":256,"max_steps":200,"precision":"nf4","rank":8,"rank_stabilized":false,"seed":0,'
        '"targets":["attn.c_attn","attn.c_proj"]}'
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("name", names())
def test_each_shipped_space_serves_every_family(name, family):
    space = load(name).for_family(family)
    assert space.for_family(family) == space
    named = [space.config({n: p.samples[0] for n, p in space.parameters.items()}).targets]
    for choice in space.parameters["targets"].choices if "targets" in space.parameters else ():
        named.append(tuple(choice.split("+")))
    assert all(set(targets) <= set(family.targets) for targets in named)
    assert named[0] in family.groups.values()


def test_a_space_that_names_no_targets_gets_query_key_and_value_of_the_bases_family():
    assert small().for_family(gpt2.FAMILY) == small()
    assert small().for_family(llama.FAMILY).config({"rank": 2}).targets == ("q_proj", "k_proj", "v_proj")


def test_groups_and_names_may_be_mixed_and_equal_choices_are_one():
    values = ["qkv", ["v_proj", "q_proj", "k_proj"], ["mlp", "o_proj"], "q_proj+v_proj"]
    with pytest.raises(ConfigError, match="targets: values must be distinct"):
        small({"targets": {"values": values}}).for_family(llama.FAMILY)
    space = small({"targets": {"values": values[::2]}}).for_family(llama.FAMILY)
    assert space.parameters["targets"].choices == ("q_proj+k_proj+v_proj", "o_proj+gate_proj+up_proj+down_proj")


def test_a_target_of_another_family_is_refused_with_the_space_and_the_nearest_group():
    for space in (small({"targets": {"values": ["attn.c_attn"]}}), small(fixed={"targets": ["attn.c_attn"]})):
        with pytest.raises(ConfigError, match=r"SPACE small: targets: 'attn\.c_attn' is a module of GPT-2.*say 'qkv'"):
            space.for_family(llama.FAMILY)


def test_all_that_is_wrong_is_said_at_once_whatever_kind_it_is_of(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("""
method: tpe
parameters:
  precision: {values: [nf4, 16bit]}
  rank: {values: [4, -8]}
  learning_rate: {distribution: log_unform, min: 2.0e-3, max: 2.0e-4}
  presicion: {values: [nf4]}
fixed: {alpha: 8, max_stpes: 20, dropout: 1.5}
""")
    with pytest.raises(ConfigError, match="6 faults") as refused:
        search_spaces.load(str(path))
    for said in ("'log_unform'", "got -8", "min must be under max", "'presicion'", "'max_stpes'", "got 1.5"):
        assert str(refused.value).count(said) == 1, said
