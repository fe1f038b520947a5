"""What a sweep answers, in one sentence with its uncertainty: each page about it begins with this. Pure."""

from typing import TYPE_CHECKING

from orchestrator.analysis.choice import alike, best, counting, loss_noise, lowest
from orchestrator.analysis.describe import describe
from orchestrator.analysis.verdict import seeds

if TYPE_CHECKING:
    from orchestrator.analysis.snapshot import SweepSnapshot
    from orchestrator.analysis.verdict import Verdict
    from trainables.values.results import TrialResult

ANSWER = "Answer"
"""Before what is final."""


def answer_of(sweep: "SweepSnapshot") -> str:
    """The trial to take: the cheapest of those whose validation loss is the lowest as far as can be told.

    With the verdict on it, where it is a 4-bit one.
    """
    lead = _lead(sweep)
    found, noise = counting(sweep.trials, sweep.settings), loss_noise(sweep.trials)
    taken, least = best(found, noise), lowest(found)
    if taken is None or least is None:
        return f"{lead}: none, as no trial counts for the front."
    loss = f"{least.history[-1].eval_loss_nats:.4f} nats"
    if noise.sd is None:
        further = " (a new sweep with --finalist-seeds 3 does)" if sweep.settings.finalist_seeds == 1 else ""
        open_ = f"was not measured{further}" if lead == ANSWER else "is still to be measured"
        sure = f"has the lowest validation loss, {loss}, of one seed: what another seed changes {open_}"
        return f"{lead}: {_named(taken)} {sure}{_cost(sweep, taken)}."
    within = f"{noise.margin:.4f} nats ({noise.degrees})"
    if (n_alike := len(alike(least, found, noise))) == 1:
        sure = f"has the lowest validation loss, {loss}, by more than {within} of noise"
    elif taken is least:
        sure = (
            f"has the lowest validation loss, {loss}, and is the cheapest of {n_alike} trials within {within} of noise"
        )
    else:
        own = taken.history[-1].eval_loss_nats
        sure = f"has a validation loss of {own:.4f} nats: the cheapest of {n_alike} trials within {within} of noise of "
        sure += f"the lowest, {least.history[-1].eval_loss_nats:.4f}"
    return f"{lead}: {_named(taken)} {sure}{_cost(sweep, taken)}."


def short_answer_of(sweep: "SweepSnapshot") -> str:
    """The trial to take, its loss, and the verdict in a word: what fits two lines."""
    taken = best(counting(sweep.trials, sweep.settings), loss_noise(sweep.trials))
    if taken is None:
        return answer_of(sweep)
    verdict = sweep.verdicts.get(taken.key)
    cost = f"; 4 bits: {verdict.answer}" if verdict else ""
    return f"{_lead(sweep)}: {_named(taken)}, {taken.history[-1].eval_loss_nats:.4f} nats{cost}."


def _lead(sweep: "SweepSnapshot") -> str:
    """Final once finalists were evaluated: a 4-bit one has its verdict from that."""
    status = sweep.status()
    is_done = status.n_done >= status.n_expected and status.n_evaluated >= status.n_to_evaluate
    return ANSWER if is_done or status.phase == "ended" else "So far"


def _named(trial: "TrialResult") -> str:
    return f"trial {trial.number} ({describe(trial.config)}; {trial.cost.peak_memory_mib:.1f} MiB)"


def _cost(sweep: "SweepSnapshot", trial: "TrialResult") -> str:
    """The verdict on a 4-bit trial in a few words."""
    if trial.config.precision == "16bit":
        return ""
    verdict = sweep.verdicts.get(trial.key)
    return f"; what its 4 bits cost: {_short(verdict)}" if verdict else "; what its 4 bits cost was not measured"


def _short(verdict: "Verdict") -> str:
    lost = verdict.lost
    if lost is None or lost.low is None:
        return verdict.answer
    ends = f"{100 * lost.low:.1f} to {100 * lost.high:.1f}"
    return f"{verdict.answer}, {100 * lost.share:.1f} % ({ends}) of what tuning gained, {seeds(lost.n_pairs)}"
