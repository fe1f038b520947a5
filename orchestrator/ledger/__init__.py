"""The one truth about a sweep, and the values its rows stand for."""

from orchestrator.ledger.store import FAULTS, TRANSITIONS, Ledger, LedgerError

__all__ = ["FAULTS", "TRANSITIONS", "Ledger", "LedgerError"]
