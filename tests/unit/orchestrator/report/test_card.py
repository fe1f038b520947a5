"""The model card: known ledgers in; the report's figures, the hub's metadata and nothing private out."""

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from orchestrator import settings as settings_file
from orchestrator.report import card as cards
from orchestrator.report.card import layers_of
from orchestrator.report.content import report_of
from orchestrator.settings import stored
from tests.bench.recorded import SWEEPS
from tests.support.in_process import called
from tests.support.sweeps import (
    REPO,
    WORKLOAD,
    Desk,
    completes,
    cost,
    estimate,
    evaluated_on_test,
    likeness,
    make,
    measurement,
    sample,
    similarity,
    snapshot,
    trial,
)
from trainables.models.layout import Coverage
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError
from trainables.values.findings import BiasShift, Comparison, KlShare

NF4 = TrialConfig(precision="nf4", rank=4, alpha=8)
BASELINE = NF4.at_other_precision
SECTIONS = """Model details; Intended uses; Out-of-scope uses; Training data; Training procedure; Evaluation; Results;
Limitations; Biases; Ethical considerations: misuse and mitigations; Licences; Environmental impact; Citation"""
HUB = replace(
    WORKLOAD,
    base_model="openai-community/gpt2-medium",
    base_folder="/cache/models--openai-community--gpt2-medium/snapshots/abc",
    weights="pretrained",
    data="tatsu-lab/alpaca",
)
THE_SWEEP = "The sweep this adapter comes from"
USE = "How to use"
EVIL = "{{ 7 * 7 }} | <b>x</b>\n---\n# heading [a](b)"


def measured(number, config, peak, seconds=0.05, **values):
    """A trial whose cost key was measured."""
    own = cost(peak_memory_mib=peak, seconds_per_step=seconds)
    rung = measurement(200, values.pop("loss", 2.0))
    return trial(number, config=config, history=(rung,), cost=own, **values)


def compared():
    """4 bits at a cosine of 0.99 beside its references."""
    return Comparison(
        quantized=likeness(0.99, low=0.98, kl_nats=0.01),
        untuned=likeness(0.5, kl_nats=1.5),
        replicates=(likeness(0.9, kl_nats=0.2), likeness(0.8, kl_nats=0.2)),
        quantization_to_seed_ratio=estimate(0.07, 0.05),
    )


def evaluated():
    shares = tuple(
        KlShare(by="kind of task", group=group, kl_nats=estimate(kl), n_tokens=30, n_rows=3)
        for group, kl in (("write", 0.25), ("list", 0.75))
    )
    shift = BiasShift(about="age", gap_16bit=estimate(0.1), gap_nf4=estimate(0.2), change=estimate(0.3), n_prompts=24)
    return replace(evaluated_on_test(compared()), breakdown=shares, bias=(shift,))


def whole_sweep():
    """Both precisions and loops, compared and evaluated."""
    lean = replace(NF4, loop="lean")
    return [
        measured(
            0, BASELINE, 100.0, test_evaluation=evaluated_on_test(), environment={"device": "H200"}, ended_at=165.0
        ),
        measured(1, NF4, 90.0, 0.06, similarity=similarity(), test_evaluation=evaluated(), loss=1.5),
        measured(2, lean.at_other_precision, 50.0),
        measured(3, lean, 30.0, loss=3.0),
    ]


def report(trials, workload=WORKLOAD, settings=None):
    facts = {"workload": asdict(workload) if workload else None, "created_at": 100.0}
    return report_of(snapshot(settings or make(objectives=("eval_loss_nats",)), trials, facts), lambda config: 55.0)


def layers(workload=WORKLOAD, **values):
    """A sensitivity run as its file holds it."""
    variants = [("block", "block 0", 0.1), ("block", "block 7", 0.4), ("kind", "mlp.c_fc", 0.3), ("all", "all", 0.5)]
    return {
        "name": "s",
        "n_rows": 128,
        "workload": asdict(workload),
        "environment": {"device": "H200"},
        "variants": [{"scope": s, "label": label, "kl_nats": kl, "loss_nats": 0.01} for s, label, kl in variants],
    } | values


def section(text, heading):
    return re.split(r"\n##+ ", text.split(f"# {heading}\n")[1])[0]


def answers(text, heading="Results"):
    """Question -> answer, of the table of results."""
    table = section(text, heading).split("\n\nSettings of")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    return dict(line.strip("| ").split(" | ", 1) for line in rows[2:])


# --- what it says


@pytest.mark.parametrize(("trials", "number"), [([], None), (whole_sweep(), None), (whole_sweep(), 3)])
def test_every_section_of_the_original_card_is_kept_and_that_of_an_adapter_has_one_for_its_sweep(trials, number):
    text = str(cards.card_of(report(trials, HUB), None, None if number is None else trials[number]))
    headings = re.findall(r"^##+ (.*)", text, re.MULTILINE)
    kept = [heading for heading in headings if heading not in (THE_SWEEP, USE, "Samples")]
    assert kept == " ".join(SECTIONS.split()).split("; ")
    assert (THE_SWEEP in headings) == (USE in headings) == (number is not None)
    assert "\n\n\n" not in text
    assert "CC BY-NC 4.0" in text
    assert "dettmers2023qlora" in text


def test_the_results_are_the_figures_of_the_ledger():
    found = answers(str(cards.card_of(report(whole_sweep()), layers())))
    saved = {loop: found[f"How much memory does QLoRA save, {loop} loop?"] for loop in ("standard", "lean")}
    assert "10.0 % of the peak" in saved["standard"]
    assert "40.0 % of the peak" in saved["lean"]
    like = found["Is similarity to the 16-bit baseline at least 0.95?"]
    assert like.startswith("yes: embedding cosine 0.9900 (0.9800 to 1.0000); another seed 0.8500 (mean of 2)")
    assert "untuned base 0.5000, on 64 test rows" in like
    assert "0.2000 (mean of 2), untuned base 1.5000" in found["Similarity to the 16-bit baseline: KL (nats)"]
    assert "undetermined: it takes 3 fresh seeds" in found["Which rank is best (smallest sufficient), 4 bits?"]
    assert found["ms/step, 4 bits, standard loop"].startswith("60.0 (1000.0 to 1000.0), peak 90.0 MiB, rank 4")
    assert "block 7 (KL 0.400000 nats) and in mlp.c_fc (KL 0.300000" in found["Where does quantization show, by layer?"]
    assert "list (0.7500" in found["Where does quantization show, by token and task?"]


@pytest.mark.parametrize("kind", ["Alpaca", "chat", "completion"])
def test_the_card_tells_how_prompts_are_written_and_which_rows_were_read(kind):
    rows = replace(HUB, row_kind=kind, data_split="test", rows_found=f"1,500 {kind} rows")
    text = cards.card_of(report([], rows)).text
    frame = {"Alpaca": "`### Instruction:`", "chat": "the base's own chat template", "completion": "the row's `prompt`"}
    (line,) = [line for line in text.splitlines() if line.startswith("Prompt: ")]
    assert line.startswith(f"Prompt: {frame[kind]}")
    assert f"tatsu-lab/alpaca, split test (1,500 {kind} rows), digest" in text


def test_the_card_tells_what_adapters_cover_that_of_a_trial_its_own_targets_alone():
    found = []
    for targets, share in ((NF4.targets, 0.25), (("mlp.c_fc",), 0.333)):
        n_blocks_with = dict.fromkeys(targets, 24)
        found.append(Coverage(targets=targets, n_blocks=24, n_blocks_with=n_blocks_with, share=share))
    whole = replace(report(whole_sweep()), coverage=tuple(found), generic_base="gpt_neox")
    both, own = (cards.card_of(whole, None, trial).text for trial in (None, whole_sweep()[1]))
    line = "| What adapters cover | attn.c_attn in 24 of 24 blocks, 25.0 % of their linear weights"
    assert f"{line}; mlp.c_fc in 24 of 24 blocks, 33.3 % of their linear weights. |" in both
    assert f"{line} |" in own
    assert "| Generic path | no family here describes gpt_neox" in both
    assert "| What adapters cover |" not in cards.card_of(report(whole_sweep())).text


def test_similarity_under_the_threshold_is_a_no():
    settings = make(
        objectives=("eval_loss_nats",), min_similarity=0.985
    )  # above the interval's low end, under the value
    found = answers(str(cards.card_of(report(whole_sweep(), settings=settings))))
    assert found["Is similarity to the 16-bit baseline at least 0.985?"].startswith("no: embedding cosine 0.9900")


def test_what_was_not_measured_says_so_and_shows_no_figure():
    empty = cards.card_of(report([], workload=None))
    assert "no trial completed" in section(str(empty), "Results")
    assert empty.data.eval_results is None
    alone = answers(str(cards.card_of(report([measured(0, BASELINE, 100.0)]))))
    for found in (answers(str(empty)), alone):
        for what in ("How much memory does QLoRA save, lean loop?", "`quantization_to_seed_ratio`"):
            assert found[what] == "not measured"
        assert {said for what, said in found.items() if "Similarity" in what or "breakdown" in what} == {"not measured"}
    assert not [said for said in answers(str(empty)).values() if re.search(r"\d\.\d", said)]
    assert alone["ms/step, 16 bits, standard loop"].startswith("50.0")
    assert alone["ms/step, 4 bits, standard loop"] == "not measured"


@pytest.mark.parametrize(
    ("weights", "said"),
    [("random", "random weights"), ("demo", "the embedded demo model"), ("stand-in", "a stand-in base")],
)
@pytest.mark.parametrize("number", [None, 1], ids=["sweep", "trial"])
def test_the_results_say_once_whose_weights_they_are_of_and_the_hubs_metadata_each_time(weights, said, number):
    trials = whole_sweep()
    card = cards.card_of(report(trials, replace(WORKLOAD, weights=weights)), None, number and trials[number])
    assert section(str(card), "Results").count(said) == 1
    assert all(weights in result.metric_name for result in card.data.eval_results)


@pytest.mark.parametrize("number", [None, 1], ids=["sweep", "trial"])
def test_the_card_of_the_demo_is_of_a_toy_and_tells_nothing_of_gpt2_medium_or_alpacas_own_rows(number):
    trials, demo = whole_sweep(), replace(WORKLOAD, weights="demo", data="demo")
    card = str(cards.card_of(report(trials, demo), None, number and trials[number]))
    assert "What a toy like this answers is mostly wrong" in section(card, "Out-of-scope uses")
    said = re.findall(r"[^\n]*(?:GPT-2|WebText|tatsu-lab|BY-NC)[^\n]*", card)
    assert {line for line in said if "not GPT-2 Medium" not in line} == set()


def test_the_card_of_a_sweep_begins_with_the_answer():
    body = str(cards.card_of(report(whole_sweep()))).split("# Model card:")[1]
    assert re.match(r"[^\n]*\n\n\*\*(Answer|So far): trial ", body)


def test_a_sweep_that_still_runs_says_that_figures_can_change():
    running = report(whole_sweep(), settings=make(n_trials=32, objectives=("eval_loss_nats",)))
    assert "not finished" in section(str(cards.card_of(running)), "Results")


# --- what goes with an adapter


def own_part(card):
    """All that a trial's card says outside the section that is about its sweep."""
    return str(card).replace(section(str(card), THE_SWEEP), "")


@pytest.mark.parametrize("number", range(4))
def test_the_card_of_a_trial_is_the_same_whatever_the_other_trials_came_to(number):
    trials = whole_sweep()
    worse = [
        measured(t.number, t.config, t.cost.peak_memory_mib + 7.0, 0.09, loss=t.history[-1].eval_loss_nats + 0.01)
        for t in trials
    ]
    others = [t if t.number == number else worse[t.number] for t in trials]
    before, after = (cards.card_of(report(found), None, trials[number]) for found in (trials, others))
    assert own_part(before) == own_part(after)
    assert section(str(before), THE_SWEEP) != section(str(after), THE_SWEEP)


def test_the_figures_of_an_adapter_are_its_own_in_the_results_and_in_the_model_index():
    trials = whole_sweep()
    card = cards.card_of(report(trials), None, trials[1])
    found = {(r.metric_type, r.dataset_split): r.metric_value for r in card.data.eval_results}
    assert found["eval_loss_nats", "validation"] == 1.5
    assert found["eval_loss_nats", "test"] == 2.0
    assert (found["peak_memory_mib", None], found["seconds_per_step", None]) == (90.0, 0.06)
    assert found["embedding_cosine", "test"] == 0.99
    assert card.data.model_name == "t-trial-1"
    said = answers(str(card))
    assert said["Validation loss, on the validation rows"] == "1.5000 nats after 200 steps."
    assert said["Is similarity to its 16-bit baseline at least 0.95?"].startswith("yes: embedding cosine 0.9900")
    assert said["What do 4 bits cost?"].startswith("no verdict: the sweep is of protocol 1")
    assert "less than half as much as another seed" in said["Behaviour (decides nothing)"]


def test_an_adapter_beside_a_better_one_has_neither_its_loss_nor_its_verdict():
    trials = whole_sweep()
    card = cards.card_of(report(trials), None, trials[3])
    assert {(r.metric_type, r.metric_value) for r in card.data.eval_results} == {
        ("peak_memory_mib", 30.0),
        ("seconds_per_step", 0.05),
        ("eval_loss_nats", 3.0),
    }
    assert answers(str(card))["What do 4 bits cost?"].startswith("not measured")
    assert answers(str(card), THE_SWEEP)["What do 4 bits cost?"].startswith("no verdict")


def test_the_samples_of_an_adapter_are_its_own_and_those_of_a_sweep_the_best_4_bit_finalists():
    trials = whole_sweep()
    other = replace(trials[3], test_evaluation=replace(evaluated(), samples=(sample("other"),)))
    of_trial, of_sweep = cards.card_of(report(trials), None, other), cards.card_of(report(trials))
    assert "| quantized text of other |" in section(str(of_trial), "Samples")
    assert "| quantized text of Name a tree. |" in section(str(of_sweep), "Samples")
    assert "Samples" not in str(cards.card_of(report(trials), None, trials[0]))


def test_an_adapter_over_16_bits_is_not_said_to_be_one_over_4():
    trials = whole_sweep()
    card = cards.card_of(report(trials), None, trials[0])
    own = own_part(card)
    assert "trained over the base at 16 bits (LoRA): trial 0 of sweep `t`" in " ".join(own.split())
    assert "| Method | LoRA: frozen base at 16 bits, not quantized; LoRA adapter in float32 |" in own
    assert "| `precision` | 16bit |" in own
    assert card.data.tags == ["lora"]
    assert not {r.metric_type for r in card.data.eval_results} & {"embedding_cosine", "kl_nats"}
    assert "with QLoRA" not in own
    four = own_part(cards.card_of(report(trials), None, trials[1]))
    assert "trained over the base at 4 bits (QLoRA): trial 1 of sweep `t`" in " ".join(four.split())


# --- what the hub reads


def test_the_metadata_is_what_the_hub_knows_and_its_results_are_those_of_the_table():
    card = cards.card_of(report(whole_sweep(), HUB))
    block = yaml.safe_load(str(card).split("---\n")[1])
    assert block["base_model"] == "openai-community/gpt2-medium"
    assert (block["datasets"], block["license"], block["library_name"]) == (
        ["tatsu-lab/alpaca"],
        "cc-by-nc-4.0",
        "peft",
    )
    index = block["model-index"][0]
    assert index["name"] == "t"
    found = {m["type"]: (m["value"], r["dataset"].get("split")) for r in index["results"] for m in r["metrics"]}
    assert set(block["metrics"]) == set(found)
    assert found["memory_saved_percent_standard"] == (10.0, None)
    assert found["memory_saved_percent_lean"] == (40.0, None)
    assert found["seconds_per_step_nf4_standard"] == (0.06, None)
    assert found["embedding_cosine"] == (0.99, "test")
    assert found["kl_nats"] == (0.01, "test")
    assert found["eval_loss_nats"] == (2.0, "test")  # 12 nats over 6 tokens
    assert found["quantization_to_seed_ratio"] == (0.07, "test")
    assert ModelCard(str(card)).data.eval_results == card.data.eval_results
    assert "# Model card: GPT-2 Medium tuned on Alpaca with QLoRA" in str(card)


@pytest.mark.parametrize("data", ["/home/me/secret/a.json", "secret/a.JSONL", "secret/a.txt"])
@pytest.mark.parametrize("base", ["/home/me/secret/gpt2", "random:/home/me/secret/gpt2", "../secret/gpt2"])
def test_a_card_travels_without_paths_of_this_machine_and_names_no_hub_id_that_is_none(base, data):
    local = replace(
        WORKLOAD,
        base_model=base,
        base_folder="/home/me/secret/gpt2",
        weights="pretrained",
        data=data,
    )
    card = cards.card_of(report(whole_sweep(), local), None, whole_sweep()[1])
    assert "secret" not in str(card)
    assert f"tuned on {data.rpartition('/')[2]}" in str(card)
    assert (card.data.base_model, card.data.datasets, card.data.license) == (None, None, "other")
    assert "**The base\nwas read from a folder**" in section(str(card), USE)


def test_a_card_with_an_adapter_says_how_it_is_used_and_only_of_a_local_base_that_its_folder_must_be_named():
    used = section(str(cards.card_of(report(whole_sweep(), HUB), None, whole_sweep()[1])), USE)
    assert 'python generate.py "Name three colours."' in used
    assert "folder**" not in used
    prose = replace(HUB, row_kind="completion")
    assert '"The three primary colours are"' in section(
        str(cards.card_of(report(whole_sweep(), prose), None, whole_sweep()[1])), USE
    )


def test_the_licence_of_rows_of_a_file_is_the_one_that_was_said_and_that_of_known_rows_their_own():
    local = replace(WORKLOAD, data="alpaca.json", weights="pretrained")
    unsaid, said = (cards.card_of(report([], local), licence=licence) for licence in (None, "cc-by-nc-4.0"))
    assert (unsaid.data.license, unsaid.data.license_name) == ("other", "that-of-the-rows")
    assert said.data.license == "cc-by-nc-4.0"
    assert "license_name" not in str(said)
    assert "adapters: trained on rows under cc-by-nc-4.0" in section(str(said), "Licences")
    assert "nobody said" in section(str(unsaid), "Licences")
    assert cards.card_of(report([], HUB), licence="mit").data.license == "cc-by-nc-4.0"


def test_the_answers_are_a_section_of_their_own_before_the_limitations():
    text = str(cards.card_of(report(whole_sweep()), answers="Base *x*.\n\n### What do 4 bits cost?\n\n| a |\n"))
    before, after = text.split("\n## The questions, answered from several sweeps\n\nBase *x*.\n")
    assert before.rfind("\n### Results") > 0
    assert after.startswith("\n### What do 4 bits cost?\n\n| a |\n\n## Limitations\n")


def test_what_a_base_s_folder_says_of_its_weights_stands_where_figures_do_and_in_their_names():
    noted = replace(WORKLOAD, base_model="./own", weights="pretrained", base_note="weights rounded before")
    card = cards.card_of(report(whole_sweep(), noted))
    assert "Measured on: own (weights rounded before)" in section(str(card), "Results")
    assert all(", weights rounded before" in result.metric_name for result in card.data.eval_results)


TEXTS = st.text(max_size=30).map(lambda text: "".join(c for c in text if c.isprintable()))


@effort(max_examples=25)
@example(chosen={0, 1, 2, 3}, weights="random", base=EVIL, data=EVIL)
@given(
    chosen=st.sets(st.integers(0, 3)),
    weights=st.sampled_from(["pretrained", "random", "stand-in", "demo"]),
    base=TEXTS,
    data=TEXTS,
)
def test_writing_a_card_twice_gives_one_valid_file(chosen, weights, base, data):
    workload = replace(WORKLOAD, weights=weights, base_model=base, data=data)
    found = report([whole_sweep()[number] for number in sorted(chosen)], workload)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "CARD.md"
        cards.write(cards.card_of(found), path)
        first = path.read_bytes()
        cards.write(cards.card_of(found), path)
        assert path.read_bytes() == first
        assert first.endswith(b"```\n")
        assert [file.name for file in path.parent.iterdir()] == ["CARD.md"]
        read = ModelCard.load(path)
    assert str(read).encode() == first
    assert [r.metric_type for r in read.data.eval_results or []] == (read.data.metrics or [])
    headings = re.findall(r"^##+ (.*)", read.text, re.MULTILINE)
    assert [heading for heading in headings if heading != "Samples"] == " ".join(SECTIONS.split()).split("; ")


def test_markup_from_outside_is_text():
    workload = replace(WORKLOAD, base_model=EVIL, data=EVIL, weights="random")
    text = str(cards.card_of(report(whole_sweep(), workload)))
    assert "49" not in section(text, "Model details")
    assert "<b>" not in text.replace(r"\<b\>", "")
    assert not re.search(r"^# heading", text, re.MULTILINE)


# --- what it is of


def test_the_sweep_key_is_of_what_decides_results_and_of_nothing_else():
    one = cards.sweep_key(report(whole_sweep()))
    assert re.fullmatch("[0-9a-f]{64}", one)
    same = make(name="other", address="auto", tracking_uri="http://x", objectives=("eval_loss_nats",))
    moved = replace(WORKLOAD, base_folder="/elsewhere", data_folder="/elsewhere", base_model="/a/copy")
    assert cards.sweep_key(report(whole_sweep()[:1], moved, same)) == one
    others = [make(objectives=("eval_loss_nats",), seed=1), make(objectives=("eval_loss_nats",), max_steps=3)]
    keys = [cards.sweep_key(report(whole_sweep(), settings=other)) for other in others]
    keys += [cards.sweep_key(report(whole_sweep(), replace(WORKLOAD, data_digest="e" * 64)))]
    assert len({one, *keys}) == 4


def test_layers_are_those_of_the_newest_run_over_the_same_base_and_rows(tmp_path):
    assert layers_of(tmp_path, WORKLOAD) is None
    runs = {"old": WORKLOAD, "new": WORKLOAD, "other": replace(WORKLOAD, base_fingerprint="0" * 64)}
    runs["rows"] = replace(WORKLOAD, data_digest="0" * 64)
    for age, (name, workload) in enumerate(runs.items()):
        path = tmp_path / "sensitivity" / name / "sensitivity.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(layers(workload, name=name)))
        os.utime(path, (1000 + age, 1000 + age))
    assert layers_of(tmp_path, WORKLOAD)["name"] == "new"
    assert layers_of(tmp_path, None) is None


def test_layers_that_others_can_write_are_on_no_card(tmp_path):
    path = tmp_path / "sensitivity" / "one" / "sensitivity.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(layers(WORKLOAD)))
    path.chmod(0o666)
    with pytest.raises(ConfigError, match=r"sensitivity: .* can be written by others"):
        layers_of(tmp_path, WORKLOAD)


def test_the_command_replaces_no_file_unasked_and_writes_the_same_again_and_refuses_an_unknown_sweep(tmp_path):
    settings = make()
    folder = settings_file.sweep_folder("t", tmp_path / "mlflow_runs")
    stored.save(settings, folder)
    desk = Desk(folder, settings)
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    desk.finish(lambda task: completes(task, loss=1.0 + task.config.rank))
    desk.crash()
    (tmp_path / "MODEL_CARD.md").write_text("old")
    refused = called("card", "t", cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert "OUTPUT: MODEL_CARD.md exists; say --force" in refused.err
    assert (tmp_path / "MODEL_CARD.md").read_text() == "old"
    done = called("card", "t", "--force", cwd=tmp_path)
    assert (done.code, done.out) == (0, ""), done.err
    first = (tmp_path / "MODEL_CARD.md").read_bytes()
    assert ModelCard.load(tmp_path / "MODEL_CARD.md").data.model_name == "t"
    assert called("card", "t", "--output", "sub/again.md", cwd=tmp_path).code == 0
    assert (tmp_path / "sub" / "again.md").read_bytes() == first
    unknown = called("card", "tt", cwd=tmp_path)
    assert unknown.code == 2
    assert "did you mean 't'" in unknown.err


def test_the_repos_own_card_is_what_the_command_writes_from_the_recorded_sweeps(tmp_path):
    said = ("--license", "cc-by-nc-4.0", "--answers", ",".join(SWEEPS), "--output", str(tmp_path / "MODEL_CARD.md"))
    finished = called("card", "smollm2-grid", *said, cwd=REPO)
    assert finished.code == 0, finished.err
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert card == (REPO / "MODEL_CARD.md").read_text()
    assert (REPO / "mlflow_runs" / "recorded" / "answers.md").read_text() in card
    assert "GPT-2" not in card


PROMPTS = {
    "Alpaca": "Prompt: `### Instruction:`",
    "completion": "Prompt: the row's `prompt` as it is",
    "chat": "Prompt: the base's own chat template",
}


@pytest.mark.parametrize("row_kind", PROMPTS)
def test_a_card_of_another_base_and_other_rows_says_their_prompt_and_nothing_of_gpt2_and_alpaca(row_kind):
    own = replace(WORKLOAD, base_model="org/own", weights="pretrained", data="own.jsonl", row_kind=row_kind)
    text = str(cards.card_of(report([], own)))
    assert PROMPTS[row_kind] in text
    said = text.split("Where this differs")[0]
    for word in ("GPT-2", "Alpaca", "davinci", "English"):
        assert word not in said
    rest = text.split("## Evaluation")[1].split("## Citation")[0]
    assert "GPT-2" not in rest
    assert "radford2019language" not in text
