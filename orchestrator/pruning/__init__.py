"""Which running trial is stopped early."""
