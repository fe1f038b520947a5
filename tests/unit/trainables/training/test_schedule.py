"""The schedules of the learning rate against transformers' own."""

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from trainables.training.schedule import rate_at
from trainables.values.config import TrialConfig

STEPS = 40


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_share", [0.0, 0.03, 0.5, 0.99])
def test_rates_are_those_of_the_hugging_face_trainer(schedule, warmup_share, tmp_path):
    config = TrialConfig(
        precision="16bit", rank=1, alpha=1, learning_rate=3e-4, max_steps=STEPS,
        schedule=schedule, warmup_share=warmup_share,
    )  # fmt: skip
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    arguments = TrainingArguments(output_dir=str(tmp_path), warmup_steps=warmup_share)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, arguments.get_warmup_steps(STEPS), STEPS)
    expected = []
    for _ in range(STEPS):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert [rate_at(config, step) for step in range(STEPS)] == pytest.approx(expected, rel=1e-12)
    assert (expected[0] == 0) == (warmup_share > 0)
