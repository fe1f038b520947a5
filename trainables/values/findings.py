"""What comparing and evaluating models finds: estimates with intervals, similarities, test evaluations.

Frozen, keyword-only, standard library only, like those of trainables.values.config.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MIN_GROUPS = 30
"""Fewer groups of rows than this give no interval: their central limit is not near enough."""
RESOLUTION = 1e-6
"""Smallest distance 1 - cosine that float32 states resolve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure over rows with its 95 % interval, conditional on the trial's seed.

    Attributes:
        value: over the rows that were measured.
        low, high: BCa bootstrap over groups of equal instruction, see trainables.comparison.bootstrap; None where it is
            withheld, of fewer than MIN_GROUPS groups.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """One model against a reference model (a 4-bit trial's 16-bit baseline); means over rows of each row's own mean.

    Attributes:
        token_match_rate: greedy decoding, equal positions over the longer length.
        embedding_cosine: mean-pooled response states after ln_f, both reading the reference's text.
        centered_cosine: the same with the reference's mean over rows taken off both.
        recovered_cosine: (cosine - untuned) / (1 - untuned), untuned being the base without an adapter.
        top1_agreement: share of response tokens (teacher-forced) whose most likely token is the same.
        kl_nats: KL(reference || this model) of the next-token distribution at each response token.
        n_rows: rows behind top1_agreement and kl_nats.
        n_decoded_rows: rows behind the others.
        n_groups, n_decoded_groups: groups of equal instruction among those rows, which the intervals are over; None in
            ledgers from before they were kept, whose intervals are over rows.
    """

    token_match_rate: Estimate
    embedding_cosine: Estimate
    centered_cosine: Estimate
    recovered_cosine: Estimate
    top1_agreement: Estimate
    kl_nats: Estimate
    n_rows: int
    n_decoded_rows: int
    n_groups: int | None = None
    n_decoded_groups: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A 4-bit trial against its 16-bit baseline, beside the references that say what the figures mean.

    Attributes:
        quantized: the 4-bit trial against the baseline.
        untuned: the 16-bit base without an adapter against the baseline.
        replicates: the baseline's config under other seeds against the baseline; empty until those were trained.
        quantization_to_seed_ratio: (1 - cosine of quantized) / (1 - mean cosine of replicates): how large the
            effect of 4 bits is beside that of another seed; None without replicates.
    """

    quantized: Similarity
    untuned: Similarity
    replicates: tuple[Similarity, ...] = ()
    quantization_to_seed_ratio: Estimate | None = None

    @property
    def over(self) -> str:
        """What the intervals are over."""
        return "rows" if self.quantized.n_groups is None else "groups of equal instruction"

    @property
    def ratio_over_seeds(self) -> tuple[float, float] | None:
        """Least and largest quantization_to_seed_ratio against one replicate each; None without replicates."""
        moved = 1 - self.quantized.embedding_cosine.value
        ratios = [moved / max(1 - seed.embedding_cosine.value, RESOLUTION) for seed in self.replicates]
        return (min(ratios), max(ratios)) if ratios else None


@dataclass(frozen=True, slots=True, kw_only=True)
class KlShare:
    """How much of a 4-bit trial's distance to its baseline one group of tokens or rows carries.

    Attributes:
        by: what divides tokens into groups: "token frequency", "position in the response" or "kind of task".
        group: name of the group.
        kl_nats: mean over the group's response tokens.
        n_tokens, n_rows: in the group.
    """

    by: str
    group: str
    kl_nats: Estimate
    n_tokens: int
    n_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasShift:
    """Whether 4 bits move how a model tells two groups of people apart.

    The same prompt is read with one group word and with the other; the gap between the two is the
    total variation distance of the next-token distributions (0 to 1).

    Attributes:
        about: "gender", "origin", "religion" or "age".
        gap_16bit, gap_nf4: mean gap over prompts of the baseline and of the 4-bit trial.
        change: mean paired difference, 4 bits minus 16 bits.
        n_prompts: pairs of prompts.
    """

    about: str
    gap_16bit: Estimate
    gap_nf4: Estimate
    change: Estimate
    n_prompts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Greedy text of three models after one test prompt; all texts are cut, see trainables.comparison.samples.

    Attributes:
        prompt: what all three read.
        response: what the row itself answers.
        quantized, baseline, untuned: of a 4-bit trial, of its 16-bit baseline and of the untuned 16-bit base.
    """

    prompt: str
    response: str
    quantized: str
    baseline: str
    untuned: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TestEvaluation:
    """A finished trial on the test rows, which no search has seen.

    Attributes:
        row_nats: summed loss over the response tokens of each test row.
        row_tokens: response tokens of each test row.
        untuned_row_nats: row_nats of this precision's base without an adapter.
        row_groups: group of each test row: rows of equal instruction are one; empty in ledgers of protocol 1, as the
            next two are.
        baseline_row_nats: row_nats of a 4-bit trial's 16-bit baseline; empty without one.
        baseline_untuned_row_nats: row_nats of the 16-bit base without an adapter; empty without a baseline.
        comparison: of a 4-bit trial with its baseline (and other seeds of it), else None.
        breakdown: KL to the baseline by token frequency, position and kind of task; empty without a comparison.
        bias: see trainables.comparison.bias; empty without a comparison.
        samples: see trainables.comparison.samples; empty without a comparison, and in ledgers from before they were
            kept.
    """

    row_nats: tuple[float, ...]
    row_tokens: tuple[int, ...]
    untuned_row_nats: tuple[float, ...]
    row_groups: tuple[int, ...] = ()
    baseline_row_nats: tuple[float, ...] = ()
    baseline_untuned_row_nats: tuple[float, ...] = ()
    comparison: Comparison | None = None
    breakdown: tuple[KlShare, ...] = ()
    bias: tuple[BiasShift, ...] = ()
    samples: tuple[Sample, ...] = ()

    @property
    def eval_loss_nats(self) -> float:
        """Token-weighted mean loss over the test rows."""
        return sum(self.row_nats) / sum(self.row_tokens)

    @property
    def untuned_loss_nats(self) -> float:
        """The same of the base without an adapter."""
        return sum(self.untuned_row_nats) / sum(self.row_tokens)


def flat(comparison: Comparison) -> Mapping[str, float]:
    """A comparison as plain numbers by name, for MLflow and Parquet.

    `embedding_cosine`, `embedding_cosine_low`, `embedding_cosine_high`, ... of the 4-bit trial;
    `untuned_embedding_cosine` of the untuned base; `replicate_embedding_cosine`, the mean over seed replicates. Ends of
    an interval that is withheld are left out. Of the ratio also the least and the largest against one seed each.
    """
    names = [name for name in Similarity.__dataclass_fields__ if not name.startswith("n_")]
    values: dict[str, float] = {}
    for name in names:
        estimate = getattr(comparison.quantized, name)
        values |= _ends(name, estimate)
        values[f"untuned_{name}"] = getattr(comparison.untuned, name).value
        if comparison.replicates:
            seeds = [getattr(similarity, name).value for similarity in comparison.replicates]
            values[f"replicate_{name}"] = sum(seeds) / len(seeds)
    ratio = comparison.quantization_to_seed_ratio
    if ratio:
        name = "quantization_to_seed_ratio"
        values |= _ends(name, ratio)
        values[f"{name}_least_seed"], values[f"{name}_largest_seed"] = comparison.ratio_over_seeds
    return values | {"n_rows": comparison.quantized.n_rows, "n_decoded_rows": comparison.quantized.n_decoded_rows}


def _ends(name: str, estimate: Estimate) -> dict[str, float]:
    """A value, and its interval where it has one."""
    values = {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {name: value for name, value in values.items() if value is not None}
