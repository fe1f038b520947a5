"""What other programs say, without the addresses and secrets that must stand in no log, ledger or run."""

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from trainables.errors import SweepError

SECRET = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|API_KEY|ACCESS_KEY|CREDENTIALS?)(_ID)?$")
"""Names of environment variables that hold one."""
MIN_SECRET_CHARS = 6
"""Shorter values are words like "true", which would be cut out of everything."""
MAX_CHARS = 200
HIDDEN = "***"


def redacted(text: str, *addresses: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """`text` with each secret of the environment, `addresses` with their hosts, and credentials in any URL hidden."""
    hidden = {value for name, value in environment.items() if SECRET.search(name) and len(value) >= MIN_SECRET_CHARS}
    hidden |= {part for address in addresses if address for part in _parts(address)}
    for value in sorted(hidden, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = re.sub(r"(?i)(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", rf"\1 {HIDDEN}", text)
    text = re.sub(r"\bhf_[A-Za-z0-9]{6,}", HIDDEN, text)
    return re.sub(r"(?<=://)[^/\s@'\"]+@", f"{HIDDEN}@", text)


def _parts(address: str) -> set[str]:
    """The address, and its host and port as clients name them; a host of one word would be cut out of other words."""
    found = urlsplit(address)
    parts = {address, found.netloc, f"host='{found.hostname}'", f"port={found.port}"}
    parts |= {found.hostname} if found.hostname and "." in found.hostname else set()
    return parts - {""}


def reason_of(error: BaseException, *addresses: str | None) -> str:
    """An error in one line: its kind, unless it is of ours and speaks for itself, and what it says, cut short."""
    text = redacted(" ".join(str(error).split()), *addresses)
    short = text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 3] + "..."
    return short if isinstance(error, SweepError) else f"{type(error).__name__}: {short}"
