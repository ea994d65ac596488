/* optim: AdamW, SGD and Muon against independent computations in double; schedules against closed
 * forms; clipping, bad gradients, state, META and failing allocations. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include "optim/optim.h"
#include <math.h>
#include <string.h>

enum { NPARAM = 4, MAXN = 4096 };
typedef struct rig { /* a matrix, a fused matrix, an embedding and a bias, with gradients */
    tp_ctx *c;
    tp_param p[NPARAM];
    tp_params params;
    tp_optim *o;
} rig;

static const tp_optim_opts plain = {.kind = TP_OPTIM_ADAMW,
                                    .learning_rate = 1e-2,
                                    .muon_learning_rate = 2e-2,
                                    .adam_beta1 = 0.9,
                                    .adam_beta2 = 0.95,
                                    .adam_epsilon = 1e-8,
                                    .weight_decay = 0.1,
                                    .muon_momentum = 0.95,
                                    .momentum = 0.9,
                                    .schedule = TP_CONSTANT,
                                    .min_lr_ratio = 0.1,
                                    .steps = 100};

static double noise(int which, int step, int64_t i) {
    return (float)tp_normal(11, TP_RNG_TEST, (uint64_t)(which * 1000 + step), (uint64_t)i);
}

static tp_status add(rig *r, const char *name, int64_t rows, int64_t cols, unsigned flags,
                     int blocks) {
    tp_param *p = &r->p[r->params.n];
    *p = (tp_param){name, NULL, flags, blocks, false};
    p->t = cols ? tp_tensor_keep(r->c, TP_F32, TP_SHAPE(rows, cols))
                : tp_tensor_keep(r->c, TP_F32, TP_SHAPE(rows));
    if (!p->t) return r->c->status;
    if (!(p->t->grad = tp_tensor_keep(r->c, TP_F32, p->t->ndim, p->t->shape))) return r->c->status;
    for (int64_t i = 0; i < tp_numel(p->t) && p->t->data; i++)
        tp_f32(p->t)[i] = (float)noise(r->params.n, 0, i);
    r->params.n++;
    return TP_OK;
}

static tp_status rig_open(rig *r, const tp_optim_opts *o, const tp_ctx_opts *co) {
    *r = (rig){0};
    r->params.p = r->p;
    tp_status st = tp_ctx_new(&r->c, co);
    if (!st) st = add(r, "w", 8, 24, TP_P_DECAY | TP_P_MATRIX, 1);
    if (!st) st = add(r, "qkv", 24, 48, TP_P_DECAY | TP_P_MATRIX, 3);
    if (!st) st = add(r, "wte", 50, 24, TP_P_DECAY | TP_P_EMBED, 1);
    if (!st) st = add(r, "b", 24, 0, 0, 1);
    return st ? st : tp_optim_new(&r->o, r->c, &r->params, o);
}

static void rig_close(rig *r) {
    tp_optim_free(r->o);
    tp_ctx_free(r->c);
}

static void set_grads(rig *r, int step) {
    for (int j = 0; j < NPARAM; j++)
        for (int64_t i = 0; i < tp_numel(r->p[j].t) && r->p[j].t->data; i++)
            tp_f32(r->p[j].t->grad)[i] = (float)noise(j + 10, step, i);
}

static void open_ok(rig *r, const tp_optim_opts *o) {
    assert_int_equal(rig_open(r, o, &(tp_ctx_opts){.threads = 2}), TP_OK);
}

/* ---- AdamW and SGD -------------------------------------------------------------------------- */
/* Worst error of the weights after 12 steps against a double computation whose bias correction
 * counts from `first`: 1 is right. */
static double adamw_error(int first, bool clip) {
    tp_optim_opts o = plain;
    o.schedule = TP_COSINE;
    o.warmup_steps = 4;
    o.max_grad_norm = clip ? 1.5 : 0;
    rig r;
    open_ok(&r, &o);
    static double w[NPARAM][MAXN], m[NPARAM][MAXN], v[NPARAM][MAXN];
    memset(m, 0, sizeof m);
    memset(v, 0, sizeof v);
    for (int j = 0; j < NPARAM; j++)
        for (int64_t i = 0; i < tp_numel(r.p[j].t); i++) w[j][i] = noise(j, 0, i);
    double worst = 0;
    for (int step = 0; step < 12; step++) {
        tp_optim_report rep;
        set_grads(&r, step);
        double square = 0;
        for (int j = 0; j < NPARAM; j++)
            for (int64_t i = 0; i < tp_numel(r.p[j].t); i++)
                square += noise(j + 10, step, i) * noise(j + 10, step, i);
        assert_int_equal(tp_optim_step(r.o, step, &rep), TP_OK);
        assert_true(fabs(rep.grad_norm - sqrt(square)) <= 1e-12 * sqrt(square));
        assert_int_equal(rep.clipped, clip);
        double scale = clip ? 1.5 / sqrt(square) : 1, t = step + first;
        double lr =
            1e-2 * (step < 4 ? (step + 1) / 4.0 : 0.1 + 0.45 * (1 + cos(M_PI * (step - 4) / 95.0)));
        assert_true(fabs(rep.learning_rate - lr) <= 1e-15);
        for (int j = 0; j < NPARAM; j++)
            for (int64_t i = 0; i < tp_numel(r.p[j].t); i++) {
                double g = scale * noise(j + 10, step, i);
                m[j][i] = 0.9 * m[j][i] + 0.1 * g;
                v[j][i] = 0.95 * v[j][i] + 0.05 * g * g;
                if (j < 3) w[j][i] *= 1 - lr * 0.1;
                w[j][i] -= lr * (m[j][i] / (1 - pow(0.9, t))) /
                           (sqrt(v[j][i] / (1 - pow(0.95, t))) + 1e-8);
                double e = fabs(w[j][i] - (double)tp_f32(r.p[j].t)[i]);
                if (!(e <= worst)) worst = e;
            }
    }
    assert_int_equal(tp_optim_get_counters(r.o)->updates, 12);
    rig_close(&r);
    return worst;
}

static void test_adamw(void **state) {
    (void)state;
    double right = adamw_error(1, false), clipped = adamw_error(1, true),
           wrong = adamw_error(2, false);
    assert_true(right <= 2e-6);
    assert_true(clipped <= 2e-6);
    assert_true(wrong > 1e-4); /* the check sees an off-by-one in the bias correction */
}

static void test_sgd(void **state) {
    (void)state;
    for (int with = 0; with < 2; with++) {
        tp_optim_opts o = plain;
        o.kind = TP_OPTIM_SGD;
        o.momentum = with ? 0.9 : 0;
        rig r;
        open_ok(&r, &o);
        assert_int_equal(tp_optim_state_count(r.o), with ? 4 : 0);
        double w = noise(0, 0, 5), b = 0, u = noise(3, 0, 2), d = 0;
        for (int step = 0; step < 8; step++) {
            tp_optim_report rep;
            set_grads(&r, step);
            assert_int_equal(tp_optim_step(r.o, step, &rep), TP_OK);
            b = o.momentum * b + noise(10, step, 5);
            w -= 1e-2 * (b + 0.1 * w);
            d = o.momentum * d + noise(13, step, 2);
            u -= 1e-2 * d; /* a bias: no decay */
        }
        assert_true(fabs((double)tp_f32(r.p[0].t)[5] - w) <= 1e-6);
        assert_true(fabs((double)tp_f32(r.p[3].t)[2] - u) <= 1e-6);
        rig_close(&r);
    }
}

/* ---- Muon ----------------------------------------------------------------------------------- */
/* Eigenvalues of a symmetric (n,n) matrix by Jacobi's rotations; a is destroyed. */
static void eigenvalues(double *a, int n, double *out) {
    for (int sweep = 0; sweep < 30; sweep++)
        for (int p = 0; p < n; p++)
            for (int q = p + 1; q < n; q++) {
                if (fabs(a[p * n + q]) < 1e-14) continue;
                double theta = 0.5 * atan2(2 * a[p * n + q], a[q * n + q] - a[p * n + p]);
                double c = cos(theta), s = sin(theta);
                for (int k = 0; k < n; k++) {
                    double x = a[k * n + p], y = a[k * n + q];
                    a[k * n + p] = c * x - s * y;
                    a[k * n + q] = s * x + c * y;
                }
                for (int k = 0; k < n; k++) {
                    double x = a[p * n + k], y = a[q * n + k];
                    a[p * n + k] = c * x - s * y;
                    a[q * n + k] = s * x + c * y;
                }
            }
    for (int i = 0; i < n; i++) out[i] = a[i * n + i];
}

/* With weights 0, rate 1 and no decay the step is minus the direction times its scale. */
static void test_muon_is_orthogonal(void **state) {
    (void)state;
    for (int match = 0; match < 2; match++) {
        tp_optim_opts o = plain;
        o.kind = TP_OPTIM_MUON;
        o.muon_learning_rate = 1;
        o.weight_decay = 0;
        o.muon_match_adamw = match;
        rig r;
        open_ok(&r, &o);
        set_grads(&r, 0);
        memset(r.p[0].t->data, 0, 8 * 24 * sizeof(float));
        tp_optim_report rep;
        assert_int_equal(tp_optim_step(r.o, 0, &rep), TP_OK);
        /* (in 8, out 24): Jordan's scale is sqrt(24/8), Moonlight's 0.2 sqrt(24) */
        double scale = match ? 0.2 * sqrt(24) : sqrt(3), yy[64] = {0}, gy[64] = {0}, s2[8];
        const float *y = tp_f32(r.p[0].t), *g = tp_f32(r.p[0].t->grad);
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 8; j++)
                for (int k = 0; k < 24; k++) {
                    yy[i * 8 + j] += (double)y[i * 24 + k] * (double)y[j * 24 + k] / scale / scale;
                    gy[i * 8 + j] -= (double)g[i * 24 + k] * (double)y[j * 24 + k] / scale;
                }
        for (int i = 0; i < 8; i++) /* G Y^T = U S f(S) U^T is symmetric: the same U and V */
            for (int j = 0; j < 8; j++) assert_true(fabs(gy[i * 8 + j] - gy[j * 8 + i]) < 1e-4);
        eigenvalues(yy, 8, s2);
        for (int i = 0; i < 8; i++) assert_true(s2[i] > 0.65 * 0.65 && s2[i] < 1.2 * 1.2);
        eigenvalues(gy, 8, s2);
        for (int i = 0; i < 8; i++) assert_true(s2[i] > 0); /* downhill along every direction */
        rig_close(&r);
    }
}

/* A fused matrix of three blocks moves exactly as three matrices would. */
static void test_muon_blocks(void **state) {
    (void)state;
    tp_optim_opts o = plain;
    o.kind = TP_OPTIM_MUON;
    rig r;
    open_ok(&r, &o);
    set_grads(&r, 0);
    tp_param part[3];
    tp_params parts = {part, 3, 3};
    static const char *const names[] = {"q", "k", "v"};
    tp_tensor *whole = r.p[1].t;
    for (int b = 0; b < 3; b++) {
        part[b] = (tp_param){names[b], tp_tensor_keep(r.c, TP_F32, TP_SHAPE(24, 16)),
                             TP_P_DECAY | TP_P_MATRIX, 1, false};
        part[b].t->grad = tp_tensor_keep(r.c, TP_F32, TP_SHAPE(24, 16));
        for (int i = 0; i < 24; i++) {
            memcpy(tp_f32(part[b].t) + i * 16, tp_f32(whole) + i * 48 + b * 16, 64);
            memcpy(tp_f32(part[b].t->grad) + i * 16, tp_f32(whole->grad) + i * 48 + b * 16, 64);
        }
    }
    tp_optim *three;
    tp_optim_report rep;
    assert_int_equal(tp_optim_new(&three, r.c, &parts, &o), TP_OK);
    assert_int_equal(tp_optim_step(r.o, 0, &rep), TP_OK);
    assert_int_equal(tp_optim_step(three, 0, &rep), TP_OK);
    for (int b = 0; b < 3; b++)
        for (int i = 0; i < 24; i++)
            assert_memory_equal(tp_f32(part[b].t) + i * 16, tp_f32(whole) + i * 48 + b * 16, 64);
    tp_optim_free(three);
    /* the rest is AdamW's */
    assert_string_equal(tp_optim_state_name(r.o, 0), "w.momentum_buffer");
    assert_string_equal(tp_optim_state_name(r.o, 2), "wte.exp_avg");
    assert_string_equal(tp_optim_state_name(r.o, 5), "b.exp_avg_sq");
    assert_int_equal(tp_optim_state_count(r.o), 6);
    assert_null(tp_optim_state_name(r.o, 6));
    assert_int_equal(tp_optim_state_param(r.o, 6), -1);
    rig_close(&r);
}

/* ---- schedules ------------------------------------------------------------------------------ */
static void test_schedules(void **state) {
    (void)state;
    tp_optim_opts o = {.min_lr_ratio = 0.1, .steps = 101, .warmup_steps = 20, .decay_steps = 10};
    for (int kind = TP_COSINE; kind <= TP_CONSTANT; kind++) {
        o.schedule = (tp_schedule)kind;
        assert_true(tp_schedule_at(&o, 0) == 0.05);
        assert_true(tp_schedule_at(&o, 9) == 0.5);
        assert_true(tp_schedule_at(&o, 19) == 1 && tp_schedule_at(&o, 20) == 1);
        double end = kind == TP_CONSTANT ? 1 : 0.1;
        assert_true(fabs(tp_schedule_at(&o, 100) - end) < 1e-15);
        assert_true(fabs(tp_schedule_at(&o, 1000000) - end) < 1e-15);
        for (int64_t s = 20; s < 110; s++)
            assert_true(tp_schedule_at(&o, s + 1) <= tp_schedule_at(&o, s));
    }
    o.schedule = TP_COSINE;
    assert_true(fabs(tp_schedule_at(&o, 60) - 0.55) < 1e-15); /* half way: the mean of 1 and 0.1 */
    assert_true(fabs(tp_schedule_at(&o, 40) - (0.1 + 0.45 * (1 + sqrt(0.5)))) < 1e-12);
    o.schedule = TP_LINEAR;
    assert_true(fabs(tp_schedule_at(&o, 60) - 0.55) < 1e-15);
    assert_true(fabs(tp_schedule_at(&o, 40) - 0.775) < 1e-15);
    o.schedule = TP_WSD;
    assert_true(tp_schedule_at(&o, 90) == 1);
    assert_true(fabs(tp_schedule_at(&o, 95) - 0.55) < 1e-15);
    o.warmup_steps = 0, o.steps = 1; /* one step alone is the last one */
    assert_true(fabs(tp_schedule_at(&o, 0) - 0.1) < 1e-15);
    o.schedule = TP_CONSTANT;
    assert_true(tp_schedule_at(&o, 0) == 1 && tp_schedule_at(&o, -5) == 1);
}

/* ---- bad gradients -------------------------------------------------------------------------- */
static void test_bad_gradients(void **state) {
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    tp_optim_opts o = plain;
    o.max_bad_steps = 3;
    rig r;
    open_ok(&r, &o);
    tp_optim_report rep;
    set_grads(&r, 0);
    assert_int_equal(tp_optim_step(r.o, 0, &rep), TP_OK);
    float w[50 * 24], m[50 * 24];
    memcpy(w, r.p[2].t->data, sizeof w);
    assert_int_equal(tp_optim_state_get(r.o, 4, m), TP_OK);
    for (int i = 0; i < 2; i++) {
        set_grads(&r, 1 + i);
        tp_f32(r.p[2].t->grad)[700 + i] = bad[i];
        assert_int_equal(tp_optim_step(r.o, 1 + i, &rep), TP_OK);
        assert_true(rep.skipped && rep.bad_in_a_row == i + 1 && !isfinite(rep.grad_norm));
        assert_memory_equal(w, r.p[2].t->data, sizeof w);
        float now[50 * 24];
        assert_int_equal(tp_optim_state_get(r.o, 4, now), TP_OK);
        assert_memory_equal(m, now, sizeof m);
    }
    set_grads(&r, 3);
    assert_int_equal(tp_optim_step(r.o, 3, &rep), TP_OK); /* a good one starts the count again */
    assert_true(!rep.skipped && rep.bad_in_a_row == 0 && rep.bad_total == 2);
    assert_int_equal(tp_optim_get_counters(r.o)->updates, 2);
    for (int i = 0; i < 3; i++) {
        tp_f32(r.p[2].t->grad)[3] = bad[2 - i];
        assert_int_equal(tp_optim_step(r.o, 4 + i, &rep), i < 2 ? TP_OK : TP_ENUMERIC);
    }
    assert_non_null(
        strstr(tp_error(r.c),
               "step 7: the gradient of wte is not finite, after 2 skipped steps in a row, and "
               "train.max_bad_steps: 3 ends the run"));
    assert_int_equal(rep.bad_total, 5);
    rig_close(&r);
}

static void test_absent_and_wrong_gradients(void **state) {
    (void)state;
    rig r;
    open_ok(&r, &plain);
    tp_optim_report rep;
    set_grads(&r, 0);
    tp_tensor *present = r.p[1].t->grad;
    r.p[1].t->grad = NULL; /* it stays as it is: decay would wear away what no loss depends on */
    float before = tp_f32(r.p[1].t)[7], other = tp_f32(r.p[0].t)[7];
    assert_int_equal(tp_optim_step(r.o, 0, &rep), TP_OK);
    assert_true(tp_f32(r.p[1].t)[7] == before && tp_f32(r.p[0].t)[7] != other);
    double norm = rep.grad_norm;
    r.p[1].t->grad = present;
    assert_int_equal(tp_optim_step(r.o, 0, &rep), TP_OK);
    assert_true(rep.grad_norm > norm);
    r.p[1].t->grad = NULL; /* and what it was in the step before does not count */
    assert_int_equal(tp_optim_step(r.o, 0, &rep), TP_OK);
    assert_true(rep.grad_norm == norm);
    r.p[1].t->grad = r.p[0].t->grad;
    assert_int_equal(tp_optim_step(r.o, 1, &rep), TP_ESHAPE);
    assert_non_null(strstr(tp_error(r.c), "the gradient of qkv is f32[8,24] for f32[24,48]"));
    rig_close(&r);
}

/* ---- state
 * -----------------------------------------------------------------------------------------------
 */
static void test_resume_and_threads(void **state) {
    (void)state;
    for (int kind = TP_OPTIM_ADAMW; kind <= TP_OPTIM_SGD; kind++) {
        tp_optim_opts o = plain;
        o.kind = (tp_optim_kind)kind;
        rig a, b;
        tp_optim_report rep;
        open_ok(&a, &o);
        for (int step = 0; step < 3; step++) {
            set_grads(&a, step);
            assert_int_equal(tp_optim_step(a.o, step, &rep), TP_OK);
        }
        assert_int_equal(rig_open(&b, &o, &(tp_ctx_opts){.threads = 3}), TP_OK);
        for (int j = 0; j < NPARAM; j++)
            memcpy(b.p[j].t->data, a.p[j].t->data, (size_t)tp_numel(a.p[j].t) * 4);
        for (int j = 0; j < tp_optim_state_count(a.o); j++) {
            assert_string_equal(tp_optim_state_name(a.o, j), tp_optim_state_name(b.o, j));
            float moved[50 * 24];
            assert_true(tp_numel(a.p[tp_optim_state_param(a.o, j)].t) <= 50 * 24);
            assert_int_equal(tp_optim_state_get(a.o, j, moved), TP_OK);
            tp_optim_state_put(b.o, j, moved);
        }
        *tp_optim_get_counters(b.o) = *tp_optim_get_counters(a.o);
        for (int step = 3; step < 6; step++) {
            set_grads(&a, step);
            set_grads(&b, step);
            assert_int_equal(tp_optim_step(a.o, step, &rep), TP_OK);
            assert_int_equal(tp_optim_step(b.o, step, &rep), TP_OK);
        }
        for (int j = 0; j < NPARAM; j++)
            assert_memory_equal(b.p[j].t->data, a.p[j].t->data, (size_t)tp_numel(a.p[j].t) * 4);
        rig_close(&a);
        rig_close(&b);
    }
}

static void test_meta_predicts(void **state) {
    (void)state;
    for (int kind = TP_OPTIM_ADAMW; kind <= TP_OPTIM_SGD; kind++) {
        tp_optim_opts o = plain;
        o.kind = (tp_optim_kind)kind;
        rig r, m;
        tp_optim_report rep;
        open_ok(&r, &o);
        assert_int_equal(rig_open(&m, &o, &(tp_ctx_opts){.threads = 2, .meta = true}), TP_OK);
        set_grads(&r, 0);
        assert_int_equal(tp_optim_step(r.o, 0, &rep), TP_OK);
        assert_int_equal(tp_optim_step(m.o, 0, &rep), TP_OK);
        assert_int_equal(tp_memory_used(r.c), tp_memory_used(m.c));
        assert_int_equal(tp_memory_peak(r.c), tp_memory_peak(m.c));
        rig_close(&r);
        rig_close(&m);
    }
}

static void test_options_are_refused(void **state) {
    (void)state;
    static const struct {
        tp_optim_opts o;
        const char *says;
    } wrong[] = {
        {{.learning_rate = -1, .adam_epsilon = 1}, "learning_rate must be in [0,inf), got -1"},
        {{.learning_rate = NAN, .adam_epsilon = 1}, "learning_rate must be"},
        {{.adam_beta2 = 1, .adam_epsilon = 1}, "adam_beta2 must be in [0,1), got 1"},
        {{.min_lr_ratio = 1.5, .adam_epsilon = 1}, "min_lr_ratio must be in [0,1], got 1.5"},
        {{.steps = -1, .adam_epsilon = 1}, "steps must be"},
        {{.kind = TP_OPTIM_MUON}, "adam_epsilon must be positive"},
        {{.kind = (tp_optim_kind)7, .adam_epsilon = 1}, "there is no kind 7"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        rig r;
        assert_int_equal(rig_open(&r, &wrong[i].o, &(tp_ctx_opts){.threads = 1}), TP_EARG);
        assert_non_null(strstr(tp_error(r.c), wrong[i].says));
        assert_null(r.o);
        rig_close(&r);
    }
    rig r;
    tp_optim *o;
    open_ok(&r, &plain);
    r.p[3].t = r.p[0].t;
    assert_int_equal(tp_optim_new(&o, r.c, &r.params, &plain), TP_EARG);
    assert_non_null(strstr(tp_error(r.c), "w and b are one parameter listed twice"));
    rig_close(&r);
}

static void test_failing_allocations(void **state) {
    (void)state;
    for (int kind = TP_OPTIM_ADAMW; kind <= TP_OPTIM_SGD; kind++)
        for (long at = 1;; at++) {
            tp_optim_opts o = plain;
            o.kind = (tp_optim_kind)kind;
            rig r;
            tp_optim_report rep;
            tp_status st = rig_open(&r, &o, &(tp_ctx_opts){.threads = 1, .fail_alloc_at = at});
            if (!st) {
                set_grads(&r, 0);
                st = tp_optim_step(r.o, 0, &rep);
            }
            bool struck = !r.c || r.c->fail_alloc_at == 0;
            assert_int_equal(st, struck ? TP_ENOMEM : TP_OK);
            rig_close(&r);
            if (!struck) break;
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_sgd),
        cmocka_unit_test(test_muon_is_orthogonal),
        cmocka_unit_test(test_muon_blocks),
        cmocka_unit_test(test_schedules),
        cmocka_unit_test(test_bad_gradients),
        cmocka_unit_test(test_absent_and_wrong_gradients),
        cmocka_unit_test(test_resume_and_threads),
        cmocka_unit_test(test_meta_predicts),
        cmocka_unit_test(test_options_are_refused),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
