"""Tiny tokenizers of both kinds that models are published with, and chat templates with and without marks."""

from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["Name the capital of France. Paris is the capital of France.\n\n\n", "  one two three four\n"] * 20

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ message['content'] }}<|im_end|>\n{% endgeneration %}"
    "{% else %}<|im_start|>{{ message['role'] + '\n' + message['content'] }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The same texts as CHATML's; the marks take the line end in, which follows the end-of-turn token."""
MARKS_WITHOUT_END = CHATML_MARKED.replace("<|im_end|>\n{% endgeneration %}", "{% endgeneration %}<|im_end|>\n")
"""The same texts once more; the marks leave the end-of-turn token out."""
STRIPS_THOUGHTS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'].split('</think>')[-1] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Thinks in the last turn alone, as Qwen3's."""
CLOSES_WITH_END = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
"""Writes the end token after a whole conversation, as Phi 3's."""
CHANNELS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}<|endoftext|>{% if loop.last %}none<|endoftext|>{% endif %}{% endif %}"
    "{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A special token begins a turn, and what follows it differs in the last one, as in gpt-oss."""
STRICT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""Writes the start token itself, and has no generation prompt, as Mistral's."""


def byte_level(folder: Path, template: str | None = None) -> Path:
    """A folder with a byte-level BPE, as GPT-2's, Qwen's and Llama 3's; adds no token of its own accord."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return _saved(core, folder, template, eos_token="<|endoftext|>", additional_special_tokens=special[1:])


def sentencepiece_like(folder: Path, template: str | None = None) -> Path:
    """A folder with a BPE over "▁", as Llama 2's and Mistral's: puts one, and a start token, before a text."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = [text.replace("\n", "") for text in CORPUS]  # a line end is a byte token, as Llama 2's
    core.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    with TemporaryDirectory() as scratch:  # vocabulary and merges alone: the byte tokens are no special ones
        files = core.model.save(scratch)
        plain = Tokenizer(models.BPE.from_file(*files, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    plain.pre_tokenizer, plain.decoder, plain.post_processor = core.pre_tokenizer, core.decoder, core.post_processor
    return _saved(plain, folder, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _saved(core: Tokenizer, folder: Path, template: str | None, **special: object) -> Path:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder
