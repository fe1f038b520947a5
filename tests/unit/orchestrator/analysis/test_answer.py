"""The sentence that each page begins with: the trial to take, and how sure that is."""

from dataclasses import replace

from orchestrator.analysis.answer import answer_of, short_answer_of
from orchestrator.analysis.budgets import FINISHED
from tests.support.sweeps import cost, evaluated_pair, make, measurement, snapshot, trial
from trainables.values.config import TrialConfig

SETTINGS = make(objectives=("eval_loss_nats", "peak_memory_mib"))


def ran(number: int, loss: float, mib: float = 100.0, precision: str = "16bit", **values):
    config = TrialConfig(precision=precision, rank=number + 1, alpha=8, seed=values.pop("seed", 0))
    shown = {"config": config, "history": (measurement(200, loss),), "cost": cost(peak_memory_mib=mib)}
    return trial(number, **shown | values)


def said(*trials) -> str:
    return answer_of(snapshot(SETTINGS, trials, {}))


def replicates(of, *losses: float):
    for seed, loss in enumerate(losses, start=1):
        config = replace(of.config, seed=seed)
        yield trial(50 + seed, config=config, history=(measurement(200, loss),), cost=of.cost, origin="replicate")


def test_it_names_the_cheapest_trial_within_the_noise_of_the_lowest_loss():
    best, cheaper, worse = ran(0, 2.0, 120.0), ran(1, 2.005, 110.0), ran(2, 2.5, 90.0)
    found = said(best, cheaper, worse, *replicates(best, 2.01, 1.99))
    assert ": trial 1 (16 bits, rank 2," in found
    assert "110.0 MiB) has a validation loss of 2.0050 nats: the cheapest of 2 trials within 0.0" in found
    assert found.endswith(" of noise of the lowest, 2.0000.")
    assert "(2 degrees of freedom)" in found


def test_the_lowest_that_is_the_cheapest_of_those_within_noise_too_is_not_set_beside_itself():
    best, dearer, worse = ran(0, 2.0, 110.0), ran(1, 2.005, 120.0), ran(2, 2.5, 90.0)
    found = said(best, dearer, worse, *replicates(best, 2.01, 1.99))
    assert ": trial 0 (16 bits, rank 1," in found
    assert "has the lowest validation loss, 2.0000 nats, and is the cheapest of 2 trials within 0.0" in found
    assert found.endswith(" (2 degrees of freedom) of noise.")


def test_a_trial_alone_below_the_noise_is_said_to_be_so_and_without_seeds_what_is_missing_is_said():
    best, worse = ran(0, 2.0), ran(2, 2.5)
    assert "has the lowest validation loss, 2.0000 nats, by more than 0.0" in said(best, worse, *replicates(best, 2.01))
    assert "of one seed: what another seed changes is still to be measured" in said(best, worse)
    over = answer_of(snapshot(make(n_trials=1), [best], {FINISHED: True}))
    assert over.endswith("what another seed changes was not measured (a new sweep with --finalist-seeds 3 does).")
    over = answer_of(snapshot(make(n_trials=1, finalist_seeds=3), [best], {FINISHED: True}))
    assert over.endswith("of one seed: what another seed changes was not measured."), "it was tried"
    assert said() == "So far: none, as no trial counts for the front." or said().startswith("Answer: none")


def test_it_is_final_once_the_finalists_were_evaluated_or_the_sweep_has_ended_without():
    settings = make(n_trials=1)
    open_, evaluated = ran(0, 2.0), ran(0, 2.0, test_evaluation=evaluated_pair(0.0))
    found = {
        (trial.test_evaluation is None, is_over): answer_of(snapshot(settings, [trial], {FINISHED: is_over}))
        for trial in (open_, evaluated)
        for is_over in (False, True)
    }
    leads = {case: text.partition(":")[0] for case, text in found.items()}
    assert leads == {
        (True, False): "So far",
        (True, True): "Answer",
        (False, False): "Answer",
        (False, True): "Answer",
    }


def test_the_short_answer_is_of_the_same_trial_and_fits_two_lines_of_a_narrow_page():
    best, cheaper = ran(0, 2.0, 1200.0), ran(1, 2.005, 1100.0)
    nf4 = ran(0, 2.0, precision="nf4", test_evaluation=evaluated_pair(0.09))
    for trials, end in [
        ([best, cheaper, *replicates(best, 2.01, 1.99)], "targets attn.c_attn; 1100.0 MiB), 2.0050 nats."),
        ([nf4], "targets attn.c_attn; 100.0 MiB), 2.0000 nats; 4 bits: lost."),
    ]:
        sweep = snapshot(SETTINGS, trials, {})
        short, whole = short_answer_of(sweep), answer_of(sweep)
        assert short.endswith(end)
        assert len(short) <= 140
        assert whole.startswith(short.partition(", 2.0")[0])
    assert short_answer_of(snapshot(SETTINGS, [], {})) == said()


def test_of_a_4_bit_trial_it_tells_what_4_bits_cost():
    nf4 = ran(0, 2.0, precision="nf4", test_evaluation=evaluated_pair(0.09))
    assert "; what its 4 bits cost: lost, 9.0 % (" in said(nf4)
    assert said(nf4).endswith(") of what tuning gained, one seed.")
    assert said(replace(nf4, test_evaluation=None)).endswith("; what its 4 bits cost was not measured.")
