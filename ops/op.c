/* Owns the one road every op takes: infer, allocate, choose a kernel, run, record. */
#include "ops/op.h"
#include "core/ctx.h"
#include "ops/reference.h"
#include <stdio.h>
#include <string.h>

const tp_op *tp_op_find(const char *name) {
    for (int i = 0; tp_ops[i]; i++)
        if (!strcmp(tp_ops[i]->name, name)) return tp_ops[i];
    return NULL;
}

static tp_status check_inputs(tp_ctx *c, const tp_op *op, int nin, tp_tensor *const in[]) {
    TP_CHECK(c, nin <= TP_MAXIN);
    for (int i = 0; i < nin; i++) {
        if (!in[i] && !((op->optional >> i) & 1))
            return tp_fail(c, TP_EARG, "%s: input %d is missing", op->name, i);
        if (in[i] && in[i]->released)
            return tp_fail(
                c, TP_ESTATE,
                "%s: input %d was released when its scope or its step ended; keep it with "
                "tp_scope_close, or make it with tp_tensor_keep",
                op->name, i);
    }
    return TP_OK;
}

static const char *reason(const tp_call *k, const tp_kernel *kernel) {
    if (kernel->isa > k->ctx->isa)
        return kernel->isa == 4 ? "this CPU has no AVX-512" : "this CPU has no AVX2";
    return kernel->decline ? kernel->decline(k) : NULL;
}

/* The first kernel of the list that takes the call; the oracle closes the CPU's list. */
static tp_status choose(tp_call *k) {
    char why[512] = "";
    size_t n = 0;
    tp_ctx *c = k->ctx;
    const tp_kernel *const *list = k->op->kernel[c->device];
    for (int i = 0; list && list[i]; i++) {
        if (c->only_kernel && c->only_kernel != list[i]) continue;
        const char *no = reason(k, list[i]);
        if (!no) {
            k->kernel = list[i];
            return TP_OK;
        }
        int wrote = snprintf(why + n, sizeof why - n, "%s%s: %s", n ? "; " : "", list[i]->name, no);
        if (wrote > 0 && n + (size_t)wrote < sizeof why) n += (size_t)wrote;
    }
    if (c->device == TP_CPU && k->op->oracle &&
        (!c->only_kernel || c->only_kernel == &tp_reference_kernel)) {
        k->kernel = &tp_reference_kernel;
        return TP_OK;
    }
    return tp_fail(c, TP_ENOKERNEL, "%s: no kernel takes this call (%s)", k->op->name,
                   n ? why : "none is listed for this device");
}

static tp_status run_kernel(tp_call *k) {
    tp_ctx *c = k->ctx;
    tp_status st = choose(k);
    if (st) return st;
    size_t bytes = k->kernel->workspace ? k->kernel->workspace(k) : 0, at = 0;
    if (bytes && (st = tp_pool_take(c, bytes, &at, &k->workspace))) return st;
    if (!c->meta) st = k->kernel->run(k);
    if (bytes) tp_pool_give(c, at, bytes);
    k->workspace = NULL;
    for (int i = 0; i < k->nin; i++)
        if (k->in[i] && ((k->op->inplace >> i) & 1)) tp_touch(k->in[i]);
    return st ? st : c->status;
}

/* An op without a vjp passes the mark on too: whoever walks back through it is told why it cannot.
 */
static void mark_gradients(tp_call *k) {
    bool any = false;
    for (int i = 0; i < k->nin; i++) any |= k->in[i] && k->in[i]->requires_grad;
    for (int i = 0; i < k->nout; i++)
        k->out[i]->requires_grad = any && k->ctx->recording && tp_is_float(k->out[i]->dtype) &&
                                   !((k->op->aux_out >> i) & 1);
}

static const char *op_name(int which) { return tp_ops[which]->name; }

tp_status tp_op_run(tp_ctx *c, const tp_op *op, const void *attr, int nin, tp_tensor *const in[],
                    tp_tensor *out[]) {
    if (c->status) return c->status;
    c->op_name = op_name;
    tp_status st = check_inputs(c, op, nin, in);
    if (st) return st;
    tp_call k = {.ctx = c, .op = op, .nin = nin, .backward = c->backward};
    memcpy(k.in, in, (size_t)nin * sizeof *in);
    if (op->attr_bytes) {
        void *copy = tp_arena_alloc(c, op->attr_bytes);
        if (!copy) return c->status;
        if (attr) memcpy(copy, attr, op->attr_bytes);
        k.attr = copy;
    }
    if ((st = op->infer(&k))) return st;
    for (int i = 0; i < k.nout && !op->view; i++)
        if (!k.out[i]->storage && (st = tp_tensor_bytes(c, k.out[i]))) return st;
    if (!op->view && (st = run_kernel(&k))) return st;
    if (op->flops) c->flops += op->flops(&k);
    mark_gradients(&k);
    if (c->record && (st = c->record(c, &k))) return st;
    memcpy(out, k.out, (size_t)k.nout * sizeof *out);
    return TP_OK;
}

tp_tensor *tp_op1_(tp_ctx *c, const tp_op *op, const void *attr, int nin, tp_tensor *const in[]) {
    tp_tensor *out[TP_MAXOUT] = {0};
    return tp_op_run(c, op, attr, nin, in, out) ? NULL : out[0];
}

/* ---- infer's vocabulary --------------------------------------------------------------------- */
tp_status tp_out(tp_call *k, tp_dtype t, int ndim, const int64_t *shape) {
    TP_CHECK(k->ctx, k->nout < TP_MAXOUT);
    tp_tensor *o = tp_header_new(k->ctx, t, ndim, shape);
    if (!o) return k->ctx->status;
    k->out[k->nout++] = o;
    return TP_OK;
}

tp_status tp_out_like(tp_call *k, const tp_tensor *t) {
    return tp_out(k, t->dtype, t->ndim, t->shape);
}

tp_status tp_out_view(tp_call *k, tp_tensor *base) {
    TP_CHECK(k->ctx, k->nout < TP_MAXOUT);
    tp_tensor *o = tp_tensor_view(k->ctx, base);
    if (!o) return k->ctx->status;
    k->out[k->nout++] = o;
    return TP_OK;
}

tp_status tp_refuse(const tp_call *k, tp_status s, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return tp_fail(k->ctx, s, "%s: %s", k->op->name, text);
}

tp_status tp_need_float(const tp_call *k, int i, const char *arg) {
    if (!k->in[i] || tp_is_float(k->in[i]->dtype)) return TP_OK;
    return tp_refuse(k, TP_EDTYPE, "%s must be a float tensor, got %s", arg,
                     tp_dtype_name(k->in[i]->dtype));
}

tp_status tp_need_int(const tp_call *k, int i, const char *arg) {
    if (!k->in[i] || k->in[i]->dtype == TP_I32) return TP_OK;
    return tp_refuse(k, TP_EDTYPE, "%s must be i32, got %s", arg, tp_dtype_name(k->in[i]->dtype));
}

tp_status tp_need_ndim(const tp_call *k, int i, const char *arg, int lo, int hi) {
    const tp_tensor *t = k->in[i];
    if (!t || (t->ndim >= lo && t->ndim <= hi)) return TP_OK;
    if (lo == hi)
        return tp_refuse(k, TP_ESHAPE, "%s must have %d dimensions, got %s", arg, lo,
                         tp_shape_str(k->ctx, t));
    return tp_refuse(k, TP_ESHAPE, "%s must have %d to %d dimensions, got %s", arg, lo, hi,
                     tp_shape_str(k->ctx, t));
}

tp_status tp_need_softcap(const tp_call *k, double cap) {
    if (!cap || (cap >= 1e-30 && cap <= 1e30)) return TP_OK;
    return tp_refuse(k, TP_EARG, "softcap must be 0 (none) or 1e-30 to 1e30, got %g", cap);
}

tp_status tp_need_same(const tp_call *k, int i, int j, const char *args) {
    const tp_tensor *a = k->in[i], *b = k->in[j];
    if (!a || !b || (a->dtype == b->dtype && tp_same_shape(a, b))) return TP_OK;
    return tp_refuse(k, a->dtype == b->dtype ? TP_ESHAPE : TP_EDTYPE,
                     "%s must have the same shape and dtype, got %s and %s", args,
                     tp_shape_str(k->ctx, a), tp_shape_str(k->ctx, b));
}

/* ---- kernels' vocabulary -------------------------------------------------------------------- */
static const char *not_f32(const tp_tensor *t) {
    if (!t || !tp_is_float(t->dtype) || t->dtype == TP_F32) return NULL;
    return t->dtype == TP_F64 ? "f64 is the oracle's" : "bf16 is for storage on the CPU";
}

const char *tp_decline_unless_f32(const tp_call *k) {
    const char *no = NULL;
    for (int i = 0; i < k->nin && !no; i++) no = not_f32(k->in[i]);
    for (int i = 0; i < k->nout && !no; i++) no = not_f32(k->out[i]);
    return no;
}

const char *tp_decline_unless_f32_dense(const tp_call *k) {
    for (int i = 0; i < k->nin; i++)
        if (k->in[i] && !tp_contiguous(k->in[i])) return "an input is strided";
    return tp_decline_unless_f32(k);
}
