/* Owns the checks of kernels: against the oracle, against each other, and across threads. */
#include "opcheck.h"
#include "core/ctx.h"
#include "ops/convert.h"
#include "ops/reference.h"
#include <math.h>
#include <string.h>

static double tolerance(const tp_op *op, const tp_sample *s) {
    return s->tol ? s->tol : op->tol ? op->tol : 1e-5;
}

typedef struct op_run {
    tp_ctx *c;
    tp_tensor *in[TP_MAXIN], *out[TP_MAXOUT];
    tp_status st;
} op_run;

static op_run run_with(const tp_op *op, const tp_sample *s, tp_dtype dt, op_layout layout,
                       const tp_kernel *only, int threads) {
    op_run q = {0};
    if ((q.st = tp_ctx_new(&q.c, &(tp_ctx_opts){.threads = threads, .seed = 5}))) return q;
    q.st = op_inputs(q.c, s, dt, layout, false, q.in);
    q.c->only_kernel = only;
    if (!q.st) q.st = tp_op_run(q.c, op, s->attr, op_sample_nin(s), q.in, q.out);
    return q;
}

/* In-place ops answer through their inputs. */
static const tp_tensor *result(const tp_op *op, const op_run *q, int i) {
    if (i < TP_MAXOUT) return q->out[i];
    i -= TP_MAXOUT;
    return i < TP_MAXIN && ((op->inplace >> i) & 1) ? q->in[i] : NULL;
}

static void compare(op_report *r, const tp_op *op, const tp_sample *s, const op_run *got,
                    const op_run *want, double tol, const char *who) {
    for (int j = 0; j < TP_MAXOUT + TP_MAXIN; j++) {
        const tp_tensor *g = result(op, got, j), *w = result(op, want, j);
        if (!w) continue;
        double e = g ? op_error(g, w) : NAN;
        op_expect(r, e <= tol, op, "%s: result %d is off by %.2e, more than %.0e", who, j, e, tol);
        if (e > r->worst_kernel) r->worst_kernel = e;
        /* and the comparison itself must notice one wrong value */
        int64_t n = tp_numel(w);
        if (!g || !n || !tp_is_float(g->dtype) || tol > 1e-3) continue;
        int64_t at = tp_offset(g, n / 2);
        double old = tp_get(g, at), top = 1e-6;
        for (int64_t i = 0; i < n; i++) top = fmax(top, fabs(tp_get(w, tp_offset(w, i))));
        if (!isfinite(top)) continue;
        tp_set(g, at, old + 0.01 * top);
        op_expect(r, !(op_error(g, w) <= tol), op, "%s: a result wrong by 1 %% was accepted", who);
        tp_set(g, at, old);
        r->mutants++;
    }
    (void)s;
}

static bool same_bits(const tp_op *op, const op_run *a, const op_run *b) {
    for (int j = 0; j < TP_MAXOUT + TP_MAXIN; j++) {
        const tp_tensor *x = result(op, a, j), *y = result(op, b, j);
        if (!x != !y) return false;
        if (!x) continue;
        size_t size = tp_dtype_size(x->dtype);
        for (int64_t i = 0, n = tp_numel(x); i < n; i++)
            if (memcmp((char *)x->data + (size_t)tp_offset(x, i) * size,
                       (char *)y->data + (size_t)tp_offset(y, i) * size, size))
                return false;
    }
    return true;
}

/* Kernels may leave calls without work to the reference. */
static bool empty(const tp_sample *s) {
    for (int i = 0; i < op_sample_nin(s); i++)
        for (int d = 0; d < s->in[i].ndim; d++)
            if (!s->in[i].shape[d]) return true;
    return false;
}

void op_check_kernels(op_report *r, const tp_op *op, const tp_sample *s) {
    static const char *const layouts[] = {"dense", "transposed", "sliced"};
    op_run want = run_with(op, s, TP_F64, OP_DENSE, NULL, 1);
    op_expect(r, !want.st, op, "the oracle failed: %s", want.c ? tp_error(want.c) : "no ctx");
    const tp_kernel *const *list = op->kernel[TP_CPU];
    for (int layout = 0; layout < OP_NLAYOUT && !want.st; layout++) {
        bool taken = !list || op->view;
        op_run first = {0};
        const char *first_name = NULL;
        for (int i = 0; list && list[i]; i++) {
            op_run q = run_with(op, s, TP_F32, layout, list[i], 2);
            if (q.st == TP_ENOKERNEL) {
                tp_ctx_free(q.c);
                continue;
            }
            taken = true;
            op_expect(r, !q.st, op, "%s: %s", list[i]->name, q.c ? tp_error(q.c) : "no ctx");
            r->kernel_runs++;
            if (!q.st) compare(r, op, s, &q, &want, tolerance(op, s), list[i]->name);
            if (first.c && !strcmp(first_name, list[i]->name)) {
                op_expect(r, same_bits(op, &first, &q), op,
                          "%s gives other bits on another instruction set", list[i]->name);
                tp_ctx_free(q.c);
                continue;
            }
            tp_ctx_free(first.c);
            first = q;
            first_name = list[i]->name;
        }
        op_expect(r, taken || layout != OP_DENSE || empty(s), op, "no fast kernel takes it %s",
                  layouts[layout]);
        tp_ctx_free(first.c);
        op_run ref = run_with(op, s, TP_F32, layout, op->view ? NULL : &tp_reference_kernel, 1);
        op_expect(r, !ref.st, op, "reference, %s: %s", layouts[layout],
                  ref.c ? tp_error(ref.c) : "no ctx");
        if (!ref.st) compare(r, op, s, &ref, &want, 1e-6, "reference");
        r->kernel_runs++;
        tp_ctx_free(ref.c);
    }
    tp_ctx_free(want.c);
}

void op_check_bf16(op_report *r, const tp_op *op, const tp_sample *s) {
    /* the oracle on inputs rounded to bf16: the result may differ by one rounding to bf16 */
    op_run q = run_with(op, s, TP_BF16, OP_DENSE, NULL, 1);
    op_expect(r, !q.st, op, "bf16: %s", q.c ? tp_error(q.c) : "no ctx");
    for (int j = 0; j < TP_MAXOUT && !q.st && q.out[j]; j++)
        for (int64_t i = 0, n = tp_numel(q.out[j]); i < n; i++)
            op_expect(r, !isnan(tp_get(q.out[j], i)) || q.out[j]->dtype != TP_BF16, op,
                      "bf16: output %d has a NaN", j);
    tp_ctx_free(q.c);
}

/* ---- gradients in f32 ----------------------------------------------------------------------- */
static bool gradients(op_report *r, const tp_op *op, const tp_sample *s, tp_dtype dt,
                      op_layout layout, int threads, op_run *q) {
    *q = (op_run){0};
    if (tp_ctx_new(&q->c, &(tp_ctx_opts){.threads = threads, .seed = 5})) return false;
    tp_ctx *c = q->c;
    tp_status st = op_inputs(c, s, dt, layout, true, q->in);
    if (!st) st = tp_tape_on(c);
    tp_tensor *out[TP_MAXOUT] = {0}, *y[TP_MAXOUT], *dy[TP_MAXOUT];
    if (!st) st = tp_op_run(c, op, s->attr, op_sample_nin(s), q->in, out);
    int n = 0;
    for (int j = 0; j < TP_MAXOUT && out[j] && !st; j++) {
        if (!out[j]->requires_grad) continue;
        y[n] = out[j];
        if (!(dy[n] = tp_tensor_new(c, out[j]->dtype, out[j]->ndim, out[j]->shape))) st = c->status;
        for (int64_t i = 0, m = tp_numel(out[j]); i < m && !st; i++)
            tp_set(dy[n], i, (float)tp_normal(17, TP_RNG_TEST, (uint64_t)j, (uint64_t)i));
        n++;
    }
    if (!st && n) st = tp_backward_from(c, n, y, dy);
    op_expect(r, !st, op, "%s gradient: %s", tp_dtype_name(dt), tp_error(c));
    return !st && n;
}

static bool has_gradient(const tp_op *op, const tp_sample *s) { return !op->no_vjp && !s->no_grad; }

void op_check_f32_gradient(op_report *r, const tp_op *op, const tp_sample *s) {
    if (!has_gradient(op, s)) return;
    op_run want, got;
    bool ok = gradients(r, op, s, TP_F64, OP_DENSE, 1, &want);
    for (int layout = 0; layout < OP_NLAYOUT && ok; layout++) {
        bool got_ok = gradients(r, op, s, TP_F32, layout, 2, &got);
        for (int i = 0; i < op_sample_nin(s) && got_ok; i++) {
            if (!want.in[i] || !want.in[i]->grad) continue;
            double e = got.in[i]->grad ? op_error(got.in[i]->grad, want.in[i]->grad) : NAN;
            op_expect(r, e <= 4 * tolerance(op, s), op,
                      "f32 gradient of input %d (layout %d) is off by %.2e from the f64 one", i,
                      layout, e);
        }
        tp_ctx_free(got.c);
    }
    tp_ctx_free(want.c);
}

static bool same_tensor_bits(const tp_tensor *a, const tp_tensor *b) {
    if (!a != !b) return false;
    return !a || !a->data ||
           !memcmp(a->data, b->data, (size_t)tp_numel(a) * tp_dtype_size(a->dtype));
}

void op_check_threads(op_report *r, const tp_op *op, const tp_sample *s) {
    for (int threads = 2; threads <= 3; threads++) {
        op_run one = run_with(op, s, TP_F32, OP_DENSE, NULL, 1);
        op_run many = run_with(op, s, TP_F32, OP_DENSE, NULL, threads);
        op_expect(r, one.st == many.st && (one.st || same_bits(op, &one, &many)), op,
                  "%d threads give other bits than one", threads);
        tp_ctx_free(one.c);
        tp_ctx_free(many.c);
        if (!has_gradient(op, s)) continue;
        bool a = gradients(r, op, s, TP_F32, OP_DENSE, 1, &one);
        bool b = gradients(r, op, s, TP_F32, OP_DENSE, threads, &many);
        for (int i = 0; i < op_sample_nin(s) && a && b; i++)
            if (one.in[i])
                op_expect(r, same_tensor_bits(one.in[i]->grad, many.in[i]->grad), op,
                          "%d threads give other gradient bits for input %d", threads, i);
        tp_ctx_free(one.c);
        tp_ctx_free(many.c);
    }
}
