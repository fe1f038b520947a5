"""Talks to the Hugging Face hub: fetches rows, uploads a folder on request; models are fetched by `hub_models`.

Left alone, the libraries ask an absent hub again and again. So the hub is asked
once, with a deadline, before anything is loaded; where it does not answer, only the cache is read.

No code and no pickle of a repo is ever run: of a model hub_models.MODEL_FILES are all that is downloaded, one that is
made of its own code is refused before its weights are fetched, and `datasets` has no loading scripts since version 4.
Our errors hold neither text nor traceback of an HTTP error: it may quote a request's headers, and with them the user's
token.
"""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from trainables.values.errors import ConfigError, DataError, DiskFull, SweepError, Unreachable

ANSWER_SECONDS = 3.0
"""How long the hub may take to answer, unless HF_HUB_ETAG_TIMEOUT is set; twice in a row is under 10 s."""

SPLIT = "train"
"""Of a dataset, where none is named."""
RepoType = Literal["model", "dataset"]
SETTING = {"model": "BASE_MODEL", "dataset": "DATA"}
ADVICE = {
    "model": "give a local folder with BASE_MODEL=/path/to/folder, or BASE_MODEL=demo",
    "dataset": "give a local file with DATA=/path/to/rows.json, or DATA=demo",
}


def fetch_rows(repo_id: str, split: str = SPLIT) -> list[dict[str, Any]]:
    """Read a split of a dataset on the hub, in its order.

    Args:
        split: as `datasets` writes it ("train", "train[:2000]"); "CONFIG/SPLIT" where the dataset has several configs.
    Raises:
        ConfigError: no such repo, or no access to it.
        DataError: the repo is not rows, or has no such split.
        DiskFull: no space left for the download.
        Unreachable: the hub does not answer and the rows are not in the cache.
    """
    from datasets import load_dataset
    from datasets.packaged_modules.cache.cache import Cache

    config, _, part = split.rpartition("/")
    with asking(repo_id, "dataset", part=f"split {split!r} of ") as no_answer:
        if no_answer is None:
            return load_dataset(repo_id, config or None, split=part, trust_remote_code=False).to_list()
        # What load_dataset itself does under HF_HUB_OFFLINE, which it reads only when imported.
        builder = Cache(
            repo_id=repo_id,
            dataset_name=repo_id.split("/")[-1],
            config_name=config or None,
            version="auto",
            hash="auto",
        )
        return builder.as_dataset(split=part).to_list()


def push_model(folder: Path, repo_id: str) -> str:
    """Upload a folder as a model, into a private repo where there is none yet; returns its address.

    Raises:
        ConfigError: no hub id, or no right to write there.
        Unreachable: the hub does not answer, or broke off.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        repo = HfApi().create_repo(repo_id, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message="Add adapter")
        return str(repo)
    except HFValidationError:
        raise ConfigError(f"PUSH: {repo_id!r} is no hub id (OWNER/NAME)") from None
    except Exception as error:
        if any(_status(cause) in (401, 403, 404) for cause in _causes(error)):
            raise ConfigError(
                f"PUSH: {endpoint()} lets you not write to {repo_id!r}; check the id, log in with `hf auth login`"
            ) from None
        if any(isinstance(cause, (HTTPError, ConnectionError)) for cause in _causes(error)):
            raise Unreachable(f"PUSH: cannot reach {endpoint()} to write {repo_id!r}; the folder is ready") from None
        raise


@contextmanager
def asking(repo_id: str, repo_type: RepoType, *, revision: str | None = None, part: str = "") -> Iterator[str | None]:
    """Ask the hub for a repo; gives None if it answers, else the reason why only the cache can be read.

    Errors of the hub's libraries inside the block become errors of this project, which say what to do.

    Args:
        part: what is wanted of a dataset, for messages.
    """
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    no_answer = None
    try:
        no_answer = _why_no_answer(repo_id, repo_type, revision)
        yield no_answer
    except SweepError:
        raise
    except HFValidationError:
        text = (
            f"{SETTING[repo_type]}: {repo_id!r} is neither a hub id (OWNER/NAME) nor a path here; {ADVICE[repo_type]}"
        )
        raise ConfigError(text) from None
    except Exception as error:
        causes = _causes(error)
        _refuse_full_disk(causes, repo_id, repo_type)
        refuse_revision(causes, repo_id, repo_type, revision)
        refuse_gated(causes, repo_id, repo_type)
        if any(map(_is_refusal, causes)) or type(error).__name__ == "DatasetNotFoundError":
            raise ConfigError(
                f"{SETTING[repo_type]}: {endpoint()} has no {repo_type} {repo_id!r} that you may read "
                f"(unknown, private or gated); check the id, log in with `hf auth login`, or {ADVICE[repo_type]}"
            ) from None
        if no_answer and isinstance(error, (FileNotFoundError, ValueError)):
            raise unreachable(repo_id, repo_type, no_answer) from None
        if any(isinstance(cause, (HTTPError, ConnectionError, LocalEntryNotFoundError)) for cause in causes):
            raise unreachable(repo_id, repo_type, f"the download broke off: {type(error).__name__}") from None
        if repo_type == "dataset":
            advice = f"choose with DATA_SPLIT=SPLIT or CONFIG/SPLIT, or {ADVICE[repo_type]}"
            raise DataError(f"DATA: cannot read {part}{repo_id!r}: {error}; {advice}") from error
        raise


def _refuse_full_disk(causes: Sequence[BaseException], repo_id: str, repo_type: RepoType) -> None:
    if any(getattr(cause, "errno", None) == errno.ENOSPC for cause in causes):
        text = f"{SETTING[repo_type]}: no space left for {repo_id!r}; free some, or set HF_HOME to another disk"
        raise DiskFull(text) from None


def _why_no_answer(repo_id: str, repo_type: RepoType, revision: str | None) -> str | None:
    """Ask the hub once for a repo: None if it answers, else the reason why it cannot be used.

    In a thread of its own, since HTTP time-outs cover neither a name look-up nor an answer that comes byte by byte.
    """
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)
    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or ANSWER_SECONDS)
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=seconds)
            outcome.append(None)
        except Exception as error:  # told apart in the caller's thread
            outcome.append(error)

    thread = Thread(target=ask, name="hub-probe", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        return f"no answer in {seconds:g} s; HF_HUB_ETAG_TIMEOUT=30 waits longer"
    error = outcome[0]
    if error is not None and _is_refusal(error):
        raise error
    return None if error is None else f"{type(error).__name__} {_status(error) or ''}".strip()


def refuse_revision(causes: Sequence[BaseException], repo_id: str, repo_type: RepoType, revision: str | None) -> None:
    """Raise ConfigError if the hub said that a repo is there, but not at this revision."""
    if revision and any(type(cause).__name__ == "RevisionNotFoundError" for cause in causes):
        raise ConfigError(
            f"{SETTING[repo_type]}: {repo_id!r} on {endpoint()} has no revision {revision!r}; give a branch, a tag or "
            "a commit that it has, or none"
        ) from None


def refuse_gated(causes: Sequence[BaseException], repo_id: str, repo_type: RepoType) -> None:
    """Raise ConfigError if the hub gives a repo to those alone whom its owner has let in; with the hub's own words."""
    for cause in causes:
        if type(cause).__name__ == "GatedRepoError":
            said = " ".join(str(getattr(cause, "server_message", None) or "access is restricted").split())
            raise ConfigError(
                f"{SETTING[repo_type]}: {repo_id!r} is gated: {said[:200]}; ask for access on "
                f"{endpoint()}/{repo_id}, then log in with `hf auth login` or put your token into HF_TOKEN, "
                f"or {ADVICE[repo_type]}"
            ) from None


def _causes(error: BaseException | None) -> list[BaseException]:
    """An error and what it was raised from, outermost first."""
    return [] if error is None else [error, *_causes(error.__cause__)]


def _status(error: BaseException) -> int | None:
    """HTTP status of the answer behind an error."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_refusal(error: BaseException) -> bool:
    """Whether the hub, not some proxy that blocks it, said that there is no such repo for this user."""
    headers = getattr(getattr(error, "response", None), "headers", ())
    return _status(error) in (401, 403, 404) and any(name.lower().startswith("x-error-") for name in headers)


def unreachable(repo_id: str, repo_type: RepoType, reason: str) -> Unreachable:
    return Unreachable(
        f"{SETTING[repo_type]}: cannot reach {endpoint()} for the {repo_type} {repo_id!r} ({reason}), "
        f"and it is neither in the cache nor a path here; {ADVICE[repo_type]}"
    )


def endpoint() -> str:
    """Address of the hub, without a password that it may hold."""
    from huggingface_hub.constants import ENDPOINT

    return re.sub(r"//.*@", "//", ENDPOINT)
