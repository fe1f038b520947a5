"""What may be a base, by config.json and the headers of its weights alone."""

import json
import re
import shutil
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.support.families import CASES, every_case, tiny, write
from trainables.models import base_model, inputs, stored
from trainables.models.architecture import UNLIMITED_TOKENS, check_architecture, context_tokens
from trainables.models.families import FAMILIES
from trainables.models.layout import layout_in
from trainables.values.errors import ConfigError

LLAMA = next(case for case in CASES if case.name == "Llama")
REFUSED = {
    "an encoder-decoder": {"model_type": "bart", "is_encoder_decoder": True},
    "an encoder-decoder by its type": {"model_type": "t5"},
    "experts by their number": {"model_type": "qwen3_moe", "num_experts": 128},
    "local experts": {"model_type": "mixtral", "num_local_experts": 8},
    "routed experts": {"model_type": "deepseek_v3", "n_routed_experts": 256},
    "nested experts": {"model_type": "olmo2", "ffn_config": {"moe_num_experts": 16}},
    "a vision model": {"model_type": "gemma3", "text_config": {}, "vision_config": {}},
    "GPTQ": {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
    "AWQ": {"model_type": "qwen2", "quantization_config": {"quant_method": "awq"}},
    "FP8": {"model_type": "qwen3", "quantization_config": {"quant_method": "fp8"}},
    "compressed tensors": {"model_type": "llama", "compression_config": {"quant_method": "compressed-tensors"}},
    "quantization as a list": {"model_type": "llama", "quantization_config": ["awq"]},
    "a state-space model": {"model_type": "mamba2"},
    "a masked language model": {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
    "an encoder under a causal name": {"model_type": "bert", "architectures": ["BertLMHeadModel"]},
    "an embedding model": {"model_type": "gemma3_text", "use_bidirectional_attention": True},
    "permuted predictions": {"model_type": "xlnet", "architectures": ["XLNetLMHeadModel"]},
    "code of its own": {"model_type": "homemade", "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}},
    "an unknown type": {"model_type": "lama"},
}
SAID = {
    "an encoder-decoder": "is an encoder-decoder",
    "an encoder-decoder by its type": "is an encoder-decoder",
    "experts by their number": "mixture of experts",
    "local experts": "mixture of experts",
    "routed experts": "mixture of experts",
    "nested experts": "mixture of experts",
    "a vision model": "vision or multimodal model (vision_config)",
    "GPTQ": "quantized already (gptq)",
    "AWQ": "quantized already (awq)",
    "FP8": "quantized already (fp8)",
    "compressed tensors": "quantized already (compressed-tensors)",
    "quantization as a list": "quantized already (its quantization_config names no method)",
    "a state-space model": "recurrent",
    "a masked language model": "is BertForMaskedLM, no causal language model",
    "an encoder under a causal name": "sees the tokens that it would have to predict",
    "an embedding model": "sees the tokens that it would have to predict",
    "permuted predictions": "sees the tokens that it would have to predict",
    "code of its own": "names code to run (auto_map)",
    "an unknown type": "did you mean 'llama'?",
}


def with_config(folder: Path, values: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_dense_decoder_at_full_precision_is_refused_by_its_config_alone(name, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(SAID[name])) as caught:
        check_architecture(with_config(tmp_path, REFUSED[name]))
    assert REFUSED[name]["model_type"] in str(caught.value)


@pytest.mark.parametrize("model_type", ["gpt_neox", "phi", "olmo2", "stablelm", "opt", "bloom"])
def test_a_dense_decoder_of_no_family_is_let_in(model_type, tmp_path):
    check_architecture(with_config(tmp_path, {"model_type": model_type, "architectures": ["TheirsForCausalLM"]}))


def test_an_encoder_that_its_config_makes_a_decoder_is_let_in(tmp_path):
    check_architecture(with_config(tmp_path, {"model_type": "bert", "is_decoder": True}))


@every_case
def test_every_family_is_let_in_as_transformers_writes_its_config(case, tmp_path):
    tiny(case).config.save_pretrained(tmp_path)
    check_architecture(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors", None])
def test_an_adapter_is_refused_with_the_base_that_it_names(name, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    if name:
        (tmp_path / name).touch()
        with_config(tmp_path, {"model_type": "llama"})
    with pytest.raises(ConfigError, match=r"is an adapter \(adapter_config.json\), not a base; its base is 'org/base'"):
        base_model.find(str(tmp_path), tmp_path / "cache")


def test_gguf_files_alone_are_refused(tmp_path):
    (tmp_path / "model-Q4_0.gguf").touch()
    with pytest.raises(ConfigError, match="GGUF files alone"):
        base_model.find(str(tmp_path), tmp_path / "cache")


@given(
    st.dictionaries(
        st.sampled_from(["model_type", "num_experts", "text_config", "architectures", "auto_map"]),
        st.none()
        | st.integers()
        | st.text(max_size=3)
        | st.lists(st.integers(), max_size=2)
        | st.dictionaries(st.text(max_size=3), st.integers(), max_size=1),
    )
)
def test_any_values_of_a_config_raise_nothing_but_a_config_error(tmp_path_factory, values):
    with suppress(ConfigError):
        check_architecture(with_config(tmp_path_factory.getbasetemp() / "any", values))


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_damaged_generation_settings_are_refused_before_anything_is_loaded(content, tmp_path):
    folder = write(LLAMA, tmp_path / "base")
    assert base_model.local_folder(str(folder)) == folder
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"BASE_MODEL: .*generation_config.json' is not a JSON object"):
        base_model.local_folder(str(folder))


# --- weights as they lie


@pytest.fixture
def sharded(tmp_path) -> Path:
    folder = write(LLAMA, tmp_path / "sharded", max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_a_folder_s_note_on_its_weights_goes_with_the_base_on_one_line(sharded, tmp_path, workload):
    assert base_model.find(str(sharded), tmp_path).note is None
    (sharded / "base_note.txt").write_text(" weights rounded\n before \n")
    assert base_model.find(str(sharded), tmp_path).note == "weights rounded before"


def test_shards_are_loaded_as_one_file_is(sharded, tmp_path, workload):
    whole = write(LLAMA, tmp_path / "whole")
    loaded = []
    for folder in (sharded, whole):
        base = base_model.find(str(folder), tmp_path)
        loaded.append(base_model.load(replace(workload, base_folder=str(base.folder)), "16bit", "cpu").state_dict())
    assert all(torch.equal(tensor, loaded[1][name]) for name, tensor in loaded[0].items())


def test_half_of_the_shards_are_refused_with_how_many_are_missing(sharded, tmp_path):
    n_shards = len(list(sharded.glob("model-*.safetensors")))
    for path in sorted(sharded.glob("model-*.safetensors"))[1:]:
        path.unlink()
    with pytest.raises(ConfigError, match=rf"{n_shards - 1} of {n_shards} shards .* \(first: model-00002-of"):
        base_model.find(str(sharded), tmp_path)


@pytest.mark.parametrize("places", [[], None, "abc", {"a": 1}, {"a": 1, "b": "c"}, {"a": ["b"]}, {"a": "../b"}])
def test_an_index_that_names_no_files_beside_it_is_refused(places, tmp_path):
    (tmp_path / stored.INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ConfigError, match=re.escape(stored.INDEX)):
        stored.weight_files(tmp_path)


@pytest.mark.parametrize(
    "header", [b'{"a": {"data_offsets": [0, 0]}}', b'{"a": {"data_offsets": [0, 0], "shape": null}}', b"[" * 100_000]
)
def test_a_header_of_another_form_is_refused(header, tmp_path):
    path = tmp_path / stored.WEIGHTS
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ConfigError, match=r"cut off or no safetensors file"):
        stored.stored_shapes([path])


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", None])
def test_weights_that_are_cut_off_or_a_pointer_are_refused(content, tmp_path):
    folder = write(LLAMA, tmp_path / "base")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ConfigError, match=r"is cut off or no safetensors file"):
        base_model.find(str(folder), tmp_path)


OTHERS = {
    "another depth": ({"num_hidden_layers": 3}, "has 3 blocks, the weights have 2"),
    "another family": ({"model_type": "gpt2", "n_layer": 2}, "of GPT-2's"),
    "another width": ({"hidden_size": 32}, "an embedding of 1024 x 32"),
    "another vocabulary": ({"vocab_size": 2048}, "an embedding of 2048 x 64"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_config_of_another_model_is_refused_before_anything_is_loaded(name, tmp_path):
    changed, said = OTHERS[name]
    folder = write(LLAMA, tmp_path / "base")
    values = json.loads((folder / "config.json").read_text())
    with_config(folder, values | changed)
    with pytest.raises(ConfigError, match=said):
        base_model.find(str(folder), tmp_path)


TENSORS = {
    "lack 'model.norm.weight'": lambda tensors: tensors.pop("model.norm.weight"),
    "have 'model.extra.weight', and the model": lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}),
    "have 'model.norm.weight' in another size": lambda tensors: tensors.update({"model.norm.weight": torch.ones(2)}),
}


@pytest.mark.parametrize("said", TENSORS)
@pytest.mark.parametrize("precision", ["16bit", "nf4"])
def test_no_tensor_is_left_as_newly_drawn_or_dropped_in_silence(said, precision, tmp_path, workload):
    folder = write(LLAMA, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    TENSORS[said](tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=said):
        base_model.load(replace(workload, base_folder=str(folder), base_model="theirs"), precision, "cpu")


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has 1024 tokens, but the model's embedding has 512 rows"):
        inputs.fetch(str(write(LLAMA, tmp_path / "small", n_words=512)), "demo", tmp_path)
    larger = inputs.fetch(str(write(LLAMA, tmp_path / "large", n_words=2048)), "demo", tmp_path)
    assert larger.base.weights == "pretrained"


# --- how many tokens a base reads


@pytest.mark.parametrize(
    ("values", "n_tokens"),
    [
        ({"model_type": "llama", "max_position_embeddings": 8192}, 8192),
        ({"model_type": "gpt2", "n_positions": 512, "n_ctx": 1024}, 512),
        ({"model_type": "gpt2"}, 1024),
        ({"model_type": "bloom"}, UNLIMITED_TOKENS),
    ],
)
def test_the_context_is_what_the_config_says_or_transformers_default(values, n_tokens, tmp_path):
    assert context_tokens(with_config(tmp_path, values)) == n_tokens


def test_every_family_reads_its_layout_from_its_config(tmp_path):
    for case in CASES:
        folder = tmp_path / case.name.replace(" ", "-")
        tiny(case).config.save_pretrained(folder)
        layout = layout_in(folder)
        assert layout.family in FAMILIES
        assert [tuple(block) for block in layout.blocks] == [case.family.targets] * 2
    shutil.rmtree(tmp_path)
