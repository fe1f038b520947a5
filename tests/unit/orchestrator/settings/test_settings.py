"""What a sweep was asked to do: checked once, kept as it was, filled in for the machine."""

import json
from contextlib import closing

import pytest
import ray
import yaml

from orchestrator import settings
from orchestrator.driver import plan, sweep
from orchestrator.driver.prepare import prepare
from orchestrator.ledger import Ledger
from orchestrator.objectives import DEFAULT
from orchestrator.settings import stored
from tests.support.sweeps import GRID, TPE, Desk, make, space
from trainables import demo
from trainables.values.errors import ConfigError

NOTHING = {"space": None, "trials": None, "base_model": None, "data": None}


def test_settings_come_back_from_their_file_as_they_were(tmp_path):
    asked = make(space(TPE), objectives=("eval_loss_nats",), min_similarity=0.9, seed=7, max_steps=12)
    stored.save(asked, tmp_path / "a")
    assert stored.load(tmp_path / "a") == asked


def test_a_sweep_without_settings_is_unknown_and_the_nearest_name_is_offered(tmp_path):
    stored.save(make(), tmp_path / "mine")
    with pytest.raises(ConfigError, match="did you mean 'mine'"):
        stored.load(tmp_path / "mint")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", ".hidden", "a" * 65, "a b", "a\n"])
def test_a_name_cannot_leave_its_folder(name, tmp_path):
    with pytest.raises(ConfigError, match=r"^NAME: must be"):
        settings.sweep_folder(name, tmp_path)
    with pytest.raises(ConfigError, match=r"^name must be"):
        make(name=name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_trials", 0),
        ("max_steps", -1),
        ("min_similarity", 1.01),
        ("min_similarity", float("nan")),
        ("gpus_per_trial", 0),
        ("gpus_per_trial", float("inf")),
        ("compute_dtype", "float8"),
        ("device", "tpu"),
        ("engine", "steam"),
        ("loop", "lena"),
        ("seed", 2**32),
        ("objectives", ()),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(ConfigError, match=field):
        make(**{field: value})


def test_an_unknown_field_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean 'n_trials'"):
        make(n_trial=3)


def test_the_sweeps_seed_and_steps_go_before_the_spaces():
    config = make(space(GRID), seed=5, max_steps=3).config({"rank": 2, "precision": "nf4"})
    assert (config.seed, config.max_steps) == (5, 3)


@pytest.mark.parametrize("name", ["seed", "engine", "loop"])
def test_what_the_space_says_goes_before_the_sweeps_seed_engine_and_loop(name):
    said = {"seed": 9, "engine": "graph", "loop": "lean"}
    values = GRID["fixed"] | {name: said[name]}
    fixed = make(space(fixed=values), device="cuda").config({"rank": 2, "precision": "nf4"})
    assert getattr(fixed, name) == said[name]
    choices = {"seed": [3, 4], "engine": ["eager", "graph"], "loop": ["standard", "lean"]}[name]
    searched = make(space(parameters=GRID["parameters"] | {name: {"values": choices}}), device="cuda")
    found = [searched.config({"rank": 2, "precision": "nf4", name: choice}) for choice in choices]
    assert [getattr(config, name) for config in found] == choices


@pytest.mark.parametrize(("device", "engine", "loop"), [("cuda", "graph", "lean"), ("cpu", "eager", "lean")])
@pytest.mark.parametrize("said", [{}, {"engine": "auto", "loop": "auto"}])
def test_engine_and_loop_are_chosen_for_the_device(device, engine, loop, said):
    found = plan.choose(None, device, NOTHING, said)
    assert (found.engine, found.loop) == (engine, loop)
    own = plan.choose(None, device, NOTHING, {"engine": "eager", "loop": "standard"})
    assert (own.engine, own.loop) == ("eager", "standard")


def test_a_sweep_from_before_engines_were_chosen_keeps_the_ones_it_had(tmp_path):
    stored.save(make(), tmp_path)
    path = tmp_path / "settings.json"
    old = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("engine", "loop")}
    path.write_text(json.dumps(old))
    assert (stored.load(tmp_path).engine, stored.load(tmp_path).loop) == ("eager", "standard")


def test_columns_may_be_a_mapping_from_python_and_are_kept_as_text():
    as_text = make(columns="instruction=question,output=answer")
    assert make(columns={"instruction": "question", "output": "answer"}) == as_text
    assert as_text.columns == "instruction=question,output=answer"


def test_a_sweep_from_before_splits_and_columns_has_none_of_its_own(tmp_path):
    stored.save(make(), tmp_path)
    path = tmp_path / "settings.json"
    old = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("data_split", "columns")}
    path.write_text(json.dumps(old))
    assert stored.load(tmp_path) == make()


def test_recorded_steps_without_a_gpu_are_refused():
    with pytest.raises(ConfigError, match="engine is graph, which needs a CUDA GPU"):
        plan.choose(None, "cpu", NOTHING, {"engine": "graph"})


def test_time_is_an_objective_on_a_gpu_and_on_a_cpu_only_if_it_is_asked_for():
    assert plan.choose(None, "cuda", NOTHING, {}).objectives == DEFAULT
    assert plan.choose(None, "cpu", NOTHING, {}).objectives == ("peak_memory_mib", "eval_loss_nats")
    asked = {"objectives": ("seconds_per_step", "eval_loss_nats")}
    assert plan.choose(None, "cpu", NOTHING, asked).objectives == asked["objectives"]


def test_a_gpu_gets_gpt2_medium_on_alpaca_and_a_cpu_the_demo():
    on_gpu = plan.choose(None, "cuda", NOTHING, {})
    on_cpu = plan.choose(None, "cpu", NOTHING, {})
    assert (on_gpu.base_model, on_gpu.data) == ("openai-community/gpt2-medium", "tatsu-lab/alpaca")
    assert (on_gpu.space.name, on_gpu.n_trials) == ("pareto", 32)
    assert (on_cpu.base_model, on_cpu.data, on_cpu.n_trials) == ("demo", "demo", 12)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_base_of_ones_own_takes_alpaca_and_never_the_demos_rows(device):
    folder = str(demo.FOLDER)
    for base in (folder, f"random:{folder}", "some/model"):
        found = plan.choose(None, device, NOTHING | {"base_model": base}, {})
        assert (found.base_model, found.data) == (base, "tatsu-lab/alpaca")
    own = plan.choose(None, device, NOTHING | {"base_model": folder, "data": "demo"}, {})
    assert own.data == "demo"
    assert plan.choose(None, "cpu", NOTHING | {"base_model": "demo"}, {}).data == "demo"


LENGTHS = {
    "fixed": (GRID["parameters"], GRID["fixed"] | {"max_length_tokens": 1025}),
    "values": (GRID["parameters"] | {"max_length_tokens": {"values": [1025, 64]}}, GRID["fixed"]),
    "range": (
        GRID["parameters"] | {"max_length_tokens": {"distribution": "int_uniform", "min": 64, "max": 1025}},
        GRID["fixed"],
    ),
}


def choose_over(base, tmp_path, parameters, fixed):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"parameters": parameters, "fixed": fixed}))
    chosen = NOTHING | {"space": str(tmp_path / "mine.yaml"), "base_model": base, "trials": 1}
    return plan.choose(None, "cuda", chosen, {})


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("base", "n_positions"), [("demo", 256), ("openai-community/gpt2-medium", 1024)])
def test_rows_longer_than_the_base_are_refused_before_anything_starts(base, n_positions, lengths, tmp_path):
    with pytest.raises(ConfigError, match=f"max_length_tokens is 1025 in space mine, .*{base} has {n_positions} "):
        choose_over(base, tmp_path, *LENGTHS[lengths])


def test_rows_as_long_as_the_base_and_a_base_that_only_the_hub_knows_are_let_through(tmp_path):
    whole = (GRID["parameters"], GRID["fixed"] | {"max_length_tokens": 256})
    assert choose_over("demo", tmp_path, *whole).lengths_tokens == (256,)
    assert max(choose_over("some/model", tmp_path, *LENGTHS["range"]).lengths_tokens) == 1025


def test_rows_longer_than_a_base_that_was_fetched_are_refused_before_ray_starts(tmp_path):
    parameters, fixed = LENGTHS["values"]
    asked = make(space(parameters=parameters, fixed=fixed))
    with pytest.raises(ConfigError, match=r"max_length_tokens is 1025 .* 256 positions"), prepare(asked, tmp_path):
        pytest.fail("they were let through")
    assert not ray.is_initialized()


def test_a_grid_is_run_whole_unless_a_number_is_said():
    whole = plan.choose(None, "cuda", NOTHING | {"space": "diagnostic"}, {})
    part = plan.choose(None, "cuda", NOTHING | {"space": "diagnostic", "trials": 3}, {})
    assert (whole.n_trials, part.n_trials) == (8, 3)


@pytest.mark.parametrize("base", [GRID, TPE])
def test_the_plan_names_the_configs_that_the_sweep_then_starts_with(base, tmp_path):
    asked = make(space(base), n_trials=4)
    desk = Desk(tmp_path, asked, n_slots=4)
    while desk.take():
        pass
    assert plan.first_configs(asked, 4) == [task.config for task in desk.asked]


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_a_search_too_short_to_come_to_4_bits_says_so(method):
    for n_trials in (1, 4, 6, 7, 12):
        asked = make(space(TPE | {"method": method}), n_trials=n_trials)
        precisions = {config.precision for config in plan.first_configs(asked, n_trials)}
        assert (plan.without_4_bits(asked) is not None) == (n_trials <= 6 and precisions == {"16bit"})
    assert plan.without_4_bits(make(space(TPE), n_trials=6)).startswith("no config is at 4 bits")


def test_a_search_of_one_precision_misses_nothing():
    one = {"parameters": {"rank": {"values": [1, 2, 4, 8]}}, "fixed": TPE["fixed"] | {"precision": "16bit"}}
    assert plan.without_4_bits(make(space(TPE | one), n_trials=2)) is None


@pytest.mark.parametrize(("field", "value"), [("finalist_seeds", 0), ("baseline_seeds", 1), ("min_similarity", 1.1)])
def test_a_seed_replicates_that_says_nothing_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        make(**{field: value})


# --- a sweep goes on under the settings that it began with


def test_settings_edited_since_the_start_are_refused_by_field_before_anything_is_fetched(tmp_path):
    began = make()
    folder = settings.sweep_folder(began.name, tmp_path)
    with closing(Ledger(folder / "ledger.db")) as ledger:
        ledger.set_fact(stored.ASKED, began.model_dump_json())

    def resume(asked: settings.SweepSettings) -> None:
        sweep.run(asked, tmp_path, resume=True, started=print, prepare=fetched)

    def fetched(*_) -> None:
        raise InterruptedError

    with pytest.raises(ConfigError, match=r"min_similarity is 0.5, but the sweep began with None; .*verify t --repair"):
        resume(began.model_copy(update={"min_similarity": 0.5}))
    with pytest.raises(InterruptedError):
        resume(began)


@pytest.mark.parametrize("rule", ["none", "hypervolume", "moasha"])
def test_what_an_earlier_version_wrote_of_itself_is_no_edit(rule):
    """It dumped `repeats` and `reseeds`, and a setting of moasha beside every rule."""
    asked = make(space(early_terminate={"type": rule}), finalist_seeds=3)
    then = asked.model_dump(mode="json")
    then["repeats"], then["reseeds"] = then.pop("finalist_seeds"), then.pop("baseline_seeds")
    then["space"]["early_terminate"] |= {"type": rule, "stratum_share": 0.1}
    text = json.dumps(then)
    assert list(stored.edits(stored.of_json(text), text)) == []
    turned = stored.of_json(text).model_copy(update={"finalist_seeds": 1})
    assert list(stored.edits(turned, text)) == [("finalist_seeds", 3, 1)]


def test_an_edit_is_named_by_its_field_and_one_that_came_later_has_its_default():
    began = make()
    older = json.dumps({name: value for name, value in began.model_dump(mode="json").items() if name != "reuse"})
    other = make(space(fixed={"alpha": 16, "max_steps": 8}), reuse=False)
    assert list(stored.edits(began, None)) == list(stored.edits(began, older)) == []
    assert [name for name, *_ in stored.edits(other, older)] == ["space.fixed", "reuse"]
    turned = make(space(parameters=dict(reversed(GRID["parameters"].items()))))
    assert [name for name, *_ in stored.edits(turned, older)] == ["space.parameters"]
