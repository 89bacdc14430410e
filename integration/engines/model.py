"""Makes a small Llama with random weights, its tokenizer and LoRA adapters: model.py CHECKOUT OUT

A model server needs a model, and what it answers does not matter to a pick. The tokenizer is trained on the
checkout's Go and Markdown files, so that prompts have about as many bytes a token as a real model's.
"""

import json
import pathlib
import shutil
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 8000
WIDTH = 256
LAYERS = 4
RANK = 8
ADAPTERS = ("sql", "chat", "code")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def tokenizer(texts):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    t.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", t.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE)


def adapter(out, seed):
    """Random weights of a size that changes the answers."""
    out.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "lora_dropout": 0.0, "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "tiny",
    }
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1))
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(LAYERS):
        for projection in config["target_modules"]:
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            weights[f"{name}.lora_A.weight"] = torch.randn(RANK, WIDTH, generator=random) * 0.05
            weights[f"{name}.lora_B.weight"] = torch.randn(WIDTH, RANK, generator=random) * 0.05
    save_file(weights, out / "adapter_model.safetensors")


def main(checkout, out):
    """The folder appears when all of it is there."""
    made = out.with_suffix(".making")
    shutil.rmtree(made, ignore_errors=True)
    make(pathlib.Path(checkout), made)
    shutil.rmtree(out, ignore_errors=True)
    made.rename(out)


def make(root, out):
    texts = (p.read_text() for pattern in ("**/*.md", "**/*.go") for p in sorted(root.glob(pattern)))
    words = tokenizer(texts)
    words.save_pretrained(out)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=32768, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    for seed, name in enumerate(ADAPTERS):
        adapter(out / "adapters" / name, seed)


main(sys.argv[1], pathlib.Path(sys.argv[2]))
