"""A sweep of trials: settings, search, pruning, the ledger, and its projections (MLflow, figures)."""
