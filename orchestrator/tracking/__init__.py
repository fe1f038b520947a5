"""MLflow, a projection of the ledger: only this package imports it."""
