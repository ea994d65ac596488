"""Which settings that are fair to PyTorch (docs/peers.md) are in force."""
import os
import sys
import time

import torch


def product_gflops():
    """The best of a few products: far below the machine's peak means a slow BLAS path, not a slow PyTorch."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best / 1e9


def environment(script):
    """What of docs/peers.md is in force; says what is not."""
    try:
        with open("/proc/cpuinfo") as f:
            amd = "AuthenticAMD" in f.read()
    except OSError:
        amd = False
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    preload = os.environ.get("LD_PRELOAD", "")
    if not tuned and not preload:
        print(f"{script}: the allocator is not tuned: set GLIBC_TUNABLES (docs/peers.md)", file=sys.stderr)
    if amd and torch.backends.mkl.is_available() and not preload:
        print(f"{script}: MKL may take a slow path on an AMD CPU: preload (docs/peers.md)", file=sys.stderr)
    return {"malloc_tuned": tuned, "preloaded": os.path.basename(preload), "mkl": torch.backends.mkl.is_available(),
            "product_gflops": round(product_gflops(), 1)}
