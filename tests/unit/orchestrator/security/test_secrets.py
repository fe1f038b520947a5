"""No address holds a secret, and what others say is cut clear of those of the environment, however they are encoded."""

import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import settings
from orchestrator.driver import plan
from orchestrator.report import export
from orchestrator.security.addresses import INSTEAD, refuse_secrets
from orchestrator.security.redaction import HIDDEN, redacted
from orchestrator.sensitivity import run
from orchestrator.settings import stored
from orchestrator.tracking import ui
from tests.support.in_process import called
from tests.support.sweeps import make
from trainables.values.errors import ConfigError

ADDRESSES = ("storage", "tracking_uri", "address", "base_model", "data", "data_split")
PASSWORD = "Hush9" + "wJalrXUt"

WITH_SECRET = (
    "s3://KEY:{}@bucket/x",
    "S3://KEY:{}@bucket",
    " s3://KEY:{}@bucket/x\n",
    "s\n3:/\t/KEY:{}@bucket/x",
    "s3:///KEY:{}@bucket/x",
    "s3:/KEY:{}@bucket/x",
    "s3:\\\\KEY:{}@bucket/x",
    "s3://KEY:a/{}@bucket/x",
    "s3://KEY:12/{}@bucket/x",
    "s3://KEY:{}/bucket/x",
    "s3%3A%2F%2FKEY%3A{}%40bucket",
    "s3://KEY:{}%40bucket/x",
    "s3://KEY:{}%2540bucket/x",
    "s3\N{FULLWIDTH COLON}//KEY:{}\N{FULLWIDTH COMMERCIAL AT}bucket",
    "s\u200b3://KEY:{}@bucket",
    "s3://bucket/x?secret_key={}",
    "s3://bucket/x?region=a&secret_key={}",
    "s3://bucket/x?endpoint_override=me:{}@host",
    "s3://bucket/x#{}",
    "gs://{}@bucket/x",
    "file://me:{}@host/x",
    "postgresql://user:{}@host/db",
    "postgresql://user:a/{}@host/db",
    "postgresql+psycopg2://us/er:{}@host/db",
    "postgresql://user:a@{}@host/db",
    "postgresql://user:a#{}@host/db",
    "postgresql://user:a?{}@host/db",
    "postgresql://user:5432/{}@host/db",
    "host=db user=me password={}",
    "mysql://:{}@host/db",
    "http://{}@host",
    "HTTPS://{}:x-oauth-basic@host",
    "http://host:5000?token={}",
    "http://host/x;token={}",
    "sqlite://me:{}@host/db",
    "//me:{}@host/x",
    "me:{}@host:6379",
    "ray://me:{}@host:10001",
    "random:https://me:{}@huggingface.co/owner/name",
    "https://me:{}@huggingface.co/owner/name",
)


@pytest.mark.parametrize("form", WITH_SECRET)
@pytest.mark.parametrize("field", ADDRESSES)
def test_an_address_with_a_secret_in_it_is_refused_by_field_and_remedy_and_not_repeated(field, form):
    with pytest.raises(ConfigError) as found:
        make(**{field: form.format(PASSWORD)})
    assert str(found.value).startswith(f"{field} must hold no user, password or other secret")
    assert str(found.value).endswith(INSTEAD[field])
    assert "Hush9" not in str(found.value)


WITHOUT = {
    "storage": (
        "s3://bucket/x",
        "s3://bucket/x@y",
        "s3://bucket/a:b@c",
        "s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:9000&region=us-east-1",
        "gs://bucket/x@y/z",
        "abfs://container@account.dfs.core.windows.net/x",
        "file:///data/x@y/a:b@c",
        "file:/data/x@y",
        "/data/me:x@corp/adapters",
        "./a:b@c",
        "~/a@b",
        "me@corp/adapters",
    ),
    "tracking_uri": (
        "http://host",
        "https://ml.corp.example:5000/team",
        "http://[::1]:5000",
        "sqlite:///mlflow.db",
        "sqlite:////home/me@corp/a:b@c/mlflow.db",
        "postgresql://host:5432/db",
        "databricks",
        "databricks://profile:prefix",
    ),
    "address": ("auto", "10.0.0.1:6379", "head.corp:6379", "ray://head:10001"),
    "base_model": ("demo", "openai-community/gpt2", "/models/me@corp", "random:/models/a@b", "random:~/a:b@c", "./a b"),
    "data": ("demo", "tatsu-lab/alpaca", "/data/token=3/what?.json", "rows#2@3.json", "a/b/c.jsonl"),
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WITHOUT.items() for value in values])
def test_an_address_or_a_path_without_a_user_is_taken_whatever_characters_its_path_has(field, value):
    assert getattr(make(**{field: value}), field) == value


AFTER_USER = st.text(alphabet="aB3/@#?:%+ ", min_size=1, max_size=12)


@given(AFTER_USER, st.sampled_from(["s3", "gs", "http", "postgresql", "file", "SQLite"]), st.integers(0, 2))
def test_no_password_however_it_is_made_and_encoded_passes(password, scheme, n_encoded):
    user_info = f"me:{password}@"
    for _ in range(n_encoded):
        user_info = quote(user_info, safe="")
    with pytest.raises(ConfigError, match="must hold no user"):
        refuse_secrets("storage", f"{scheme}://{user_info}host/x")


def test_every_other_door_for_an_address_is_as_shut(tmp_path):
    secret = f"http://me:a/{PASSWORD}@host"
    chosen = {"space": None, "trials": None, "base_model": None, "data": None}
    doors = {
        "address": lambda: plan.choose(None, None, chosen, {"address": f"me:{PASSWORD}@h:1"}),
        "base_model": lambda: run.choose(None, secret, None, "cpu", tmp_path),
        "data": lambda: run.choose(None, None, secret, "cpu", tmp_path),
        "push": lambda: export.run("t", tmp_path / "out", "best", tmp_path, push=secret),
        "host": lambda: ui.arguments(tmp_path, secret, 5000, None),
        "allowed_hosts": lambda: ui.arguments(tmp_path, "0.0.0.0", 5000, f"a:1,me:{PASSWORD}@b:2"),
    }
    for field, door in doors.items():
        with pytest.raises(ConfigError, match=f"^{field} must hold no user") as found:
            door()
        assert "Hush9" not in str(found.value)


def test_a_kept_address_with_a_secret_is_refused_when_it_is_read_again(tmp_path):
    folder = settings.sweep_folder("t", tmp_path)
    stored.save(make(), folder)
    (folder / stored.ADDRESS_FILE).write_text(f"postgresql://me:a/{PASSWORD}@host/db")
    with pytest.raises(ConfigError, match="tracking_uri must hold no user"):
        stored.load(folder)
    (folder / stored.ADDRESS_FILE).unlink()
    kept = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(kept | {"storage": f"s3://KEY:{PASSWORD}@bucket"}))
    with pytest.raises(ConfigError, match="storage must hold no user") as found:
        stored.load(folder)
    assert PASSWORD not in str(found.value)


def test_the_command_refuses_a_storage_with_a_secret_and_leaves_nothing_behind(tmp_path):
    done = called("run", "--storage", f"s3://KEY:{PASSWORD}@bucket/x", cwd=tmp_path)
    assert done.code == 2
    assert "AWS_PROFILE" in done.err
    assert PASSWORD not in done.err + done.out
    assert list(tmp_path.iterdir()) == []


# --- what others say

NAMES = (
    *("HF_TOKEN", "GITHUB_PAT", "PAT", "OPENAI_KEY", "OPENAI_API_KEY", "AZURE_SAS", "DB_PASS", "DB_PWD", "PGPASSWORD"),
    *("MY_CREDS", "REDIS_AUTH", "AZURE_STORAGE_CONNECTION_STRING", "AWS_ACCESS_KEY_ID", "SENTRY_DSN", "SSH_PASSPHRASE"),
)
ENCODINGS = {
    "as it is": str,
    "quote": quote,
    "quote, all of it": lambda s: quote(s, safe=""),
    "quote in small letters": lambda s: quote(s, safe="").lower() if s.islower() else quote(s, safe=""),
    "quote_plus": quote_plus,
    "quoted twice": lambda s: quote(quote(s, safe=""), safe=""),
    "JSON": lambda s: json.dumps(s)[1:-1],
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "base64 for addresses": lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
    "base64 without its end": lambda s: base64.urlsafe_b64encode(s.encode()).decode().rstrip("="),
    "base64, quoted": lambda s: quote(base64.b64encode(s.encode()).decode(), safe=""),
    "user:password in base64": lambda s: base64.b64encode(f"someone:{s}".encode()).decode(),
    "password: in base64": lambda s: base64.b64encode(f"{s}:".encode()).decode(),
}


@given(secret=st.text(alphabet="aZ09+/=&%? ~ö", min_size=6, max_size=30).map(str.strip).filter(lambda s: len(s) > 5))
def test_a_secret_is_cut_out_in_whatever_form_it_is_said(secret):
    for how, encode in ENCODINGS.items():
        told = redacted(f"<{encode(secret)}> is wrong", environment={"DB_PASS": secret})
        assert told == f"<{HIDDEN}> is wrong", how


@pytest.mark.parametrize("name", NAMES)
def test_a_secret_is_known_by_the_name_of_its_variable(name):
    assert redacted(f"got {PASSWORD}!", environment={name: PASSWORD}) == f"got {HIDDEN}!"


def test_a_short_password_goes_with_its_user_and_not_out_of_every_word():
    environment = {"DB_PASS": "a1", "DB_USER": "me"}
    basic = base64.b64encode(b"me:a1").decode()
    assert redacted(f"a1 trial: {basic}", environment={"DB_PASS": "rank1", "DB_USER": "me"}) == f"a1 trial: {basic}"
    assert redacted("a trial at rank a1", environment=environment) == "a trial at rank a1"
    told = redacted("sent bWFpbjpyYW5rMQ==", environment={"DB_PASS": "rank1", "DB_USER": "main"})
    assert told == f"sent {HIDDEN}"


@pytest.mark.parametrize(
    "environment", [{"PWD": "/home/me/sweep"}, {"SORT_KEY": "trials"}, {"A_TOKEN": "true"}, {"PATH": "/home/me"}]
)
def test_what_is_no_secret_stays(environment):
    said = "true: 12 trials in /home/me/sweep, in order"
    assert redacted(said, environment=environment) == said


def test_a_password_within_an_address_of_the_environment_is_one():
    environment = {"DATABASE_URL": f"postgresql://me:a%2F{PASSWORD}@host/db"}
    assert redacted(f"FATAL: a/{PASSWORD} failed", environment=environment) == f"FATAL: {HIDDEN} failed"


@pytest.mark.parametrize("form", ["http://me:a/b@host/x", "s3://K:a@b#c@host/x", "http://tok@en@host/x"])
def test_user_and_password_of_any_address_are_cut_out(form):
    assert redacted(f"no answer from {form}", environment={}) == f"no answer from {form.partition('//')[0]}//***@host/x"


def test_an_address_that_cannot_be_read_is_still_cut_out():
    assert redacted("at http://[host:x", "http://[host:x", environment={}) == f"at {HIDDEN}"
