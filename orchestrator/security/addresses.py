"""No address may hold a user, a password or a token: it is written into settings, ledger, MLflow, reports and logs."""

import re
from unicodedata import normalize
from urllib.parse import unquote

from trainables.values.errors import ConfigError

HUB = "give a hub id or a local path; the hub's token goes into HF_TOKEN, or log in with `hf auth login`"
PAGES = "give names and ports alone; the password goes into MLFLOW_AUTH_ADMIN_PASSWORD"
INSTEAD = {
    "storage": "give AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (for gs:// "
    "GOOGLE_APPLICATION_CREDENTIALS), in the environment of every node",
    "tracking_uri": "give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the "
    "environment; for PostgreSQL PGUSER and PGPASSFILE or PGPASSWORD",
    "address": "give auto or HOST:PORT; the cluster's token goes into RAY_AUTH_TOKEN or ~/.ray/auth_token",
    "data_split": "give SPLIT or CONFIG/SPLIT",
    "columns": "give FIELD=COLUMN, joined by commas",
    **dict.fromkeys(("base_model", "data", "push"), HUB),
    **dict.fromkeys(("host", "allowed_hosts"), PAGES),
}
"""Field -> where its credentials go."""
OPEN_QUERY = {
    "storage": frozenset(
        {"region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion"}
        | {"check_directory_existence_before_creation", "project_id", "retry_limit_seconds"}
    )
}
"""Field -> what its query may hold, as pyarrow names it; another field's may hold nothing."""
LOCAL = re.compile(r"(file:)?/(?!/)|[.~]")
WITH_CONTAINER = ("abfs", "abfss", "wasb", "wasbs")
"""Azure's, in which a container stands where others have a user: abfs://container@account/path."""
WITH_PATH = ("s3", "s3a", "gs", "gcs", "file", "sqlite", "hdfs", *WITH_CONTAINER)
"""Schemes whose path is a file's, in which an "@" is a character as any other."""
NAMED = re.compile(r"(?i)(password|passwd|pwd|secret|token|signature|sig|sas|credentials?|api_?key)=")


def refuse_secrets(field: str, value: str) -> str:
    """An address, a hub id or a path as it was given, if it holds no secret.

    A password may hold any character, encoded or not: where an "@" can be the end of one it is taken for that. An "@"
    in the path is free in a local path, a file, an SQLite file and an object store (`s3://bucket/x@y`), unless a ":"
    stands before it in the place of the host (`s3://KEY:SEC/RET@bucket`).

    Raises:
        ConfigError: it may hold one; the message says where that goes instead, and repeats nothing of the value.
    """
    fault = _fault(_plain(value).removeprefix("random:"), OPEN_QUERY.get(field, frozenset()))
    if fault:
        raise ConfigError(f"{field} must hold no user, password or other secret, but {fault}: {INSTEAD[field]}")
    return value


def _plain(text: str) -> str:
    """Without encodings and whatever readers of addresses pass over."""
    before = None
    while text != before:
        before, text = text, unquote(normalize("NFKC", text))
    return "".join(char for char in text if char.isprintable() and not char.isspace()).replace("\\", "/")


def _fault(text: str, open_query: frozenset[str]) -> str | None:
    """What looks like a secret in a plain text, or None."""
    before, mark, rest = text.partition("://")
    if not mark and LOCAL.match(text):
        return None
    if NAMED.search(text):
        return "it names one"
    if not mark and text.startswith("//"):
        before, rest = "", text[2:]
    elif not mark:
        return "an '@' stands in it beside a ':'" if "@" in text and ":" in text else None
    scheme = re.split(r"[:+]", before.lower())[0]
    rest = rest if scheme in ("file", "sqlite") else rest.lstrip("/")
    host = re.split(r"[/?#]", rest)[0]
    container = scheme in WITH_CONTAINER and re.fullmatch(r"[^@:]+@[^@:]+", host)
    if "@" in before or ("@" in host and not container):
        return "a user stands before the host's '@'"
    if "@" in rest and (":" in host or scheme not in WITH_PATH):
        return "an '@' stands in it, before which may be a password"
    if re.search(r":(?!\d*$)", re.sub(r"^\[[0-9a-fA-F:.]*\]", "", host)) and not scheme.startswith("databricks"):
        return "what follows the host's ':' is no port"
    return _fault_of_query(rest, open_query)


def _fault_of_query(rest: str, open_query: frozenset[str]) -> str | None:
    before, has_fragment, _ = rest.partition("#")
    _, has_query, query = before.partition("?")
    names = {part.partition("=")[0] for part in re.split("[&;]", query)}
    if has_fragment:
        return "something follows a '#'"
    if has_query and (not names <= open_query or "@" in query):
        return f"of its query only {', '.join(sorted(open_query))} are known" if open_query else "it has a query"
    return None
