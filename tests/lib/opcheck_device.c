/* Owns the checks of CUDA kernels: every kernel of an op's list against the float64 oracle, on
 * every layout, in f32 and bf16, and the gradients of whole vjps that run on the device. */
#include "core/ctx.h"
#include "opcheck_device.h"
#include "ops/convert.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static double tolerance(const tp_op *op, const tp_sample *s) {
    return s->tol ? s->tol : op->tol ? op->tol : 1e-5;
}
/* Results are rounded to bf16 (2^-9), and so may be what lies between (softmax weights). */
static const double BF16_TOL = 2e-2, BF16_WRONG = 5e-2;

typedef struct run {
    tp_ctx *c, *host; /* host: NULL, or where results lie that were taken from the device */
    tp_tensor *in[TP_MAXIN], *out[TP_MAXOUT], *grad[TP_MAXIN];
    tp_status st;
} run;

static void run_free(run *q) {
    tp_ctx_free(q->host);
    tp_ctx_free(q->c);
    *q = (run){0};
}

/* The whole storage moves, so that strides and what lies between the elements stay. */
static tp_tensor *move(tp_ctx *to, const tp_tensor *t, bool up, tp_ctx *from) {
    if (!t) return NULL;
    size_t bytes = t->storage->bytes,
           at = t->data ? (size_t)((char *)t->data - (char *)t->storage->base) : 0;
    tp_tensor *y = tp_tensor_keep(to, TP_U8, 1, (int64_t[]){(int64_t)bytes});
    if (!y) return NULL;
    void *base = y->data;
    tp_storage *s = y->storage;
    *y = *t;
    y->storage = s;
    y->data = base ? (char *)base + at : NULL;
    y->grad = y->grad_header = NULL;
    y->node = -1;
    tp_status st = up ? tp_upload_bytes(to, base, t->storage->base, bytes)
                      : tp_download_bytes(from, base, t->storage->base, bytes);
    return st ? NULL : y;
}

static tp_status open_device(run *q, const tp_sample *s, tp_dtype dt, op_layout layout, bool grad) {
    tp_tensor *in[TP_MAXIN] = {0};
    if ((q->st = tp_ctx_new(&q->host, &(tp_ctx_opts){.threads = 1, .seed = 5}))) return q->st;
    char why[TP_WHY_BYTES];
    q->st = tp_ctx_new(&q->c, &(tp_ctx_opts){.device = TP_CUDA,
                                             .threads = 1,
                                             .seed = 5,
                                             .memory_limit = (size_t)64 << 20,
                                             .why = why});
    if (q->st) return tp_fail(q->host, q->st, "%s", why);
    if ((q->st = op_inputs(q->host, s, dt, layout, grad, in))) return q->st;
    for (int i = 0; i < op_sample_nin(s); i++)
        if (in[i] && !(q->in[i] = move(q->c, in[i], true, NULL))) return q->st = q->c->status;
    return TP_OK;
}

/* Results come to the host, in place of what is on the device. */
static void fetch(run *q) {
    for (int i = 0; i < TP_MAXOUT; i++)
        if (q->out[i] && !(q->out[i] = move(q->host, q->out[i], false, q->c))) q->st = TP_EINTERNAL;
    for (int i = 0; i < TP_MAXIN; i++) {
        tp_tensor *x = q->in[i];
        if (!x) continue;
        if (x->grad && !(q->grad[i] = move(q->host, x->grad, false, q->c))) q->st = TP_EINTERNAL;
        if (!(q->in[i] = move(q->host, x, false, q->c))) q->st = TP_EINTERNAL;
    }
    if (q->c->status) q->st = q->c->status;
}

static run on_device(const tp_op *op, const tp_sample *s, tp_dtype dt, op_layout layout,
                     const tp_kernel *only) {
    run q = {0};
    if (open_device(&q, s, dt, layout, false)) return q;
    q.c->only_kernel = only;
    q.st = tp_op_run(q.c, op, s->attr, op_sample_nin(s), q.in, q.out);
    if (!q.st) q.st = tp_sync(q.c);
    if (!q.st) fetch(&q);
    return q;
}

/* The oracle in f64, on inputs that were rounded to dt. */
static run by_oracle(const tp_op *op, const tp_sample *s, tp_dtype dt, bool grad) {
    run q = {0};
    tp_ctx *c;
    tp_tensor *rounded[TP_MAXIN] = {0};
    if ((q.st = tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1, .seed = 5}))) return q;
    q.c = c;
    if ((q.st = op_inputs(c, s, TP_F64, OP_DENSE, grad, q.in))) return q;
    if (dt == TP_BF16 && !(q.st = op_inputs(c, s, TP_BF16, OP_DENSE, false, rounded)))
        for (int i = 0; i < op_sample_nin(s); i++)
            for (int64_t e = 0, n = q.in[i] && q.in[i]->dtype == TP_F64 ? tp_numel(q.in[i]) : 0;
                 e < n; e++)
                tp_set(q.in[i], e, tp_get(rounded[i], e));
    if (!q.st && grad) return q;
    if (!q.st) q.st = tp_op_run(c, op, s->attr, op_sample_nin(s), q.in, q.out);
    return q;
}

static const tp_tensor *result(const tp_op *op, const run *q, int i) {
    if (i < TP_MAXOUT) return q->out[i];
    i -= TP_MAXOUT;
    return i < TP_MAXIN && ((op->inplace >> i) & 1) ? q->in[i] : NULL;
}

/* Within tol; and the comparison notices one value that is wrong. */
static void compare(op_report *r, const tp_op *op, const tp_tensor *g, const tp_tensor *w,
                    double tol, const char *who, const char *what, int j) {
    double e = g ? op_error(g, w) : NAN;
    op_expect(r, e <= tol, op, "%s: %s %d is off by %.2e, more than %.0e", who, what, j, e, tol);
    if (e > r->worst_kernel && g->dtype == TP_F32) r->worst_kernel = e;
    int64_t n = tp_numel(w);
    if (!g || !n || !tp_is_float(g->dtype)) return;
    int64_t at = tp_offset(g, n / 2);
    double old = tp_get(g, at), top = 1e-6;
    for (int64_t i = 0; i < n; i++) top = fmax(top, fabs(tp_get(w, tp_offset(w, i))));
    if (!isfinite(top)) return;
    tp_set(g, at, old + (tol > 5e-3 ? BF16_WRONG : 0.01) * top);
    op_expect(r, !(op_error(g, w) <= tol), op, "%s: a wrong result was accepted", who);
    tp_set(g, at, old);
    r->mutants++;
}

static bool same_bits(const tp_tensor *x, const tp_tensor *y) {
    if (!x != !y) return false;
    size_t size = x ? tp_dtype_size(x->dtype) : 0;
    for (int64_t i = 0, n = x ? tp_numel(x) : 0; i < n; i++)
        if (memcmp((char *)x->data + (size_t)tp_offset(x, i) * size,
                   (char *)y->data + (size_t)tp_offset(y, i) * size, size))
            return false;
    return true;
}

static bool empty(const tp_sample *s) {
    for (int i = 0; i < op_sample_nin(s); i++)
        for (int d = 0; d < s->in[i].ndim; d++)
            if (!s->in[i].shape[d]) return true;
    return false;
}

/* Samples that fix a float's type themselves (f64 state) are the CPU's. */
static bool fixed_f64(const tp_sample *s) {
    for (int i = 0; i < op_sample_nin(s); i++)
        if (s->in[i].dtype == TP_F64) return true;
    return false;
}

static void check_kernel(op_report *r, const tp_op *op, const tp_sample *s, tp_dtype dt,
                         op_layout layout, const tp_kernel *only, const run *want, bool *taken) {
    static const char *const layouts[] = {"dense", "transposed", "sliced"};
    char who[128];
    snprintf(who, sizeof who, "%s, %s, %s", only ? only->name : op->name, tp_dtype_name(dt),
             layouts[layout]);
    run q = on_device(op, s, dt, layout, only);
    if (q.st == TP_ENOKERNEL) {
        run_free(&q);
        return;
    }
    *taken = true;
    op_expect(r, !q.st, op, "%s: %s%s", who, q.c ? tp_error(q.c) : "",
              q.host ? tp_error(q.host) : "");
    r->kernel_runs++;
    for (int j = 0; j < TP_MAXOUT + TP_MAXIN && !q.st; j++)
        if (result(op, want, j))
            compare(r, op, result(op, &q, j), result(op, want, j),
                    dt == TP_F32 ? tolerance(op, s) : BF16_TOL, who, "result", j);
    op_device_order(1);
    run again = on_device(op, s, dt, layout, only);
    op_device_order(0);
    for (int j = 0; j < TP_MAXOUT + TP_MAXIN && !q.st; j++)
        if (result(op, want, j))
            op_expect(r, same_bits(result(op, &q, j), result(op, &again, j)), op,
                      "%s: other bits when the threads run in another order", who);
    run_free(&again);
    run_free(&q);
}

void op_check_device(op_report *r, const tp_op *op, const tp_sample *s) {
    if (fixed_f64(s)) return;
    const tp_kernel *const *list = op->kernel[TP_CUDA];
    static const tp_dtype dts[] = {TP_F32, TP_BF16};
    for (int d = 0; d < 2; d++) {
        bool taken = false;
        run want = by_oracle(op, s, dts[d], false);
        op_expect(r, !want.st, op, "the oracle failed: %s", want.c ? tp_error(want.c) : "no ctx");
        for (int layout = 0; layout < OP_NLAYOUT && !want.st; layout++) {
            for (int i = 0; list && list[i]; i++)
                check_kernel(r, op, s, dts[d], layout, list[i], &want, &taken);
            if (op->view) check_kernel(r, op, s, dts[d], layout, NULL, &want, &taken);
            if (layout == OP_DENSE && (dts[d] == TP_F32 || !op_device_f32_only(op)))
                op_expect(r, taken || empty(s) || want.st, op, "no CUDA kernel takes it in %s",
                          tp_dtype_name(dts[d]));
        }
        run_free(&want);
    }
}

/* What infer refuses it refuses for every device; what a kernel finds comes out at the next sync.
 */
void op_check_device_refusal(op_report *r, const tp_op *op, const tp_sample *s) {
    run q = {0};
    if (!open_device(&q, s, TP_F32, OP_DENSE, true)) {
        q.st = tp_op_run(q.c, op, s->attr, op_sample_nin(s), q.in, q.out);
        if (!q.st) q.st = tp_sync(q.c);
        op_expect(r, q.st && strstr(tp_error(q.c), op->name), op,
                  "the device accepted what must be refused (\"%s\"): \"%s\"", s->refuse,
                  tp_error(q.c));
    }
    run_free(&q);
}

/* ---- gradients ------------------------------------------------------------------------------ */
/* From the same random dy on both sides; dy is rounded as dt asks. */
static tp_status walk_back(run *q, const tp_op *op, const tp_sample *s, tp_dtype dt) {
    tp_ctx *c = q->c;
    tp_tensor *out[TP_MAXOUT] = {0}, *y[TP_MAXOUT], *dy[TP_MAXOUT];
    tp_status st = tp_tape_on(c);
    if (!st) st = tp_op_run(c, op, s->attr, op_sample_nin(s), q->in, out);
    int n = 0;
    for (int j = 0; j < TP_MAXOUT && out[j] && !st; j++) {
        if (!out[j]->requires_grad) continue;
        y[n] = out[j];
        tp_ctx *h = q->host ? q->host : c;
        tp_tensor *d = tp_tensor_new(h, out[j]->dtype, out[j]->ndim, out[j]->shape);
        if (!d) return h->status;
        for (int64_t i = 0, m = tp_numel(d); i < m; i++) {
            float v = (float)tp_normal(17, TP_RNG_TEST, (uint64_t)j, (uint64_t)i);
            tp_set(d, i, dt == TP_BF16 ? tp_bf16_to_f32(tp_f32_to_bf16(v)) : v);
        }
        if (!(dy[n] = q->host ? move(c, d, true, NULL) : d)) return c->status;
        n++;
    }
    return st || !n ? st : tp_backward_from(c, n, y, dy);
}

void op_check_device_gradient(op_report *r, const tp_op *op, const tp_sample *s) {
    if (op->no_vjp || s->no_grad || fixed_f64(s)) return;
    static const tp_dtype dts[] = {TP_F32, TP_BF16};
    for (int d = 0; d < 2; d++) {
        if (dts[d] == TP_BF16 && op_device_f32_only(op)) continue;
        run want = by_oracle(op, s, dts[d], true);
        if (!want.st) want.st = walk_back(&want, op, s, dts[d]);
        op_expect(r, !want.st, op, "f64 gradient: %s", want.c ? tp_error(want.c) : "");
        for (int layout = 0; layout < OP_NLAYOUT && !want.st; layout++) {
            run got = {0};
            char who[64];
            snprintf(who, sizeof who, "gradient, %s, layout %d", tp_dtype_name(dts[d]), layout);
            if (!open_device(&got, s, dts[d], layout, true))
                got.st = walk_back(&got, op, s, dts[d]);
            if (!got.st) got.st = tp_sync(got.c);
            if (!got.st) fetch(&got);
            if (got.st == TP_ENOKERNEL && layout != OP_DENSE) {
                run_free(&got);
                continue;
            }
            op_expect(r, !got.st, op, "%s: %s", who, got.c ? tp_error(got.c) : "");
            for (int i = 0; i < op_sample_nin(s) && !got.st; i++)
                if (want.in[i] && want.in[i]->grad)
                    compare(r, op, got.grad[i], want.in[i]->grad,
                            dts[d] == TP_F32 ? 4 * tolerance(op, s) : BF16_TOL, who, "input", i);
            run_free(&got);
        }
        run_free(&want);
    }
}
