"""Random weights for a base of which only the config and the tokenizer are here: cost is real, quality is not."""

import hashlib
import shutil
from pathlib import Path
from tempfile import mkdtemp

RANDOM_SEED = 0
DRAWN = "once"
"""How, which decides the numbers; a folder that was drawn otherwise is another."""
COPIED = (".json", ".txt", ".jinja", ".model", ".tiktoken")
"""Suffixes of configs, of the files that tokenizers are made of, and of chat templates."""
INDEX_END = ".index.json"
"""Of the lists of shards, which the drawn weights have none of."""


def drawn(folder: Path, cache: Path) -> Path:
    """A folder under `cache` with the config and tokenizer of `folder` and seeded random weights; made once."""
    copied = [path for path in sorted(folder.iterdir()) if path.suffix in COPIED and not path.name.endswith(INDEX_END)]
    hasher = hashlib.sha256(f"seed {RANDOM_SEED}, drawn {DRAWN}".encode())
    for path in copied:
        hasher.update(f"\n{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    dest = cache / f"random-{hasher.hexdigest()[:16]}"
    if dest.exists():
        return dest
    import torch  # the command line checks sources without these
    from transformers import AutoConfig, AutoModelForCausalLM, logging

    logging.disable_progress_bar()  # of one file, already in memory
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".random-", dir=cache))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):  # PyTorch's modules draw as they are made, what the model's own drawing overwrites
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model = model.to_empty(device="cpu")
        model.init_weights()
    model.save_pretrained(scratch, max_shard_size="100GB")
    for path in copied:
        if not (scratch / path.name).exists():
            shutil.copy(path, scratch)
    try:
        scratch.rename(dest)
    except OSError:  # another process was faster, with the same content
        shutil.rmtree(scratch)
        if not dest.exists():
            raise
    return dest
