"""Fetches causal language models from the Hugging Face hub: config first, then weights, whole or in shards.

What is too large for the disk is said before it is begun, and what config.json alone rules out is never fetched.
"""

import logging
import re
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from trainables.data.hub import ADVICE, asking, endpoint, unreachable
from trainables.values.errors import ConfigError, DiskFull

logger = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
CONFIG_FILES = ("config.json", "tokenizer_config.json", "adapter_config.json")
"""Small files that tell whether a model can be used."""
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
WEIGHT_FILES = ("model.safetensors", "model-*.safetensors", INDEX)
"""Whole, or shards and what names them; other files of weights beside these are copies in other forms."""
MODEL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES, *WEIGHT_FILES)
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
REVISION = re.compile(r"\w[\w./+-]*", re.ASCII)
SPARE_BYTES = 2**30
"""That a disk keeps free beside a download."""
GIB = 2**30


def named_revision(source: str) -> tuple[str, str | None]:
    """A hub id and the revision that follows it; a path has none.

    >>> named_revision("org/name@v1"), named_revision("org/name"), named_revision("/models/a@b")
    (('org/name', 'v1'), ('org/name', None), ('/models/a@b', None))
    """
    repo_id, _, revision = source.partition("@")
    if not revision or not HUB_ID.fullmatch(repo_id) or Path(source).is_dir():
        return source, None
    return repo_id, revision


def check_hub_name(source: str) -> None:
    """Refuse what no hub can have, before one is asked.

    Raises:
        ConfigError: it is no hub id, or what follows its "@" is no revision.
    """
    repo_id, at, revision = source.partition("@")
    if not HUB_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
        raise ConfigError(
            f"BASE_MODEL: {source!r} is neither a hub id (OWNER/NAME, or OWNER/NAME@REVISION) nor a path here; "
            f"{ADVICE['model']}"
        )
    if at and (not REVISION.fullmatch(revision) or ".." in revision or revision.endswith(("/", "."))):
        raise ConfigError(
            f"BASE_MODEL: {revision!r} behind the @ of {source!r} is no branch, tag or commit; give one, or "
            f"{repo_id!r} alone"
        )


def fetch_model(source: str, check: Callable[[Path], None] = lambda folder: None) -> Path:
    """Bring a causal LM onto this machine: config, safetensors weights and tokenizer files.

    A revision, `main` where none is named, is resolved to one commit; every file comes from that commit and the folder
    is named after it. Where the hub does not answer, it is the commit that was fetched last.

    Args:
        source: hub id, with "@" and a branch, tag or commit behind it if wanted.
        check: called with the folder once it holds CONFIG_FILES; an error that it raises stops the download.
    Raises:
        ConfigError: no such repo or revision, no access to it, or no weights as safetensors in it.
        DiskFull: no space left for the download.
        Unreachable: the hub does not answer and the model is not wholly in the cache.
    """
    from huggingface_hub import snapshot_download

    check_hub_name(source)
    repo_id, revision = named_revision(source)
    with asking(repo_id, "model", revision=revision) as no_answer:
        folder = _config_folder(repo_id, revision, check, no_answer)
        if no_answer is None:
            _check_disk(repo_id, folder)
        snapshot_download(
            repo_id,
            revision=folder.name,
            allow_patterns=[*MODEL_FILES],
            local_files_only=no_answer is not None,
        )
        lacking = _lacking(folder)
        if lacking and no_answer:  # another program cached a part of it, say the tokenizer alone
            raise unreachable(repo_id, "model", no_answer)
        if lacking:
            raise ConfigError(
                f"BASE_MODEL: {repo_id!r} on {endpoint()} has no {lacking}, and weights in another form (pickles, "
                f"GGUF) are not loaded; choose another repo, or {ADVICE['model']}"
            )
        return folder


def fetch_config(source: str, check: Callable[[Path], None] = lambda folder: None) -> Path:
    """Bring CONFIG_FILES of a model alone onto this machine; see `fetch_model`."""
    check_hub_name(source)
    repo_id, revision = named_revision(source)
    with asking(repo_id, "model", revision=revision) as no_answer:
        folder = _config_folder(repo_id, revision, check, no_answer)
        if not (folder / "config.json").is_file():
            raise ConfigError(f"BASE_MODEL: {repo_id!r} on {endpoint()} has no config.json; {ADVICE['model']}")
        return folder


def cached_config(source: str) -> Path | None:
    """The folder of a model's config.json in the hub's cache; None where it is not there. Asks nobody."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repo_id, revision = named_revision(source)
    try:
        path = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(path).parent if isinstance(path, str) else None


def is_cached(source: str) -> bool:
    """Whether all of a model that is needed is in the hub's cache. Asks nobody."""
    folder = cached_config(source)
    return folder is not None and _lacking(folder) is None


def _config_folder(repo_id: str, revision: str | None, check: Callable[[Path], None], no_answer: str | None) -> Path:
    from huggingface_hub import snapshot_download

    files, cached_only = [*CONFIG_FILES], no_answer is not None
    folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=files, local_files_only=cached_only))
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        check(folder)
    return folder


def _lacking(folder: Path) -> str | None:
    """What a folder must have and has not: a config, or weights whole or by an index."""
    if not (folder / "config.json").is_file():
        return "config.json"
    has_weights = any((folder / name).is_file() for name in ("model.safetensors", INDEX))
    return None if has_weights else "model.safetensors"


def _check_disk(repo_id: str, folder: Path) -> None:
    """Say what is going to be fetched, and refuse what does not fit.

    Args:
        folder: of the commit in the cache; what lies in it is not fetched again.
    """
    from huggingface_hub import HfApi

    n_bytes = 0
    for entry in HfApi().list_repo_tree(repo_id, revision=folder.name):
        if any(fnmatch(entry.path, pattern) for pattern in MODEL_FILES) and not (folder / entry.path).exists():
            n_bytes += getattr(entry, "size", 0)
    free = shutil.disk_usage(folder).free
    if n_bytes + SPARE_BYTES > free:
        raise DiskFull(
            f"BASE_MODEL: {repo_id!r} is {n_bytes / GIB:.1f} GiB to fetch, and {free / GIB:.1f} GiB are free under "
            f"{str(folder.parents[2])!r}; free some, or set HF_HOME to another disk"
        )
    if n_bytes >= GIB // 10:
        logger.info(f"fetching {repo_id}: {n_bytes / GIB:.1f} GiB")
