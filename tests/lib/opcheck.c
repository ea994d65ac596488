/* Owns inputs made from samples, gradient checks, and the checks that need no kernel list. */
#include "opcheck.h"
#include "core/ctx.h"
#include "ops/convert.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static const double GRAD_TOL = 1e-6;

void op_expect(op_report *r, bool ok, const tp_op *op, const char *fmt, ...) {
    r->checks++;
    if (ok) return;
    r->failed++;
    fprintf(stderr, "FAILED %s, sample \"%s\": ", op->name, r->sample ? r->sample : "-");
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

/* ---- inputs --------------------------------------------------------------------------------- */
int op_sample_nin(const tp_sample *s) {
    int n = 0;
    while (n < TP_MAXIN && s->in[n].gen != TP_GEN_END) n++;
    return n;
}

static bool is_float_arg(const tp_arg *a) {
    return a->gen != TP_GEN_INT && a->gen != TP_GEN_DATA && tp_is_float(a->dtype);
}

static double sample_value(const tp_arg *a, int which, int64_t i, int64_t n) {
    uint64_t at = (uint64_t)i, w = (uint64_t)which;
    switch (a->gen) {
    case TP_GEN_NORMAL:
        return a->lo + (a->hi == 0 ? 1 : a->hi) * tp_normal(3, TP_RNG_TEST, w, at);
    case TP_GEN_UNIFORM:
        return a->lo + (a->hi - a->lo) * tp_uniform(3, TP_RNG_TEST, w, at);
    case TP_GEN_INT:
        return floor(a->lo + (a->hi - a->lo) * tp_uniform(3, TP_RNG_TEST, w, at));
    case TP_GEN_DISTINCT: { /* i*step mod n with step coprime to n is a permutation */
        int64_t step = n / 2 + 1, x, y;
        for (;; step++) {
            for (x = step, y = n; y;) {
                int64_t t = x % y;
                x = y;
                y = t;
            }
            if (x == 1 || n <= 1) break;
        }
        double lo = a->lo, hi = a->hi == a->lo ? a->lo + 1 : a->hi;
        return lo + (hi - lo) * (double)(i * step % n) / (double)n;
    }
    case TP_GEN_DATA:
        return a->data[i];
    default:
        return 0;
    }
}

/* TRANSPOSED: the storage's dimensions run the other way. SLICED: rows lie 3 elements further apart
 * and start 2 in. */
static tp_tensor *make(tp_ctx *c, tp_dtype dt, const tp_arg *a, op_layout layout) {
    int64_t shape[TP_MAXDIM] = {0};
    int nd = a->ndim;
    for (int i = 0; i < nd; i++) shape[i] = a->shape[layout == OP_TRANSPOSED ? nd - 1 - i : i];
    if (layout == OP_SLICED && nd) shape[nd - 1] += 3;
    tp_tensor *t = tp_tensor_keep(c, dt, nd, shape);
    if (!t || layout == OP_DENSE || !nd) return t;
    memcpy(t->shape, a->shape, sizeof t->shape);
    if (layout == OP_TRANSPOSED)
        for (int i = 0; i < nd / 2; i++) {
            int64_t swap = t->stride[i];
            t->stride[i] = t->stride[nd - 1 - i];
            t->stride[nd - 1 - i] = swap;
        }
    else if (t->data)
        t->data = (char *)t->data + 2 * tp_dtype_size(dt);
    return t;
}

tp_status op_inputs(tp_ctx *c, const tp_sample *s, tp_dtype dt, op_layout layout, bool grad,
                    tp_tensor *in[TP_MAXIN]) {
    for (int w = 0, nin = op_sample_nin(s); w < nin; w++) {
        const tp_arg *a = &s->in[w];
        in[w] = NULL;
        if (a->gen == TP_GEN_ABSENT) continue;
        bool fl = is_float_arg(a);
        tp_dtype t = fl ? (a->dtype ? a->dtype : dt) : a->dtype ? a->dtype : TP_I32;
        /* integers keep the dense layout: index tensors are small and made dense */
        if (!(in[w] = make(c, t, a, fl ? layout : OP_DENSE))) return c->status;
        in[w]->requires_grad = grad && fl;
        if (c->meta) continue;
        for (int64_t i = 0, n = tp_numel(in[w]); i < n; i++) {
            double v = sample_value(a, w, i, n);
            if (fl) v = dt == TP_BF16 ? tp_bf16_to_f32(tp_f32_to_bf16((float)v)) : (float)v;
            tp_set(in[w], tp_offset(in[w], i), v);
        }
    }
    return TP_OK;
}

double op_error(const tp_tensor *got, const tp_tensor *want) {
    double worst = 0, scale = 1e-6;
    if (!tp_same_shape(got, want)) return NAN;
    for (int64_t i = 0, n = tp_numel(want); i < n; i++) {
        double w = tp_get(want, tp_offset(want, i)), g = tp_get(got, tp_offset(got, i));
        if (isfinite(w)) scale = fmax(scale, fabs(w));
        if (g == w) continue; /* also equal infinities */
        double e = fabs(g - w);
        if (!(e <= worst)) worst = e;
        if (isnan(worst)) return NAN;
    }
    return worst / scale;
}

/* ---- the op as a function, and its mutant --------------------------------------------------- */
typedef struct op_fn {
    const tp_op *op;
    const tp_sample *s;
} op_fn;

/* Everything but the results is released, so a vjp that reads what it does not save is refused. */
static tp_status run_op(tp_ctx *c, void *arg, tp_tensor *const in[], int nin,
                        tp_tensor *out[TP_MAXOUT], int *nout) {
    const op_fn *f = arg;
    memset(out, 0, TP_MAXOUT * sizeof *out);
    tp_tensor *copy[TP_MAXIN] = {0};
    tp_scope sc = tp_scope_open(c, "%s", "");
    for (int i = 0; i < nin; i++) copy[i] = in[i];
    tp_status st = tp_op_run(c, f->op, f->s->attr, nin, copy, out);
    tp_scope_close_n(c, sc, out, TP_MAXOUT);
    *nout = 0;
    while (*nout < TP_MAXOUT && out[*nout]) ++*nout;
    return st;
}

static const tp_op *mutated; /* the op whose vjp mutant_vjp spoils */

static void mutant_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    mutated->vjp(k, dout, din);
    for (int i = 0; i < k->nin; i++) {
        if (!din[i]) continue;
        tp_tensor *t = tp_tensor_new(k->ctx, din[i]->dtype, din[i]->ndim, din[i]->shape);
        if (!t) return;
        for (int64_t e = 0, n = tp_numel(t); e < n; e++)
            tp_set(t, e, 1.01 * tp_get(din[i], tp_offset(din[i], e)));
        din[i] = t;
    }
}

/* The gradient as a function of the inputs: what second order differentiates. */
static tp_status run_gradient(tp_ctx *c, void *arg, tp_tensor *const in[], int nin,
                              tp_tensor *out[TP_MAXOUT], int *nout) {
    tp_tensor *y[TP_MAXOUT] = {0}, *x[TP_MAXIN], *dx[TP_MAXIN];
    int ny = 0, nx = 0;
    tp_status st = tp_op_run(c, ((op_fn *)arg)->op, ((op_fn *)arg)->s->attr, nin, in, y);
    while (ny < TP_MAXOUT && y[ny]) ny++;
    *nout = 0;
    for (int i = 0; i < nin; i++)
        if (in[i] && in[i]->requires_grad) x[nx++] = in[i];
    for (int j = 0; j < ny && !st; j++) {
        if (!y[j]->requires_grad) continue;
        tp_tensor *dy = tp_tensor_new(c, y[j]->dtype, y[j]->ndim, y[j]->shape);
        if (!dy) return c->status;
        for (int64_t i = 0, n = tp_numel(dy); i < n; i++)
            tp_set(dy, i, tp_normal(13, TP_RNG_TEST, (uint64_t)j, (uint64_t)i));
        st = tp_grad(c, y[j], dy, nx, x, dx, &(tp_grad_opts){.create_graph = true});
        for (int i = 0; i < nx && !st; i++)
            if (dx[i] && *nout < TP_MAXOUT) out[(*nout)++] = dx[i];
    }
    return st;
}

static bool differentiable(const tp_op *op, const tp_sample *s) {
    if (op->no_vjp || s->no_grad) return false;
    for (int i = 0; i < op_sample_nin(s); i++)
        if (s->in[i].gen != TP_GEN_ABSENT && is_float_arg(&s->in[i])) return true;
    return false;
}

void op_check_gradient(op_report *r, const tp_op *op, const tp_sample *s) {
    if (!differentiable(op, s)) return;
    tp_ctx *c;
    tp_tensor *in[TP_MAXIN];
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1, .seed = 5})) return;
    op_fn f = {op, s};
    tp_gradcheck_result g = {0};
    int nin = op_sample_nin(s);
    op_inputs(c, s, TP_F64, OP_DENSE, true, in);
    tp_status st = tp_gradcheck(c, run_op, &f, in, nin, &g);
    op_expect(r, !st && g.worst <= GRAD_TOL, op, "gradient of input %d is off by %.2e (%s)",
              g.input, g.worst, tp_error(c));
    r->derivatives += g.checked;
    r->worst_derivative = fmax(r->worst_derivative, g.worst);
    if (g.largest > 1e-2) { /* else there is no gradient to spoil */
        tp_op mutant = *op;
        mutant.vjp = mutant_vjp;
        mutated = op;
        f.op = &mutant;
        tp_gradcheck_result m = {0};
        st = tp_gradcheck(c, run_op, &f, in, nin, &m);
        op_expect(r, !st && !(m.worst <= GRAD_TOL), op, "the vjp times 1.01 was accepted");
        r->mutants++;
        f.op = op;
    }
    tp_gradcheck_result g2 = {0};
    st = tp_gradcheck(c, run_gradient, &f, in, nin, &g2);
    bool offered = !(st == TP_ESTATE && strstr(tp_error(c), "no gradient goes through it"));
    if (offered) {
        op_expect(r, !st && g2.worst <= GRAD_TOL, op, "second order: input %d is off by %.2e (%s)",
                  g2.input, g2.worst, tp_error(c));
        r->second_order += g2.largest > 0;
        r->derivatives += g2.checked;
    }
    tp_ctx_free(c);
}

/* ---- rows, refusals ------------------------------------------------------------------------- */
void op_check_row(op_report *r, const tp_op *op) {
    op_expect(r, !op->vjp != !op->no_vjp, op, "exactly one of vjp and no_vjp must be set");
    op_expect(r, op->synopsis && op->doc && op->infer, op, "synopsis, doc and infer are needed");
    op_expect(r, op->samples && op->samples->name, op, "an op without samples is not tested");
    op_expect(r, op->oracle || op->view, op, "an op needs an oracle");
    bool refusal = false;
    for (const tp_sample *s = op->samples; s && s->name; s++) refusal |= s->refuse != NULL;
    op_expect(r, refusal, op, "no sample shows what is refused");
}

void op_check_refusal(op_report *r, const tp_op *op, const tp_sample *s) {
    tp_ctx *c;
    tp_tensor *in[TP_MAXIN], *out[TP_MAXOUT] = {0};
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1, .seed = 5})) return;
    tp_tape_on(c);
    op_inputs(c, s, TP_F32, OP_DENSE, true, in);
    tp_status st = tp_op_run(c, op, s->attr, op_sample_nin(s), in, out);
    op_expect(r, st && strstr(tp_error(c), s->refuse) && strstr(tp_error(c), op->name), op,
              "wanted a refusal saying \"%s\", got %d: \"%s\"", s->refuse, st, tp_error(c));
    op_expect(r, !out[0] && !tp_tape_length(c), op, "a refused call left something behind");
    tp_ctx_free(c);
}

/* ---- META, allocation failures -------------------------------------------------------------- */
static tp_status forward_backward(tp_ctx *c, const tp_op *op, const tp_sample *s, tp_tensor *in[],
                                  tp_tensor *out[TP_MAXOUT]) {
    memset(out, 0, TP_MAXOUT * sizeof *out);
    tp_status st = op_inputs(c, s, TP_F32, OP_DENSE, true, in);
    if (!st) st = tp_tape_on(c);
    if (!st) st = tp_op_run(c, op, s->attr, op_sample_nin(s), in, out);
    if (st || !differentiable(op, s)) return st;
    tp_tensor *y[TP_MAXOUT], *dy[TP_MAXOUT];
    int n = 0;
    for (int j = 0; j < TP_MAXOUT && out[j]; j++) {
        if (!out[j]->requires_grad) continue;
        y[n] = out[j];
        if (!(dy[n] = tp_tensor_new(c, out[j]->dtype, out[j]->ndim, out[j]->shape)))
            return c->status;
        for (int64_t i = 0, m = tp_numel(dy[n]); i < m && !c->meta; i++)
            tp_set(dy[n], i, (float)tp_normal(17, TP_RNG_TEST, (uint64_t)j, (uint64_t)i));
        n++;
    }
    return n ? tp_backward_from(c, n, y, dy) : TP_OK;
}

void op_check_meta(op_report *r, const tp_op *op, const tp_sample *s) {
    tp_ctx *c, *m;
    tp_tensor *in[TP_MAXIN], *out[TP_MAXOUT], *min[TP_MAXIN], *mout[TP_MAXOUT];
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 2, .seed = 5})) return;
    if (tp_ctx_new(&m, &(tp_ctx_opts){.threads = 2, .seed = 5, .meta = true})) {
        tp_ctx_free(c);
        return;
    }
    tp_status st = forward_backward(c, op, s, in, out), mst = forward_backward(m, op, s, min, mout);
    op_expect(r, st == mst, op, "META answers %s, the CPU %s (%s%s)", tp_status_name(mst),
              tp_status_name(st), tp_error(m), tp_error(c));
    for (int j = 0; j < TP_MAXOUT && !st && !mst && out[j]; j++)
        op_expect(r, mout[j] && tp_same_shape(out[j], mout[j]) && !mout[j]->storage->base, op,
                  "META disagrees about output %d", j);
    op_expect(r, tp_memory_peak(c) == tp_memory_peak(m), op,
              "META predicts a peak of %zu, it was %zu", tp_memory_peak(m), tp_memory_peak(c));
    tp_ctx_free(c);
    tp_ctx_free(m);
}

void op_check_oom(op_report *r, const tp_op *op, const tp_sample *s) {
    for (long at = 1;; at++) {
        tp_ctx *c;
        tp_tensor *in[TP_MAXIN], *out[TP_MAXOUT];
        if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1, .seed = 5, .fail_alloc_at = at})) return;
        tp_status st = forward_backward(c, op, s, in, out);
        bool struck = c->fail_alloc_at == 0;
        if (struck)
            op_expect(r, st == TP_ENOMEM && strstr(tp_error(c), "out of memory"), op,
                      "allocation %ld failed, the call answered %s: \"%s\"", at, tp_status_name(st),
                      tp_error(c));
        tp_ctx_free(c);
        if (!struck) break;
        r->oom++;
    }
}
