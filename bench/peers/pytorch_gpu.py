"""PyTorch on the GPU beside tapir, in one run: A, B, A, B.

    python3 bench/peers/pytorch_gpu.py attention|loss|step [--build build-cuda] [--rounds 3]

attention: scaled_dot_product_attention by its flash and cuDNN backends, forward and backward, TFLOP/s by the rule
4 B T^2 H D (half when causal; backward 2.5 times). loss: linear + cross_entropy under torch.compile, forward and
backward. step: the training step of `tapir bench step` (GPT-2 124M; a Llama of 1.3B), torch.compile, fused AdamW, bf16
weights cast by autocast, attention by cuDNN. Prints a line per measurement; what is missing is told and left out.
"""
import argparse
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

DEV = "cuda"


def seconds(fn, floor=0.02, rounds=9):
    fn()
    torch.cuda.synchronize()
    t = time.perf_counter()
    fn()
    torch.cuda.synchronize()
    calls = max(1, int(floor / max(1e-6, time.perf_counter() - t)))
    took = []
    for _ in range(rounds):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        for _ in range(calls):
            fn()
        b.record()
        torch.cuda.synchronize()
        took.append(a.elapsed_time(b) / 1e3 / calls)
    return statistics.median(took)


def ours(args, program, *words):
    args.failed = subprocess.run([f"{args.build}/{program}", *map(str, words)], check=False).returncode or args.failed


SHAPES = [(64, 1024, True), (128, 4096, True), (128, 4096, False), (96, 2048, True), (256, 4096, True)]


def attention(args):
    tokens = 16384
    for d, t, causal in SHAPES:
        heads = 2048 // d  # 96 leaves a rest
        shape = (tokens // t, heads, t, d)
        q, k, v = (torch.randn(shape, device=DEV, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        do = torch.randn(shape, device=DEV, dtype=torch.bfloat16)
        flops = 4.0 * tokens * t * heads * d / (2 if causal else 1)
        for _ in range(args.rounds):
            ours(args, "bench_cuda_attention", d, t, int(causal))
            for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
                try:
                    with sdpa_kernel(backend):
                        f = seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal))
                        o = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
                        b = seconds(lambda: torch.autograd.grad(o, (q, k, v), do, retain_graph=True))
                    print(f"torch {name:5} D={d:<3} T={t:<4} {'causal' if causal else 'full':6} forward "
                          f"{flops / f / 1e12:6.1f} TFLOP/s ({1e3 * f:.3f} ms)  backward "
                          f"{2.5 * flops / b / 1e12:6.1f} TFLOP/s ({1e3 * b:.3f} ms)", flush=True)
                except RuntimeError as e:
                    print(f"torch {name}: D={d}: {str(e).splitlines()[0]}", flush=True)


def loss(args):
    n = 16384
    for c, v in ((768, 50304), (2048, 128256)):
        x = torch.randn(n, c, device=DEV, dtype=torch.bfloat16, requires_grad=True)
        w = (0.02 * torch.randn(v, c, device=DEV)).bfloat16().requires_grad_()
        y = torch.randint(v, (n,), device=DEV)

        def both():
            l = F.cross_entropy(F.linear(x, w).float(), y)
            return torch.autograd.grad(l, (x, w))

        torch._dynamo.reset()  # else the second shape would be compiled for any size, which is slower
        compiled = torch.compile(both, dynamic=False)
        for _ in range(args.rounds):
            ours(args, "bench_cuda_loss", c, v)
            try:
                compiled()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                s = seconds(compiled)
                extra = torch.cuda.max_memory_allocated() - before
                print(f"torch loss C={c:<4} V={v:<6} {1e3 * s:.3f} ms  peak over inputs {extra / 1e6:.1f} MB", flush=True)
            except Exception as e:  # a compiler fails in many ways
                print(f"torch loss: {(str(e) or repr(e)).splitlines()[0]}", flush=True)


class GPT2Block(nn.Module):
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


class LlamaBlock(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        ffn = ((8 * c + 2) // 3 + 31) // 32 * 32
        self.heads = heads
        self.n1, self.n2 = nn.RMSNorm(c), nn.RMSNorm(c)
        self.q, self.k, self.v, self.o = (nn.Linear(c, c, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(c, ffn, bias=False), nn.Linear(c, ffn, bias=False)
        self.down = nn.Linear(ffn, c, bias=False)

    def forward(self, x, cos, sin):
        b, t, c = x.shape
        n = self.n1(x)
        q, k, v = (f(n).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))

        def turn(y):
            h = y.shape[-1] // 2
            return (y * cos + torch.cat((-y[..., h:], y[..., :h]), -1) * sin).to(y.dtype)

        a = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(b, t, c))
        n = self.n2(x)
        return x + self.down(F.silu(self.gate(n)) * self.up(n))


class Model(nn.Module):
    def __init__(self, family, layers, heads, c, vocab, context):
        super().__init__()
        self.llama = family == "llama"
        self.wte = nn.Embedding(vocab, c)
        self.wpe = None if self.llama else nn.Embedding(context, c)
        self.blocks = nn.ModuleList((LlamaBlock if self.llama else GPT2Block)(c, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(c) if self.llama else nn.LayerNorm(c)
        d = c // heads
        at = torch.arange(context)[:, None] / 10000 ** (torch.arange(0, d, 2) / d)
        self.register_buffer("cos", torch.cat((at, at), -1).cos())
        self.register_buffer("sin", torch.cat((at, at), -1).sin())

    def forward(self, ids, targets):
        x = self.wte(ids)
        if self.wpe is not None:
            x = x + self.wpe.weight[: ids.shape[1]]
        for b in self.blocks:
            x = b(x, self.cos, self.sin) if self.llama else b(x)
        return F.cross_entropy(F.linear(self.norm(x), self.wte.weight).flatten(0, 1).float(), targets.flatten())


STEPS = [("gpt2-124m", "gpt2", 12, 12, 768, 50304, 64, 1024), ("llama-1.3b", "llama", 24, 16, 2048, 32000, 8, 2048)]


def step(args):
    torch.set_float32_matmul_precision("high")
    for name, family, layers, heads, c, vocab, batch, context in STEPS:
        torch.manual_seed(1)
        m = Model(family, layers, heads, c, vocab, context).to(DEV)
        params = sum(p.numel() for p in m.parameters())
        opt = torch.optim.AdamW(m.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        ids = torch.randint(vocab, (batch, context + 1), device=DEV)

        def one():
            with torch.autocast(DEV, torch.bfloat16):
                l = f(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
            l.backward()
            nn.utils.clip_grad_norm_(m.parameters(), 1.0)
            opt.step()
            opt.zero_grad(set_to_none=True)

        # By itself PyTorch takes the flash kernel, where cuDNN's is faster on Hopper. The choice is made while the model
        # is compiled; what cuDNN does not do shows in errors of several kinds.
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            torch._dynamo.reset()
            f = torch.compile(m, dynamic=False)
            try:
                with sdpa_kernel(backend):
                    for _ in range(4):
                        one()
                break
            except Exception as e:
                print(f"torch step {name}: {backend.name}: {(str(e) or repr(e)).splitlines()[0]}", flush=True)
                backend = None
        for _ in range(args.rounds):
            if backend is not None:
                with sdpa_kernel(backend):
                    s = seconds(one, floor=0.5, rounds=3)
                print(f"torch step {name}: {batch * context / s:.0f} tokens/s ({1e3 * s:.1f} ms, {params / 1e6:.0f}M parameters, "
                      f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB, {backend.name})", flush=True)
            torch.cuda.empty_cache()  # what is left is a few GB of weights and moments
            for how in ([], ["train.loss_chunk_size=0"], ["gemm=own"], ["gemm=cublaslt"]):
                ours(args, "tapir", "bench", "step", f"configs/bench/{name}-cuda.yaml", "--steps", "8", "--warmup", "3", *how)
        del m, opt, f
        torch.cuda.empty_cache()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["attention", "loss", "step"])
    p.add_argument("--build", default="build-cuda")
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    args.failed = 0
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU")
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    {"attention": attention, "loss": loss, "step": step}[args.what](args)
    sys.exit(args.failed != 0)


if __name__ == "__main__":
    main()
