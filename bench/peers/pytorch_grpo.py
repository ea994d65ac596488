"""The loop of `tapir grpo configs/grpo-chain8.yaml` in PyTorch, at its best settings on a CPU.

    python3 bench/peers/pytorch_grpo.py CHECKPOINT.h5 [--threads 1] [--steps 100] [--compile none|update|all]
                                        [--attention own|sdpa] [--sampler invert|multinomial] [--compact 0.9] [--share] [--parts 1]

CHECKPOINT.h5 is one of `tapir train configs/sft-chain8.yaml`, so that both begin with the same policy; needs torch and
h5py. A step: 32 prompts of chain arithmetic are read once, their keys and values expanded to 16 samples each, all 512
completions drawn side by side with a cache, and what has ended leaves the batch; rewards, advantages and the update
are batched too, with no loop over sequences. The update is one forward and backward over padded rows, its head over
completion tokens only; old log-probs are the update's own, detached (on policy their ratios are 1), so that none are
computed twice. --share reads a prompt once for its group in the update as well, as rl.share_prompts does; --parts
takes the update in so many parts, as train.micro_batches does, whose activations stay in the caches. Fused AdamW, clipping over all tensors at once, float32. Steps that warm up are taken back before the timed ones. Prints one
JSON line. docs/peers.md says which environment is fair to PyTorch.
"""
import argparse
import json
import resource
import statistics
import time

import h5py
import torch
import torch.nn.functional as F
from torch import nn

from environment import environment

LAYERS, HEADS, C, CONTEXT, VOCAB, EOS, HASH = 2, 4, 64, 32, 257, 256, ord("#")
PROMPTS, GROUP, OPERATIONS, MOST = 32, 16, 8, 16
P = 2 * OPERATIONS + 2  # tokens of a prompt: digits, operations, "="
R = min(MOST, CONTEXT + 1 - P)  # of a completion; the last one is not fed


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.fc, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def heads(self, x):
        b, t, _ = x.shape
        return self.qkv(self.ln1(x)).view(b, t, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4).unbind(0)  # (B,H,T,D)

    def rest(self, x, a):
        return self.rest_flat(x, a.transpose(1, 2).reshape(x.shape))

    def rest_flat(self, x, a):
        x = x + self.proj(a)
        return x + self.down(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))

    def forward(self, x):
        return self.rest(x, F.scaled_dot_product_attention(*self.heads(x), is_causal=True))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, C), nn.Embedding(CONTEXT, C)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(C)

    def embed(self, ids, at=0):
        return self.wte(ids) + self.wpe.weight[at : at + ids.shape[1]]

    def head(self, x):
        return F.linear(self.norm(x), self.wte.weight)


def load(model, path):
    """Tapir's weights have Hugging Face's names; its matrices are (in, out)."""
    names = {"ln1": "ln_1", "ln2": "ln_2", "qkv": "attn.c_attn", "proj": "attn.c_proj", "fc": "mlp.c_fc", "down": "mlp.c_proj"}
    with h5py.File(path) as f, torch.no_grad():
        def take(to, name, turn=False):
            x = torch.from_numpy(f["weights/transformer." + name][()])
            to.copy_(x.t() if turn else x)

        take(model.wte.weight, "wte.weight")
        take(model.wpe.weight, "wpe.weight")
        for k in ("weight", "bias"):
            take(getattr(model.norm, k), "ln_f." + k)
            for i, b in enumerate(model.blocks):
                for ours, theirs in names.items():
                    turn = k == "weight" and not ours.startswith("ln")
                    take(getattr(getattr(b, ours), k), f"h.{i}.{theirs}.{k}", turn)


def make_prompts():
    """7+3*4-2=, from left to right modulo 10: a digit, then operations with digits from 1."""
    value = torch.randint(0, 10, (PROMPTS,))
    op = torch.randint(0, 3, (PROMPTS, OPERATIONS))
    digit = torch.randint(1, 10, (PROMPTS, OPERATIONS))
    ids = torch.empty(PROMPTS, P, dtype=torch.long)
    ids[:, 0] = 48 + value
    ids[:, 1:-1:2] = torch.tensor([ord(c) for c in "+-*"])[op]
    ids[:, 2::2] = 48 + digit
    ids[:, -1] = ord("=")
    for i in range(OPERATIONS):
        d = digit[:, i]
        value = torch.stack([value + d, value - d, value * d]).gather(0, op[:, i][None])[0] % 10
    return ids, value


# ---- generation --------------------------------------------------------------------------------------------------
def attend_own(q, k, v):  # one query each: two batched products are quicker than the fused kernel
    return (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(3) @ v


def attend_sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def draw_invert(logits):
    """One uniform number a row, looked up in the distribution: the cheapest exact draw."""
    cdf = logits.softmax(1).cumsum(1)
    u = torch.rand(len(cdf), 1) * cdf[:, -1:]
    return torch.searchsorted(cdf, u, right=True).clamp_(max=VOCAB - 1)


def draw_multinomial(logits):
    return torch.multinomial(logits.softmax(1), 1)


class Generator:
    def __init__(self, model, a):
        self.model, self.compact = model, a.compact
        self.attend = {"own": attend_own, "sdpa": attend_sdpa}[a.attention]
        self.draw = {"invert": draw_invert, "multinomial": draw_multinomial}[a.sampler]
        self.token = torch.compile(self.next_logits, dynamic=True) if a.compile == "all" else self.next_logits

    def next_logits(self, ids, at, caches):
        """ids (n,1) at position `at`; caches: a pair (n,H,at,D) for each layer. Logits (n,V) and longer caches."""
        x = self.model.embed(ids, at)
        longer = []
        for b, (k, v) in zip(self.model.blocks, caches):
            q, new_k, new_v = b.heads(x)
            k, v = torch.cat([k, new_k], 2), torch.cat([v, new_v], 2)
            longer.append((k, v))
            x = b.rest(x, self.attend(q, k, v))
        return self.model.head(x)[:, 0], longer

    @torch.inference_mode()
    def __call__(self, prompts):
        """(rows,R) ids, those behind the end 0, and which are completion tokens."""
        rows = PROMPTS * GROUP
        x, caches = self.model.embed(prompts), []
        for b in self.model.blocks:
            q, k, v = b.heads(x)
            caches.append((k.repeat_interleave(GROUP, 0), v.repeat_interleave(GROUP, 0)))
            x = b.rest(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))
        logits = self.model.head(x[:, -1]).repeat_interleave(GROUP, 0)
        ids, mask = torch.zeros(rows, R, dtype=torch.long), torch.zeros(rows, R, dtype=torch.bool)
        who, alive = torch.arange(rows), torch.ones(rows, dtype=torch.bool)  # rows of the batch that is left
        for t in range(R):
            y = self.draw(logits)
            ids[who, t] = torch.where(alive, y[:, 0], 0)
            mask[who, t] = alive
            alive = alive & (y[:, 0] != EOS)
            left = int(alive.sum())
            if left == 0 or t == R - 1:
                break
            if left <= self.compact * len(alive):
                stay = alive.nonzero()[:, 0]
                who, y, alive = who[stay], y[stay], alive[stay]
                caches = [(k[stay], v[stay]) for k, v in caches]
            logits, caches = self.token(y, P + t, caches)
        return ids, mask


# ---- the update --------------------------------------------------------------------------------------------------
def judge(ids, mask, answer):
    """What stands behind the last # is the answer, a digit."""
    end = (mask & (ids != EOS)).sum(1)
    last = ids.gather(1, (end - 1).clamp(min=0)[:, None])[:, 0]
    before = ids.gather(1, (end - 2).clamp(min=0)[:, None])[:, 0]
    right = (end >= 2) & (before == HASH) & (last == 48 + answer.repeat_interleave(GROUP))
    return right.float()


def advantages(reward):
    r = reward.view(PROMPTS, GROUP)
    return ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)).flatten()


def loss_of(model, rows, where, targets, advantage, epsilon=0.2):
    """rows (N,T); where (tokens): the places whose next token is of a completion; the mean is over all tokens."""
    x = model.embed(rows)
    for b in model.blocks:
        x = b(x)
    logits = model.head(x.flatten(0, 1).index_select(0, where))
    logp = -F.cross_entropy(logits, targets, reduction="none")
    ratio = (logp - logp.detach()).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage).mean()


def feed(prompts, ids, mask, advantage):
    longest = int(mask.sum(1).max())
    rows = torch.cat([prompts.repeat_interleave(GROUP, 0), ids[:, : longest - 1]], 1)  # (N, P+longest-1)
    at, t = mask.nonzero(as_tuple=True)
    return rows, at * rows.shape[1] + P - 1 + t, ids[at, t], advantage[at]


def feed_shared(prompts, ids, mask, advantage):
    """Tokens of all prompts but their last ones, then what the completions feed, without padding."""
    longest, before = int(mask.sum(1).max()), len(prompts) * (P - 1)
    m = mask[:, :longest]
    row, t = m.nonzero(as_tuple=True)
    fed = torch.cat([prompts[:, -1:].repeat_interleave(GROUP, 0), ids[:, : longest - 1]], 1)
    tokens = torch.cat([prompts[:, :-1].flatten(), fed[m]])
    positions = torch.cat([torch.arange(P - 1).repeat(len(prompts)), P - 1 + t])
    own = torch.zeros(m.shape, dtype=torch.long)
    own[m] = before + torch.arange(len(row))
    prompt = torch.arange(before).view(-1, P - 1).repeat_interleave(GROUP, 0)
    return tokens, positions, torch.cat([prompt, own], 1), row * longest + t, ids[row, t], advantage[row]


def loss_shared(model, tokens, positions, keys, answers, targets, advantage, epsilon=0.2):
    """keys (N,T): the tokens of each row; answers: where attention's rows have the completions' tokens."""
    before, longest = len(keys) // GROUP * (P - 1), keys.shape[1] - P + 1
    sees = torch.ones(longest, keys.shape[1], dtype=torch.bool).tril(P - 1)
    x = model.wte(tokens) + model.wpe(positions)
    for b in model.blocks:
        qkv = b.qkv(b.ln1(x))
        a = F.scaled_dot_product_attention(
            *qkv[:before].view(-1, P - 1, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4).unbind(0), is_causal=True)
        rows = qkv.index_select(0, keys.flatten()).view(*keys.shape, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(rows[0][:, :, P - 1 :], rows[1], rows[2], attn_mask=sees)
        o = o.transpose(1, 2).reshape(-1, C).index_select(0, answers)
        x = b.rest_flat(x, torch.cat([a.transpose(1, 2).reshape(before, C), o]))
    logp = -F.cross_entropy(model.head(x[before:]), targets, reduction="none")
    ratio = (logp - logp.detach()).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage).mean()


class Loop:
    def __init__(self, a):
        self.model = GPT()
        load(self.model, a.checkpoint)
        self.opt = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0, fused=True)
        self.generate = Generator(self.model, a)
        self.feed, loss = (feed_shared, loss_shared) if a.share else (feed, loss_of)
        self.loss = torch.compile(loss) if a.compile != "none" else loss
        self.parts = a.parts
        self.n = 0

    def step(self):
        """Seconds of generation, reward, update, in wall and in CPU time; tokens, reward."""
        marks = [(time.perf_counter(), time.process_time())]
        prompts, answer = make_prompts()
        ids, mask = self.generate(prompts)
        marks.append((time.perf_counter(), time.process_time()))
        reward = judge(ids, mask, answer)
        advantage = advantages(reward)
        marks.append((time.perf_counter(), time.process_time()))
        self.n += 1
        for group in self.opt.param_groups:
            group["lr"] = 1e-4 * min(1, self.n / 5)
        self.opt.zero_grad(set_to_none=True)
        for part in torch.arange(PROMPTS).chunk(self.parts):
            rows = (part[:, None] * GROUP + torch.arange(GROUP)).flatten()
            all_of = self.parts == 1
            fed = (prompts, ids, mask, advantage) if all_of else (prompts[part], ids[rows], mask[rows], advantage[rows])
            loss = self.loss(self.model, *self.feed(*fed))
            (loss if all_of else loss * (fed[2].sum() / mask.sum())).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.opt.step()
        marks.append((time.perf_counter(), time.process_time()))
        parts = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks, marks[1:])]
        return parts, float(mask.sum()) / len(ids), float(reward.mean())


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("checkpoint")
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--steps", type=int, default=100)
    a.add_argument("--warm-up", type=int, default=5)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--compile", choices=["none", "update", "all"], default="none")
    a.add_argument("--share", action="store_true")
    a.add_argument("--parts", type=int, default=1)
    a.add_argument("--attention", choices=["own", "sdpa"], default="sdpa")
    a.add_argument("--sampler", choices=["invert", "multinomial"], default="invert")
    a.add_argument("--compact", type=float, default=0.9, help="what has ended leaves when no more than this part goes on")
    a = a.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    used = environment("pytorch_grpo")
    loop = Loop(a)
    for _ in range(a.warm_up):
        loop.step()
    load(loop.model, a.checkpoint)
    loop.opt.state.clear()
    loop.n = 0
    steps = [loop.step() for _ in range(a.steps)]
    last = steps[-min(10, len(steps)):]

    def median(which, part=None):
        whole = [sum(p[which] for p in s[0]) if part is None else s[0][part][which] for s in steps]
        return round(1e3 * statistics.median(whole), 2)

    print(json.dumps({
        "peer": f"pytorch {torch.__version__}", "steps": a.steps, "ms_per_step": median(0), "cpu_ms_per_step": median(1),
        "ms_generate": median(0, 0), "ms_reward": median(0, 1), "ms_update": median(0, 2),
        "cpu_ms_generate": median(1, 0), "cpu_ms_reward": median(1, 1), "cpu_ms_update": median(1, 2),
        "cpu_s_of_all_steps": round(sum(p[1] for s in steps for p in s[0]), 2),
        "tokens_per_completion": round(statistics.mean(s[1] for s in steps), 2),
        "reward_first": round(steps[0][2], 3), "reward_last": round(statistics.mean(s[2] for s in last), 3),
        "tokens_last": round(statistics.mean(s[1] for s in last), 2),
        "threads": a.threads, "compile": a.compile, "share": a.share, "parts": a.parts, "attention": a.attention, "sampler": a.sampler,
        "compact": a.compact, **used,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
    }))


main()
