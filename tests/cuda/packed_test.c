/* Gradients of a packed query, key and value: attention's backward writes them into one buffer, and
 * join hands it on. Against the same network over copies of the three, whose gradients are put
 * together by concat: the same bits on the CPU and on the device, by every kernel, recomputed or
 * not; and what does not lie as one tensor is still put together right. */
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "expect.h"
#include "ops/attention/attention.h"
#include "ops/cast/cast.h"
#include "ops/concat/concat.h"
#include "ops/copy/copy.h"
#include "ops/join/join.h"
#include "ops/reshape/reshape.h"
#include "ops/slice/slice.h"
#include "ops/split/split.h"
#include "ops/transpose/transpose.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(TP_CUDA_ON_CPU)
#include "emu.h"
#endif

typedef enum way {
    PACKED,       /* q, k and v are views of one tensor, as the model has them */
    APART,        /* copies of them: dense gradients and concat */
    RECOMPUTED,   /* packed, in a checkpoint */
    SWAPPED,      /* k stands before q: not one tensor in attention's order */
    SWAPPED_APART /* that with copies */
} way;

typedef struct net {
    const char *name;
    tp_device device;
    int sm; /* of the emulator */
    tp_dtype dtype;
    int64_t B, T, H, Hkv, D;
    bool segments;
    way way;
    int joins, concats; /* calls of the walk back */
} net;

static tp_ctx *open_ctx(const net *n, bool meta) {
    tp_ctx *c;
    char why[TP_WHY_BYTES] = "";
#if defined(TP_EMU_H)
    emu_set_sm(n->sm);
#endif
    tp_ctx_opts o = {.device = n->device,
                     .meta = meta,
                     .threads = 2,
                     .memory_limit = (size_t)64 << 20,
                     .why = why};
    if (tp_ctx_new(&c, &o)) printf("no device: %s\n", why), exit(3);
    return c;
}

static void see_call(void *arg, const tp_call *k, int at, int of, bool saves) {
    net *n = arg;
    (void)at, (void)of, (void)saves;
    if (!k->backward) return;
    n->joins += !strcmp(k->op->name, "join");
    n->concats += !strcmp(k->op->name, "concat");
}
static void see_grad(void *arg, const tp_tensor *t, const tp_tensor *sum) {
    (void)arg, (void)t, (void)sum;
}

static tp_tensor *heads(tp_ctx *c, const net *n, tp_tensor *x, int64_t h) {
    if (n->way == APART || n->way == SWAPPED_APART) x = tp_copy(c, x);
    return tp_reshape(c, x, TP_SHAPE(n->B, n->T, h, n->D));
}

/* (B,T,(H+2Hkv)D) -> (B,T,H,D) */
static tp_tensor *attend(tp_ctx *c, void *arg, tp_tensor *const in[], int nin) {
    const net *n = arg;
    int64_t q = n->H * n->D, kv = n->Hkv * n->D;
    tp_tensor *p[3];
    bool swapped = n->way == SWAPPED || n->way == SWAPPED_APART;
    (void)nin;
    if (tp_split(c, in[0], -1, 3, (int64_t[]){q, kv, kv}, p)) return NULL;
    tp_attention_opts o = {.causal = true, .segments = in[1]};
    return tp_attention(c, heads(c, n, p[swapped], n->H), heads(c, n, p[!swapped], n->Hkv),
                        heads(c, n, p[2], n->Hkv), &o, NULL);
}

static void fill(tp_ctx *c, tp_tensor *f32, uint64_t which) {
    int64_t m = tp_numel(f32);
    float *x = calloc((size_t)m + 1, sizeof *x);
    for (int64_t i = 0; i < m; i++) x[i] = (float)tp_normal(which, TP_RNG_TEST, 0, (uint64_t)i);
    tp_upload(c, f32, x);
    free(x);
}

/* The gradient of the leaf, f32 (B,T,(H+2Hkv)D), for a fixed gradient of o; NULL under META. */
static float *gradient(net *n, bool meta, bool graph, size_t *peak) {
    tp_ctx *c = open_ctx(n, meta);
    int64_t width = (n->H + 2 * n->Hkv) * n->D, total = n->B * n->T * width;
    tp_tensor *x = tp_tensor_keep(c, TP_F32, TP_SHAPE(n->B, n->T, width)), *dx = NULL;
    tp_tensor *seg = n->segments ? tp_tensor_keep(c, TP_I32, TP_SHAPE(n->B, n->T)) : NULL;
    tp_tensor *dy = tp_tensor_keep(c, TP_F32, TP_SHAPE(n->B, n->T, n->H, n->D));
    if (!meta) fill(c, x, 1), fill(c, dy, 2);
    int32_t *id = calloc((size_t)(n->B * n->T) + 1, sizeof *id);
    for (int64_t i = 0; i < n->B * n->T; i++) id[i] = (int32_t)(i / 7 % 3);
    if (seg && !meta) tp_upload(c, seg, id);
    free(id);
    tp_require_grad(x);
    tp_tape_on(c);
    tp_tape_trace(c, true);
    n->joins = n->concats = 0;
    tp_tape_watch w = {n, see_call, see_grad};
    tp_tape_watch_by(c, &w);
    tp_tensor *in[2] = {tp_cast(c, x, n->dtype), seg};
    tp_tensor *o = n->way == RECOMPUTED ? tp_checkpoint(c, attend, n, in, 2) : attend(c, n, in, 2);
    tp_tensor *y = tp_cast(c, o, TP_F32);
    if (graph) {
        tp_grad(c, y, dy, 1, &x, &dx, &(tp_grad_opts){.create_graph = true});
    } else if (!tp_backward_from(c, 1, &y, &dy)) {
        dx = x->grad;
    }
    float *out = NULL;
    if (dx && !meta && tp_contiguous(dx) && dx->dtype == TP_F32) {
        out = calloc((size_t)total + 1, sizeof *out);
        if (tp_download(c, dx, out)) free(out), out = NULL;
    }
    if (c->status || !dx) printf("%s: %s\n", n->name, tp_error(c)), failed++;
    if (peak) *peak = tp_memory_peak(c);
    tp_ctx_free(c);
    return out;
}

static bool equal(const float *a, const float *b, int64_t n) {
    return a && b && !memcmp(a, b, (size_t)n * sizeof *a);
}

static void compare(net n) {
    int64_t total = n.B * n.T * (n.H + 2 * n.Hkv) * n.D;
    size_t used = 0, planned = 0, apart = 0;
    net m = n;
    m.way = APART;
    float *want = gradient(&m, false, false, &apart);
    expect(m.joins == 0 && m.concats == 1, "copies are not joined", n.name);
    n.way = PACKED;
    float *got = gradient(&n, false, false, &used);
    expect(n.joins == 1 && n.concats == 0, "the gradients were copied together", n.name);
    expect(equal(got, want, total), "other bits than by concat", n.name);
    gradient(&n, true, false, &planned);
    expect(n.joins == 1 && n.concats == 0, "META puts them together otherwise", n.name);
    expect(planned == used, "another peak was planned", n.name);
    if (total > 4096) expect(used < apart, "no less memory", n.name);
    for (int64_t i = 0; i < total && got; i += total / 5 + 1) { /* one bit is noticed */
        ((uint32_t *)(void *)got)[i] ^= 1;
        expect(!equal(got, want, total), "a wrong bit passed", n.name);
        ((uint32_t *)(void *)got)[i] ^= 1;
    }
    free(got);
    n.way = RECOMPUTED;
    got = gradient(&n, false, false, NULL);
    expect(n.joins == 1 && equal(got, want, total), "other bits when recomputed", n.name);
    free(got);
    n.way = PACKED;
    got = gradient(&n, false, true, NULL);
    expect(equal(got, want, total), "other bits with create_graph", n.name);
    free(got), free(want);
    if (n.H != n.Hkv) return;
    n.way = SWAPPED_APART;
    want = gradient(&n, false, false, NULL);
    n.way = SWAPPED;
    got = gradient(&n, false, false, NULL);
    expect(n.joins == 0 && n.concats == 1, "another order was joined", n.name);
    expect(equal(got, want, total), "another order: other bits", n.name);
    free(got), free(want);
}

/* What may be joined, and what only looks like it. */
static void lying(bool meta) {
    const char *who = meta ? "META" : "tensors";
    net n = {.device = TP_CPU};
    tp_ctx *c = open_ctx(&n, meta);
    tp_tensor *x = tp_tensor_new(c, TP_F32, TP_SHAPE(4, 6, 5)), *p[3], *t, whole;
    tp_tensor *other = tp_tensor_new(c, TP_F32, TP_SHAPE(4, 6, 5));
    for (int dim = -1; dim < 3; dim++) {
        int64_t size = tp_dim(x, dim);
        tp_split(c, x, dim, 3, (int64_t[]){1, 1, size - 2}, p);
        bool yes = tp_lie_joined(dim, 3, p, &whole);
        expect(yes && tp_same_shape(&whole, x) && tp_contiguous(&whole) && whole.data == x->data,
               "pieces are not known again", who);
        expect(yes && tp_lie_joined(dim, 2, p, &whole) && tp_dim(&whole, dim) == 2,
               "two single ones are not known again", who);
        expect(tp_same_shape(tp_join(c, dim, 3, p), x), "join gives another shape", who);
        tp_tensor *order[3] = {p[1], p[0], p[2]};
        expect(!tp_lie_joined(dim, 3, order, &whole), "another order was joined", who);
        tp_tensor *gap[2] = {p[0], p[2]};
        expect(!tp_lie_joined(dim, 2, gap, &whole), "a gap was joined", who);
        tp_tensor *absent[3] = {p[0], NULL, p[2]};
        expect(!tp_lie_joined(dim, 3, absent, &whole), "an absent piece was joined", who);
        tp_tensor *twice[2] = {p[0], p[0]};
        expect(!tp_lie_joined(dim, 2, twice, &whole), "a piece was joined to itself", who);
        tp_tensor *two[2] = {p[0], tp_slice(c, other, dim, 1, 1)};
        expect(!tp_lie_joined(dim, 2, two, &whole), "two buffers were joined", who);
    }
    t = tp_transpose(c, x, 0, 2);
    tp_split(c, t, 1, 3, (int64_t[]){1, 2, 3}, p);
    expect(tp_lie_joined(1, 3, p, &whole) && whole.stride[0] == 1 && whole.stride[1] == 5,
           "transposed pieces are not known again", who);
    p[1] = tp_transpose(c, tp_transpose(c, p[1], 0, 2), 0, 2);
    expect(tp_lie_joined(1, 3, p, &whole), "the same strides by another way", who);
    tp_split(c, x, 1, 3, (int64_t[]){2, 0, 4}, p);
    expect(!tp_lie_joined(1, 3, p, &whole), "an empty piece was joined", who);
    tp_split(c, x, 1, 2, (int64_t[]){3, 3}, p);
    tp_tensor *turned[2] = {
        tp_slice(c, p[0], 2, 0, 3),
        tp_transpose(c, tp_slice(c, tp_transpose(c, p[1], 1, 2), 1, 0, 3), 0, 0)};
    expect(!tp_lie_joined(1, 2, turned, &whole), "other strides were joined", who);
    tp_ctx_free(c);
}

int main(void) {
    lying(false);
    lying(true);
    compare((net){"CPU", TP_CPU, 0, TP_F32, 3, 33, 2, 2, 8, false, PACKED, 0, 0});
    compare((net){"CPU, several tiles", TP_CPU, 0, TP_F32, 1, 150, 2, 2, 16, false, PACKED, 0, 0});
    compare((net){"CPU, grouped", TP_CPU, 0, TP_F32, 2, 21, 6, 2, 5, true, PACKED, 0, 0});
    compare((net){"CPU, one head", TP_CPU, 0, TP_F32, 2, 9, 1, 1, 4, false, PACKED, 0, 0});
    compare((net){"CPU, one of each", TP_CPU, 0, TP_F32, 1, 1, 1, 1, 1, false, PACKED, 0, 0});
    compare((net){"CPU, oracle", TP_CPU, 0, TP_BF16, 2, 9, 2, 2, 4, false, PACKED, 0, 0});
    compare((net){"naive, f32", TP_CUDA, 80, TP_F32, 2, 21, 4, 2, 5, true, PACKED, 0, 0});
    compare((net){"naive, bf16", TP_CUDA, 80, TP_BF16, 2, 17, 2, 2, 5, false, PACKED, 0, 0});
    compare((net){"sm_80", TP_CUDA, 80, TP_BF16, 2, 150, 2, 2, 64, false, PACKED, 0, 0});
    compare((net){"sm_80, narrow", TP_CUDA, 80, TP_BF16, 2, 70, 4, 2, 24, true, PACKED, 0, 0});
    compare((net){"sm_80, one head", TP_CUDA, 80, TP_BF16, 2, 33, 1, 1, 32, false, PACKED, 0, 0});
    compare((net){"sm_90", TP_CUDA, 90, TP_BF16, 2, 150, 2, 2, 64, false, PACKED, 0, 0});
    compare((net){"sm_90, wide", TP_CUDA, 90, TP_BF16, 1, 140, 4, 2, 128, true, PACKED, 0, 0});
    compare((net){"sm_90, one head", TP_CUDA, 90, TP_BF16, 2, 33, 1, 1, 64, false, PACKED, 0, 0});
    printf("%d checks, %d failed\n", checks, failed);
    return failed != 0;
}
