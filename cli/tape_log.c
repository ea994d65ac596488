/* Owns watching a step: who made what, what it held, what it took. */
#include "cli/tape.h"
#include "core/ctx.h"
#include "ops/route/route.h"
#include <math.h>
#include <string.h>

static bool room(tape_log *l, void *items, int *cap, int need, size_t size) {
    if (need <= *cap) return true;
    int wider = *cap ? 2 * *cap : 256;
    while (wider < need) wider *= 2;
    void *p;
    memcpy(&p, items, sizeof p);
    if (!(p = tp_realloc(l->c, p, (size_t)wider * size))) return false;
    memcpy(items, &p, sizeof p);
    *cap = wider;
    return true;
}

/* ---- values --------------------------------------------------------------------------------- */
static double value(const tp_tensor *t, int64_t at) {
    switch (t->dtype) {
    case TP_F32:
        return ((const float *)t->data)[at];
    case TP_F64:
        return ((const double *)t->data)[at];
    case TP_I32:
        return ((const int32_t *)t->data)[at];
    case TP_I64:
        return (double)((const int64_t *)t->data)[at];
    case TP_U8:
        return ((const uint8_t *)t->data)[at];
    default: /* bf16 does not come out of a step on the CPU */
        return NAN;
    }
}

/* Of element i in row-major order. */
static int64_t place(const tp_tensor *t, bool dense, int64_t i) {
    if (dense) return i;
    int64_t at = 0;
    for (int d = t->ndim - 1; d >= 0; d--) {
        at += i % t->shape[d] * t->stride[d];
        i /= t->shape[d];
    }
    return at;
}

static void measure(tape_values *v, const tp_tensor *t) {
    bool dense = tp_contiguous(t);
    double sum = 0, squares = 0;
    v->min = INFINITY;
    v->max = -INFINITY;
    for (int64_t i = 0; i < v->count; i++) {
        double x = value(t, place(t, dense, i));
        if (!isfinite(x)) {
            v->bad++;
            continue;
        }
        v->zeros += x == 0;
        v->min = fmin(v->min, x);
        v->max = fmax(v->max, x);
        sum += x;
    }
    double n = (double)(v->count - v->bad);
    if (!(n > 0)) v->min = v->max = 0;
    v->mean = n > 0 ? sum / n : 0;
    bool bins = v->rows * v->columns < v->count && v->max > v->min;
    double per = bins ? TAPE_BINS / (v->max - v->min) : 0;
    for (int64_t i = 0; i < v->count; i++) {
        double x = value(t, place(t, dense, i));
        if (!isfinite(x)) continue;
        squares += (x - v->mean) * (x - v->mean);
        int b = (int)((x - v->min) * per);
        if (bins) v->bin[b < TAPE_BINS ? b : TAPE_BINS - 1]++;
    }
    v->deviation = n > 0 ? sqrt(squares / n) : 0;
}

static bool same(const tape_values *a, const tape_values *b) {
    size_t n = (size_t)(a->rows * a->columns);
    return a->count == b->count && a->rows == b->rows && a->columns == b->columns &&
           a->min == b->min && a->max == b->max && a->mean == b->mean &&
           a->deviation == b->deviation && a->bad == b->bad &&
           !memcmp(a->kept, b->kept, n * sizeof *a->kept);
}

/* What t holds now; the values `last` if they are the same (a view, a gradient handed on). -1:
 * nothing is kept. */
static int values_of(tape_log *l, const tp_tensor *t, int last) {
    if (!l->keep || !t->data || l->c->status) return -1;
    tape_values v = {.count = tp_numel(t)};
    int64_t columns = t->ndim ? t->shape[t->ndim - 1] : 1, rows = columns ? v.count / columns : 0;
    bool whole = v.count <= l->whole;
    int most_rows = l->whole < TAPE_ROWS * TAPE_COLUMNS ? 2 : TAPE_ROWS;
    int most_columns = l->whole < TAPE_ROWS * TAPE_COLUMNS ? TAPE_COLUMNS / 2 : TAPE_COLUMNS;
    v.columns = (int)(whole || columns < most_columns ? columns : most_columns);
    v.rows = (int)(whole || rows < most_rows ? rows : most_rows);
    v.kept = tp_arena_alloc(l->c, (size_t)(v.rows * v.columns + 1) * sizeof *v.kept);
    if (!v.kept || !room(l, &l->values, &l->cap_values, l->n_values + 1, sizeof v)) return -1;
    bool dense = tp_contiguous(t);
    for (int r = 0; r < v.rows; r++)
        for (int i = 0; i < v.columns; i++)
            v.kept[r * v.columns + i] = value(t, place(t, dense, r * columns + i));
    measure(&v, t);
    if (last >= 0 && same(&v, &l->values[last])) return last;
    l->values[l->n_values] = v;
    return l->n_values++;
}

/* The newest values of a tensor. */
static int newest(const tape_log *l, int id) {
    return id > 0 && id <= l->n_tensors ? l->tensor[id].now : -1;
}

/* ---- tensors -------------------------------------------------------------------------------- */
/* A constant leaf with bytes that some call made, as tp_detach leaves it. */
static int original(const tape_log *l, const tp_tensor *t) {
    for (int i = l->n_tensors; i > 0 && !t->requires_grad; i--) {
        const tp_tensor *o = l->tensor[i].t;
        if (o && !o->released && o->storage == t->storage && o->data == t->data) return i;
    }
    return 0;
}

static void meet(tape_log *l, const tp_tensor *t, int made) {
    if (!t || t->id < 1 || l->c->status) return;
    if (!room(l, &l->tensor, &l->cap_tensors, t->id + 1, sizeof *l->tensor)) return;
    for (; l->n_tensors < t->id; l->n_tensors++)
        l->tensor[l->n_tensors + 1] = (tape_tensor){.made = -1, .first = -1, .now = -1};
    tape_tensor *x = &l->tensor[t->id];
    if (x->t) return;
    int like = made < 0 ? original(l, t) : 0;
    *x = (tape_tensor){.t = t,
                       .made = made,
                       .same_as = like,
                       .wanted = t->requires_grad,
                       .first = -1,
                       .now = -1,
                       .bytes = (size_t)tp_numel(t) * tp_dtype_size(t->dtype)};
    if (made >= 0) return;
    int first = values_of(l, t, like ? newest(l, like) : -1);
    l->tensor[t->id].first = l->tensor[t->id].now = first;
}

static void push(tape_log *l, tape_event **events, int *n, int *cap, tape_event e) {
    if (!l->c->status && room(l, events, cap, *n + 1, sizeof e)) (*events)[(*n)++] = e;
}

/* Call `at` has written t; a view has the values of what it looks at. */
static void wrote(tape_log *l, const tp_tensor *t, int at, int like) {
    if (!t || l->c->status) return;
    int v = values_of(l, t, newest(l, like));
    l->tensor[t->id].now = v;
    push(l, &l->write, &l->n_writes, &l->cap_writes, (tape_event){at, t->id, 0, v});
}

/* ---- routed blocks -------------------------------------------------------------------------- */
/* At most so many tokens of a block, whole sequences. */
enum { ROUTED = 16384 };

static void routed(tape_log *l, const tp_call *k) {
    const tp_tensor *score = k->in[0], *member = k->out[2];
    if (!l->keep || !room(l, &l->route, &l->cap_routes, l->n_routes + 1, sizeof *l->route)) return;
    int64_t B = score->shape[0], T = score->shape[1], most = T < ROUTED ? ROUTED / T : 1;
    tape_routes r = {.scope = k->scope, .B = B < most ? B : most, .T = T, .of = B};
    size_t n = (size_t)(r.B * r.T);
    r.taken = tp_arena_alloc(l->c, (n + 1) * sizeof *r.taken);
    r.score = tp_arena_alloc(l->c, (n + 1) * sizeof *r.score);
    for (size_t i = 0; i < n && r.taken && r.score; i++) {
        r.taken[i] = tp_i32(member)[i];
        r.score[i] = value(score, place(score, tp_contiguous(score), (int64_t)i));
    }
    if (!l->c->status) l->route[l->n_routes++] = r;
}

/* ---- the watch ------------------------------------------------------------------------------ */
static void saw_call(void *arg, const tp_call *k, int at, int of, bool saves) {
    tape_log *l = arg;
    char attrs[512];
    if (l->c->status || !room(l, &l->call, &l->cap_calls, at + 1, sizeof *l->call)) return;
    tape_call n = {.op = k->op,
                   .kernel = k->kernel ? k->kernel->name : "",
                   .scope = k->scope ? k->scope : "",
                   .nin = k->nin,
                   .nout = k->nout,
                   .of = of,
                   .backward = l->back,
                   .again = l->back && !k->backward,
                   .saved_in = saves ? k->op->saves_in : 0,
                   .saved_out = saves ? k->op->saves_out : 0,
                   .memory = tp_memory_used(l->c),
                   .high = tp_memory_peak(l->c),
                   .flops = k->op->flops ? k->op->flops(k) : 0};
    if (n.high > l->peak) l->peak = n.high;
    tp_pool_forget_peak(l->c);
    tp_call_attrs(k, attrs, sizeof attrs);
    n.attrs = tp_arena_printf(l->c, "%s", attrs);
    for (int i = 0; i < k->nin; i++) {
        n.in[i] = k->in[i] ? k->in[i]->id : 0;
        meet(l, k->in[i], -1);
    }
    for (int i = 0; i < k->nout; i++) {
        n.out[i] = k->out[i]->id;
        meet(l, k->out[i], at);
        wrote(l, k->out[i], at, k->op->view ? n.in[0] : 0);
    }
    for (int i = 0; i < k->nin; i++)
        if (k->in[i] && ((k->op->inplace >> i) & 1)) wrote(l, k->in[i], at, 0);
    if (!strcmp(k->op->name, "route") && !l->back) routed(l, k);
    if (l->c->status) return;
    l->call[at] = n;
    l->n_calls = at + 1;
}

static void saw_grad(void *arg, const tp_tensor *t, const tp_tensor *sum) {
    tape_log *l = arg;
    int v = values_of(l, sum, newest(l, sum->id));
    push(l, &l->grad, &l->n_grads, &l->cap_grads, (tape_event){l->n_calls - 1, t->id, sum->id, v});
}

/* ---- a step --------------------------------------------------------------------------------- */
tp_status tape_log_step(tape_log *l, tp_trainer *t, const tp_batch *b, int64_t targets) {
    tp_ctx *c = l->c = t->c;
    l->watch = (tp_tape_watch){l, saw_call, saw_grad};
    l->at_rest = tp_memory_used(c);
    l->loss = NAN;
    tp_pool_forget_peak(c);
    tp_rng_at(c, 0, (uint64_t)b->sample);
    tp_status st = tp_tape_on(c);
    if (!st) st = tp_tape_trace(c, true);
    if (st) return st;
    tp_tape_watch_by(c, &l->watch);
    tp_model_out y = tp_trainer_loss(t, b, targets);
    if (y.loss && y.loss->data) l->loss = value(y.loss, 0);
    tp_tensor *roots[] = {y.loss, y.aux};
    l->back = true;
    if (y.loss) tp_backward_from(c, y.aux ? 2 : 1, roots, NULL);
    return tp_error_status(c);
}

void tape_log_free(tape_log *l) {
    tp_free(l->call);
    tp_free(l->tensor);
    tp_free(l->values);
    tp_free(l->write);
    tp_free(l->grad);
    tp_free(l->route);
    *l = (tape_log){0};
}

int tape_block(const char *scope) {
    const char *dot = strchr(scope, '.');
    return (int)(dot ? dot - scope : (long)strlen(scope));
}
