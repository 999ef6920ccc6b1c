"""Small random language models of the true shapes' proportions, as transformers has them and as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 160,
    "intermediate_size": 432,
    "num_hidden_layers": 3,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
    "max_position_embeddings": 128,
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def ternary_(linear, generator, rows=False):
    """Give a linear layer ternary weights, with one scale, or one for each row."""
    values = torch.randint(-1, 2, linear.weight.shape, generator=generator).float()
    values[:, 0] = 1  # a row of zeros alone would have no scale
    scale = torch.full((len(values), 1), 1.5 / linear.weight.shape[1] ** 0.5)
    if rows:
        scale = scale * (1 + torch.rand(scale.shape, generator=generator))
    linear.weight.data = values * scale


def eight_bits_(weight, generator):
    """Give an embedding values that 8 bits a row hold exactly."""
    values = torch.randint(-127, 128, weight.shape, generator=generator).float()
    values[:, 0] = 127
    weight.data = values * (1.0 / 512)


def hugging_face_model(kind, seed=0, rows=False, **changes):
    """A random BitNetForCausalLM or LlamaForCausalLM whose projections are ternary."""
    import transformers

    generator = torch.Generator().manual_seed(seed)
    config = {"bitnet": transformers.BitNetConfig, "llama": transformers.LlamaConfig}[kind]
    made_config = config(**{**SHAPE, "attn_implementation": "eager", "bos_token_id": 1, "eos_token_id": 2, **changes})
    model = {"bitnet": transformers.BitNetForCausalLM, "llama": transformers.LlamaForCausalLM}[kind](made_config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(PROJECTIONS):
            ternary_(module, generator, rows)
            if module.bias is not None:
                module.bias.data = 0.1 * torch.randn(module.bias.shape, generator=generator)
        elif "norm" in name and hasattr(module, "weight"):
            module.weight.data = 1 + 0.1 * torch.randn(module.weight.shape, generator=generator)
    eight_bits_(model.model.embed_tokens.weight, generator)
    if not made_config.tie_word_embeddings:
        eight_bits_(model.lm_head.weight, generator)
    return model.eval()


def save_packed(model, folder, shards=1, linear_class="bitlinear"):
    """Write a folder as BitNet checkpoints are published: packed uint8 weights with a scale, in shards."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.removesuffix(".weight").endswith(PROJECTIONS) and name.endswith(".weight"):
            scale = tensor.abs().max()
            codes = (tensor / scale).round().to(torch.int8).add(1).to(torch.uint8)
            quarter = codes.reshape(4, -1, codes.shape[1])
            state[name] = quarter[0] | quarter[1] << 2 | quarter[2] << 4 | quarter[3] << 6
            given = 1 / scale if linear_class == "bitlinear" else scale
            state[name + "_scale"] = given.reshape(1)
        else:
            state[name] = tensor.contiguous()
    names = sorted(state)
    for i in range(shards):
        part = {name: state[name].clone() for name in names[i::shards]}
        save_file(part, folder / f"model-{i + 1:05}-of-{shards:05}.safetensors")
    config = json.loads(model.config.to_json_string(use_diff=False))
    config["quantization_config"] = {"quant_method": "bitnet", "linear_class": linear_class}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def small_tokenizer(folder, texts=("the quick brown fox jumps over the lazy dog", "Grüße aus Köln: äöü € 你好")):
    """Train a byte-level tokenizer on some text and write it with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tokenizer


def reference_logits(model, ids):
    """What transformers computes, in float32."""
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


def integers_in(model):
    """The same model with the package's packed layers in it: exact integer products of 8-bit activations."""
    import copy

    from ternary.runtime._modules import PackedLinear

    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(PROJECTIONS):
            scale = module.weight.abs().amax(1)
            values = (module.weight / scale[:, None]).round().to(torch.int8)
            bias = None if module.bias is None else module.bias.data
            made.set_submodule(name, PackedLinear.from_ternary(values, scale.detach(), bias))
    return made


def tokens(count, vocabulary=SHAPE["vocab_size"], seed=3):
    """Random tokens."""
    return [int(t) for t in np.random.default_rng(seed).integers(3, vocabulary, count)]


def folder_of(tmp_path: Path, kind="bitnet", **options):
    """A packed folder with a tokenizer."""
    model = hugging_face_model(kind, tie_word_embeddings=kind == "bitnet", **options)
    folder = tmp_path / f"{kind}-model"
    save_packed(model, folder)
    small_tokenizer(folder)
    return folder, model
