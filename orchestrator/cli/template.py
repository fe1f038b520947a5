"""The search space that `init` writes."""

SPACE = """\
# A search space: what a sweep tries. Run it with the flag --space and the path of this file.
# Each setting stands in `parameters` (searched) or in `fixed` (the same in every trial); what stands in neither has the
# default that is said here. The keys are those of a W&B sweep file.
description: "Which rank, scale and learning rate, at 4 or 16 bits?"
method: tpe  # or nsga2, gp, random, qmc; grid runs every point once and takes `values` only

parameters:
  precision: {values: [nf4, 16bit]}  # of the frozen base: 4-bit NormalFloat (QLoRA), or 16 bits (LoRA)
  rank: {values: [2, 8, 32]}
  alpha_ratio: {values: [1, 2]}  # alpha / rank; or name alpha itself in its place
  targets: {values: [qkv, attention, all-linear]}  # groups that every model has; also mlp, or names of modules
  learning_rate: {distribution: log_uniform_values, min: 5.0e-5, max: 2.0e-3}  # also uniform, int_uniform

fixed:
  batch_size: 4
  max_length_tokens: 128  # longer training rows are cut, at the end of the response
  max_steps: 60
  dropout: 0.05  # on the adapter's input
  # rank_stabilized: false  # true scales by alpha / sqrt(rank)
  # keep_16bit: []  # or blocks and modules ([model.layers.0]) that stay at 16 bits at 4 bits
  # schedule: constant  # or linear, cosine
  # warmup_share: 0.0  # of the steps
  # gradient_checkpointing: false  # true saves memory and costs time
  # optimizer: adamw  # or adamw_8bit, which needs engine: eager
  # seed, engine, loop: flags of the command line, which a space may name in their place

early_terminate: {type: hypervolume}  # or asha; none keeps every trial to its end
"""
