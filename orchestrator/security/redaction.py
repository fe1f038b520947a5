"""What other programs say, without the addresses and secrets that must stand in no log, ledger or run."""

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from urllib.parse import unquote, urlsplit

from trainables.values.errors import SweepError

SECRET = re.compile(
    r"(TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|API_?KEY|ACCESS_KEY|CREDENTIALS?|CONNECTION_STRING)(_ID)?$"
    r"|(^|_)(PASS|PAT|SAS|CREDS?|DSN)$|_PWD$"
)
"""Names of environment variables that hold one. PWD alone is the working directory."""
KEY = re.compile(r"(^|_)(KEY|AUTH)(_ID)?$")
"""Names that hold one unless it is a word: SORT_KEY=trials."""
WORD = re.compile(r"[A-Za-z]{1,15}")
USER = re.compile(r"(USER|USERNAME|LOGIN)$")
"""Names of those that hold who logs in: HTTP sends "user:password" in base64."""
IN_ADDRESS = re.compile(r"://([^/?#\s:@]*):(\S+)@")
MIN_SECRET_CHARS = 6
"""Shorter values are words like "true", which would be cut out of everything."""
MAX_CHARS = 200
HIDDEN = "***"


def redacted(text: str, *addresses: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """`text` with each secret of the environment, as it is or encoded, `addresses` with their hosts, and credentials
    in any URL hidden."""
    hidden = {part for address in addresses if address for part in _parts(address)}
    for value in sorted(hidden, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    for value in sorted(_secrets(environment), key=len, reverse=True):
        for pattern in _forms(value):
            text = pattern.sub(HIDDEN, text)
    text = re.sub(r"(?i)(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", rf"\1 {HIDDEN}", text)
    text = re.sub(r"\bhf_[A-Za-z0-9]{6,}", HIDDEN, text)
    return re.sub(r"(?<=://)([^/\s'\"]+@|[^/\s'\":]+:[^\s'\"]+@)", f"{HIDDEN}@", text)


def _secrets(environment: Mapping[str, str]) -> set[str]:
    """Values long enough to be told from words; passwords of addresses; and each short password with each user."""
    named, users = set(), set()
    for name, value in environment.items():
        if _is_secret(name, value):
            named.add(value.strip())
        if USER.search(name):
            users.add(value)
        for user, password in IN_ADDRESS.findall(value):
            users.add(unquote(user))
            named.add(unquote(password))
    users.discard("")
    pairs = {f"{user}:{value}" for value in named if 0 < len(value) < MIN_SECRET_CHARS for user in users}
    return {value for value in named | pairs if len(value) >= MIN_SECRET_CHARS}


def _is_secret(name: str, value: str) -> bool:
    return bool(SECRET.search(name) or (KEY.search(name) and not WORD.fullmatch(value)))


@lru_cache(maxsize=256)
def _forms(value: str) -> tuple[re.Pattern[str], ...]:
    """Patterns of a secret: as it is or in part URL-encoded, be it twice; as JSON; on one line; in base64.

    Three bytes are four characters of base64, so that a secret within something longer ("user:secret") has one of
    three forms, of which all characters but those at its ends are its own. What is encoded with it goes too.
    """
    texts = dict.fromkeys((value, " ".join(value.split()), json.dumps(value)[1:-1]))
    plain = "|".join("".join(map(_as_it_is_or_percent, text)) for text in texts)
    cores = "|".join("".join(map(_of_base64, core)) for core in _cores(_bytes(value)))
    run = "[A-Za-z0-9+/_-]*"
    return re.compile(plain), re.compile(f"{run}(?:{cores}){run}(?:=|{_percent(b'=')}){{0,2}}")


def _as_it_is_or_percent(char: str) -> str:
    return f"(?:{_percent(_bytes(char))}|{re.escape(char)}{'|[+]' if char == ' ' else ''})"


def _of_base64(char: str) -> str:
    """One of its 64 characters, two of which are others in addresses and file names."""
    other = {"+": "-", "/": "_"}.get(char)
    return f"(?:[{char}{other}]|{_percent(char.encode())})" if other else char


def _percent(content: bytes) -> str:
    found = "".join(f"%(?:25)*{byte:02x}" for byte in content)
    return re.sub("[a-f]", lambda digit: f"[{digit[0]}{digit[0].upper()}]", found)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _cores(secret: bytes) -> Iterator[str]:
    for offset in range(3):
        coded = base64.b64encode(bytes(offset) + secret).decode()
        yield coded[-(-8 * offset // 6) : 8 * (offset + len(secret)) // 6]


def _parts(address: str) -> set[str]:
    """The address, and its host and port as clients name them; a host of one word would be cut out of other words."""
    try:
        found = urlsplit(address)
        parts = {address, found.netloc, f"host='{found.hostname}'", f"port={found.port}"}
    except ValueError:  # no address as others read it, so nobody names its host
        return {address}
    parts |= {found.hostname} if found.hostname and "." in found.hostname else set()
    return parts - {""}


def reason_of(error: BaseException, *addresses: str | None) -> str:
    """An error in one line: its kind, unless it is of ours and speaks for itself, and what it says, cut short."""
    text = redacted(" ".join(str(error).split()), *addresses)
    short = text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 3] + "..."
    return short if isinstance(error, SweepError) else f"{type(error).__name__}: {short}"
