"""A run's newest checkpoint as a folder that Hugging Face's transformers loads.

    pip install h5py safetensors pyyaml
    python3 bench/peers/to_huggingface.py RUN FOLDER          (RUN may also be a checkpoint file)

A checkpoint holds all that is needed: weights by Hugging Face's names and in its layouts, the config and tokenizer.json. What
is left to say is which of its models computes the same: GPT-2, Llama, or Qwen3 for model.qk_norm. What none of them computes is
refused. The loss on a text is that of `tapir eval`, and greedy text that of `tapir generate`, but for the rounding of sums.
"""
import json
import os
import sys
from pathlib import Path

import h5py
import numpy
import yaml
from safetensors.numpy import save_file


def newest(run):
    if os.path.isfile(run):
        return run
    found = sorted(Path(run, "checkpoints").glob("step-*.h5"))
    return found[-1] if found else sys.exit(f"to_huggingface.py: {run} has no folder \"checkpoints\" with a checkpoint in it")


def says(value):  # a switch of the config: auto was resolved when the run began
    return str(value).lower() == "true"


def huggingface_config(config, refuse):
    m = config["model"]
    if config["mod"]["capacity"] > 0:
        refuse("its blocks are routed (mod.capacity)")
    for key in ("logit_softcap", "attn_softcap", "sliding_window"):
        if m[key]:
            refuse(f"it has a model.{key}")
    bias, mlp_bias, heads = says(m["attention_bias"]), says(m["mlp_bias"]), m["heads"]
    width = m["head_dim"] or m["channels"] // heads
    common = {"vocab_size": m["vocab"], "tie_word_embeddings": m["tie_embeddings"], "dtype": "float32", "bos_token_id": None}
    if m["family"] == "gpt2":
        if m["qk_norm"] or not bias or not mlp_bias or width * heads != m["channels"] or (m["kv_heads"] or heads) != heads:
            refuse("it is a GPT-2 with qk_norm, heads of another width, fewer key-value heads, or without biases")
        return common | {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": m["layers"], "n_head": heads,
            "n_embd": m["channels"], "n_inner": m["ffn"], "n_positions": m["context"], "activation_function": "gelu_new",
            "layer_norm_epsilon": float(m["norm_eps"])}
    if m["qk_norm"] and mlp_bias:
        refuse("it has both qk_norm and mlp_bias")
    kind = "Qwen3" if m["qk_norm"] else "Llama"
    return common | {
        "model_type": kind.lower(), "architectures": [kind + "ForCausalLM"], "num_hidden_layers": m["layers"],
        "num_attention_heads": heads, "num_key_value_heads": m["kv_heads"] or heads, "head_dim": width,
        "hidden_size": m["channels"], "intermediate_size": m["ffn"], "max_position_embeddings": m["context"],
        "rope_theta": float(m["rope_theta"]), "rms_norm_eps": float(m["norm_eps"]), "hidden_act": "silu",
        "attention_bias": bias, "mlp_bias": mlp_bias}


def main(run, folder):
    path = newest(run)

    def refuse(why):
        sys.exit(f"to_huggingface.py: no model of transformers computes what {path} does: {why}")

    with h5py.File(path) as f:
        config = huggingface_config(yaml.safe_load(bytes(f["config"][()])), refuse)
        tokenizer = bytes(f["tokenizer"][()]).rstrip(b"\0")
        weights = {name: f["weights"][name][()] for name in f["weights"]}
    if config.get("attention_bias"):  # theirs have one after attention, too
        for i in range(config["num_hidden_layers"]):
            weights[f"model.layers.{i}.self_attn.o_proj.bias"] = numpy.zeros(config["hidden_size"], "float32")
    ends = [t for t in json.loads(tokenizer)["added_tokens"] if t["content"] == "<|endoftext|>"]
    config["eos_token_id"] = ends[0]["id"] if ends else None
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "tokenizer.json").write_bytes(tokenizer)
    (out / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.get("n_positions") or config["max_position_embeddings"]}
        | ({"eos_token": "<|endoftext|>"} if ends else {})) + "\n")
    print(f"{folder}: {len(weights)} tensors of {path}, as {config['architectures'][0]}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
