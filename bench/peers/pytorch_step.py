"""The training step of `tapir bench step` in PyTorch, at its best settings on a CPU.

    python3 bench/peers/pytorch_step.py {gpt2-124m,small} [--bf16] [--compile] [--threads 2] [--steps 10]

Scaled-dot-product attention, fused AdamW, tied head, tanh GELU, float32, random tokens, gradients clipped. Prints one
JSON line. docs/peers.md says which environment is fair to PyTorch; the line records what of it was in force, and the
rate of a 1024 x 1024 product, which shows a BLAS that took a slow path. What is missing is told on stderr.
"""
import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from environment import environment

SHAPES = {  # layers, heads, channels, vocabulary, batch, context
    "gpt2-124m": (12, 12, 768, 50257, 4, 64),
    "small": (6, 6, 384, 256, 8, 256),
}


class Block(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.fc, self.down = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.ln1(x)).split(c, 2))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(a.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, layers, heads, c, vocab, context):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, c), nn.Embedding(context, c)
        self.blocks = nn.Sequential(*(Block(c, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(c)

    def forward(self, ids, targets):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        logits = F.linear(self.norm(self.blocks(x)), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("shape", choices=SHAPES)
    a.add_argument("--compile", action="store_true")
    a.add_argument("--bf16", action="store_true", help="autocast to bf16, as float32_matmul_precision: medium is for Tapir")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--steps", type=int, default=10)
    a = a.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    used = environment("pytorch_step")
    layers, heads, c, vocab, batch, context = SHAPES[a.shape]
    model = GPT(layers, heads, c, vocab, context)
    step = torch.compile(model) if a.compile else model
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.randint(vocab, (batch, context))
    targets = torch.randint(vocab, (batch, context))
    times = []
    for i in range(a.steps + 3):
        start = time.perf_counter()
        opt.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=a.bf16):
            loss = step(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        opt.step()
        if i >= 3:
            times.append(time.perf_counter() - start)
    median = statistics.median(times)
    print(json.dumps({
        "peer": f"pytorch {torch.__version__}", "shape": a.shape, "compile": a.compile, "bf16": a.bf16,
        "tokens_per_s": round(batch * context / median, 1), "ms_per_step": round(1e3 * median, 1),
        "ms_min": round(1e3 * min(times), 1), "ms_max": round(1e3 * max(times), 1), "threads": a.threads, **used,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
    }))


main()
