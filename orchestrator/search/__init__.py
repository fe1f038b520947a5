"""What to try next: Optuna behind two calls, a projection of the ledger."""
