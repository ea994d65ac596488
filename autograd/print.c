/* Owns the printed tape:
 *   %6   f32[2,4] = gelu(%5)               ; y = x*Phi(x)               blk0.mlp.act
 *   %10  f32[2,4] = gelu_backward(%5, %8)  ; dx = dy*(Phi(x)+x*phi(x))  blk0.mlp.act  (backward) */
#include "autograd/tape.h"
#include <stdio.h>
#include <string.h>

typedef struct text {
    char s[1024];
    size_t n;
} text;

static void put(text *t, const char *fmt, ...) TP_PRINTF(2, 3);
static void put(text *t, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(t->s + t->n, sizeof t->s - t->n, fmt, ap);
    va_end(ap);
    if (n > 0) t->n = t->n + (size_t)n < sizeof t->s ? t->n + (size_t)n : sizeof t->s - 1;
}

static void pad(text *t, size_t column) {
    do put(t, " ");
    while (t->n < column);
}

static void put_shape(text *t, const tp_tensor *x) {
    put(t, "%s[", tp_dtype_name(x->dtype));
    for (int i = 0; i < x->ndim; i++) put(t, "%s%lld", i ? "," : "", (long long)x->shape[i]);
    put(t, "]");
}

static void put_attrs(text *t, const tp_call *k) {
    const char *comma = "";
    for (const tp_attr *a = k->op->attrs; a && a->type != TP_ATTR_END; a++) {
        const char *at = (const char *)k->attr + a->offset;
        size_t before = t->n;
        switch (a->type) {
        case TP_ATTR_BOOL: {
            bool v;
            memcpy(&v, at, sizeof v);
            if (v) put(t, "%s%s", comma, a->name);
            break;
        }
        case TP_ATTR_INT: {
            int v;
            memcpy(&v, at, sizeof v);
            if (v) put(t, "%s%s=%d", comma, a->name, v);
            break;
        }
        case TP_ATTR_I64: {
            int64_t v;
            memcpy(&v, at, sizeof v);
            if (v) put(t, "%s%s=%lld", comma, a->name, (long long)v);
            break;
        }
        case TP_ATTR_FLOAT: {
            double v;
            memcpy(&v, at, sizeof v);
            if (v != 0) put(t, "%s%s=%g", comma, a->name, v);
            break;
        }
        default:
            break;
        }
        if (t->n > before) comma = ", ";
    }
}

static void print_leaf(const tp_tensor *x, void (*line)(void *, const char *), void *arg) {
    text t = {.n = 0};
    put(&t, "%%%d", x->id);
    pad(&t, 6);
    put_shape(&t, x);
    put(&t, " = %s", x->requires_grad ? "parameter" : "input");
    if (x->name) put(&t, " %s", x->name);
    line(arg, t.s);
}

static void print_call(const tp_call *k, void (*line)(void *, const char *), void *arg) {
    text t = {.n = 0};
    for (int i = 0; i < k->nout; i++) put(&t, "%s%%%d", i ? "," : "", k->out[i]->id);
    for (int i = 0; i < k->nin; i++) /* changed in place: a result without a number of its own */
        if (k->in[i] && ((k->op->inplace >> i) & 1)) put(&t, "%%%d", k->in[i]->id);
    pad(&t, 6);
    for (int i = 0; i < k->nout; i++) {
        put(&t, "%s", i ? "," : "");
        put_shape(&t, k->out[i]);
    }
    for (int i = 0; i < k->nin; i++)
        if (k->in[i] && ((k->op->inplace >> i) & 1)) put_shape(&t, k->in[i]);
    put(&t, " = %s(", k->op->name);
    for (int i = 0; i < k->nin; i++) {
        put(&t, "%s", i ? ", " : "");
        if (k->in[i])
            put(&t, "%%%d", k->in[i]->id);
        else
            put(&t, "-");
    }
    char attrs[512];
    tp_call_attrs(k, attrs, sizeof attrs);
    put(&t, "%s%s)", k->nin && *attrs ? ", " : "", attrs);
    pad(&t, 58);
    put(&t, "; %s", k->op->synopsis);
    if (k->scope && *k->scope) {
        pad(&t, 100);
        put(&t, "%s", k->scope);
    }
    if (k->backward) put(&t, "  (backward)");
    line(arg, t.s);
}

void tp_call_attrs(const tp_call *k, char *out, size_t cap) {
    text t = {.n = 0};
    put_attrs(&t, k);
    snprintf(out, cap, "%s", t.s);
}

void tp_tape_print(tp_ctx *c, void (*line)(void *arg, const char *text), void *arg) {
    tp_tape *tape = c->tape;
    if (!tape) return;
    int leaf = 0; /* numbered leaves come in the order in which calls first read them */
    for (int at = 0; at < tape->n; at++) {
        const tp_call *k = &tape->node[at].call;
        for (int i = 0; i < k->nin && leaf < tape->nnumbered; i++)
            if (k->in[i] == tape->numbered[leaf]) print_leaf(tape->numbered[leaf++], line, arg);
        print_call(k, line, arg);
    }
}
