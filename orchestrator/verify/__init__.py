"""Whether a sweep is whole: its ledger against what was asked for and all that is written from it."""
