"""A base model before and after: what an adapter could have changed of it."""

import torch

IDS = torch.randint(1024, (2, 40), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


def state_of(base) -> dict:
    """Everything of a base that an adapter could have changed."""
    return {
        "logits": logits(base),
        "state": {name: value.clone() for name, value in base.state_dict().items() if torch.is_tensor(value)},
        "kinds": {name: type(module) for name, module in base.named_modules()},
        "trainable": [name for name, p in base.named_parameters() if p.requires_grad],
        "training": [name for name, module in base.named_modules() if module.training],
        "attributes": set(vars(base)),
    }


def assert_untouched(base, before: dict) -> None:
    assert not hasattr(base, "peft_config")
    after = state_of(base)
    assert torch.equal(after.pop("logits"), before["logits"])
    state = after.pop("state")
    assert state.keys() == before["state"].keys()
    assert all(torch.equal(value, before["state"][name]) for name, value in state.items())
    assert after == {name: before[name] for name in after}
