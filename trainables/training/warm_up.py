"""The first steps on a base: libraries allocate workspaces at first use, which no trial is to be blamed for."""

import gc
from typing import TYPE_CHECKING, get_args

import torch

from trainables.models import lora
from trainables.models.architecture import context_of
from trainables.models.families import family_of_model
from trainables.training.batches import MULTIPLE_TOKENS
from trainables.training.eager import EagerEngine
from trainables.values.config import BaseForm, Loop, TrialConfig
from trainables.values.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def warm_up(base: "PreTrainedModel", form: BaseForm, workload: Workload, device: str) -> None:
    """Do a step of each loop.

    Of an adapter on one kind of module: all of the base works, and peft has little to attach.

    Args:
        base: of this form and workload, on this device.
    """
    precision, keep_16bit = form
    length = min(MULTIPLE_TOKENS, context_of(base.config))
    ids = torch.zeros(4, length, dtype=torch.int64)
    targets = family_of_model(base).targets[:1]
    for loop in get_args(Loop):
        config = TrialConfig(precision=precision, keep_16bit=keep_16bit, rank=8, alpha=1, targets=targets, loop=loop)
        model = lora.attach(base, config, base_name=workload.base_model)
        try:
            engine = EagerEngine(model, config, compute_dtype=workload.compute_dtype, device=device)
            engine.run([(ids, ids)])
        finally:
            lora.detach(model)
        del model, engine
    gc.collect()  # peft's modules refer to each other; what they hold would hide a leak
