"""What every Engine promises, as checks that run on any device; see trainables.training.engine."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite, nan
from typing import Any

import numpy as np
import pytest
import torch

from trainables.evaluation.held_out import EvalBatches
from trainables.training.engine import Engine
from trainables.values.checkpoint import EngineState

MEMBERS = ("parameters", "n_bad_gradients", "loss_scale", "run", "eval_loss", "state", "restore")


def check_engine(start: Callable[[], Engine], steps: Sequence[Any], rows: EvalBatches) -> None:
    """Train by an engine, stop half-way and go on in a new one.

    Args:
        start: a new engine of one and the same config without dropout, in float32; the one before is done with.
        steps: at least four batches in the engine's own form.
        rows: held-out rows.
    """
    half = len(steps) // 2
    engine = start()
    assert [name for name in MEMBERS if not hasattr(engine, name)] == []
    assert engine.loss_scale == 1.0
    fresh = [p.detach().clone() for p in engine.parameters]
    untrained = engine.eval_loss(rows)
    losses = engine.run(steps[:half])
    assert (losses.shape, losses.dtype) == ((half,), torch.float32)
    assert losses.device == engine.parameters[0].device
    assert not all(torch.equal(p, before) for p, before in zip(engine.parameters, fresh, strict=True))
    state = engine.state()
    _check_state(state, engine)
    rest = engine.run(steps[half:]).tolist()
    trained = engine.eval_loss(rows)
    assert all(map(isfinite, [*losses.tolist(), *rest, trained]))
    assert trained < untrained
    assert int(engine.n_bad_gradients) == 0
    weights = [p.detach().clone() for p in engine.parameters]

    del engine
    again = start()
    assert all(torch.equal(p, before) for p, before in zip(again.parameters, fresh, strict=True))
    again.restore(state)
    assert again.run(steps[half:]).tolist() == rest
    assert again.eval_loss(rows) == trained
    assert all(torch.equal(p, weight) for p, weight in zip(again.parameters, weights, strict=True))

    with pytest.raises(ValueError, match="the checkpoint has"):
        again.restore(replace(state, weights=state.weights[:-1]))
    _check_bad_gradients(start(), state, steps)


def _check_state(state: EngineState, engine: Engine) -> None:
    """Weights in the order of the parameters, and one moment of each kind for every one of them."""
    flat = torch.cat([p.detach().flatten() for p in engine.parameters]).cpu().numpy()
    np.testing.assert_array_equal(state.weights, flat)
    assert state.first_moments.shape == state.second_moments.shape == flat.shape
    assert state.first_moments.any()
    assert (state.second_moments >= 0).all()
    assert (state.loss_scale, state.n_bad_gradients) == (1.0, 0)


def _check_bad_gradients(engine: Engine, state: EngineState, steps: Sequence[Any]) -> None:
    """A step whose gradient norm is not finite is counted, on top of those in the state."""
    engine.restore(replace(state, weights=np.full_like(state.weights, nan), n_bad_gradients=3))
    engine.run(steps[:1])
    assert int(engine.n_bad_gradients) == 4
    assert engine.state().n_bad_gradients == 4
