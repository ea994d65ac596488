/* CUDA kernels that promise the CPU's bits keep it: rows added by number (sorted in several tiles,
 * in long runs, over many samples), topk, gather's gradient, the optimisers' updates, and the
 * policy loss with its gradients. And what only the device can see of its ids comes out at the next
 * sync. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "ops/adamw/adamw.h"
#include "ops/convert.h"
#include "ops/embedding/embedding.h"
#include "ops/exp/exp.h"
#include "ops/gather/gather.h"
#include "ops/gather_rows/gather_rows.h"
#include "ops/muon/muon.h"
#include "ops/policy_loss/policy_loss.h"
#include "ops/sgd/sgd.h"
#include "ops/topk/topk.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CPU, GPU, NSIDE, NOUT = 4 };
typedef struct side { /* the same call on either device */
    tp_ctx *c;
    tp_tensor *out[NOUT];
} side;
typedef struct rig {
    side s[NSIDE];
} rig;

static rig rig_new(void) {
    rig r = {0};
    for (int d = 0; d < NSIDE; d++)
        assert_int_equal(tp_ctx_new(&r.s[d].c, &(tp_ctx_opts){.device = d ? TP_CUDA : TP_CPU,
                                                              .threads = 1,
                                                              .seed = 11,
                                                              .memory_limit = (size_t)32 << 20}),
                         0);
    return r;
}

static void *values(side *s, tp_tensor *t) {
    size_t bytes = (size_t)tp_numel(t) * tp_dtype_size(t->dtype);
    void *v = malloc(bytes + 1);
    assert_non_null(v);
    assert_int_equal(tp_download(s->c, t, v), 0);
    return v;
}

static bool same(rig *r) {
    bool yes = true;
    for (int i = 0; i < NOUT && r->s[CPU].out[i]; i++) {
        tp_tensor *t = r->s[CPU].out[i];
        void *a = values(&r->s[CPU], t), *b = values(&r->s[GPU], r->s[GPU].out[i]);
        yes &= !memcmp(a, b, (size_t)tp_numel(t) * tp_dtype_size(t->dtype));
        free(a);
        free(b);
    }
    return yes;
}

static void finish(rig *r, bool want_same) {
    for (int d = 0; d < NSIDE; d++) {
        tp_sync(r->s[d].c);
        assert_string_equal(tp_error(r->s[d].c), "");
    }
    assert_int_equal(same(r), want_same);
    for (int d = 0; d < NSIDE; d++) tp_ctx_free(r->s[d].c);
}

static tp_tensor *upload(side *s, tp_dtype t, int ndim, const int64_t *shape, const void *v) {
    tp_tensor *x = tp_tensor_keep(s->c, t, ndim, shape);
    assert_non_null(x);
    assert_int_equal(tp_upload(s->c, x, v), 0);
    return x;
}

/* Normal numbers of either float type, or their absolute values. */
static tp_tensor *normal(side *s, tp_dtype t, uint64_t which, bool positive, int ndim,
                         const int64_t *shape) {
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) n *= shape[i];
    float *v = malloc((size_t)n * sizeof *v + 1);
    assert_non_null(v);
    for (int64_t i = 0; i < n; i++) {
        float x = (float)tp_normal(3, TP_RNG_TEST, which, (uint64_t)i);
        x = positive ? fabsf(x) : x;
        if (t == TP_F32)
            v[i] = x;
        else
            ((uint16_t *)v)[i] = tp_f32_to_bf16(x);
    }
    tp_tensor *y = upload(s, t, ndim, shape, v);
    free(v);
    return y;
}

/* Ids below rows; a third of them are 2. odd: this one id is another. */
static tp_tensor *ids_of(side *s, int ndim, const int64_t *shape, int rows, int64_t odd) {
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) n *= shape[i];
    int32_t *v = malloc((size_t)n * sizeof *v + 1);
    assert_non_null(v);
    for (int64_t i = 0; i < n; i++) {
        double u = tp_uniform(3, TP_RNG_TEST, 9, (uint64_t)i);
        v[i] = u < 0.3 ? 2 : (int32_t)(tp_uniform(3, TP_RNG_TEST, 10, (uint64_t)i) * rows);
        if (i == odd) v[i] = (v[i] + 1) % rows;
    }
    tp_tensor *y = upload(s, TP_I32, ndim, shape, v);
    free(v);
    return y;
}

/* ---- rows ----------------------------------------------------------------------------------- */
static void rows_case(int64_t samples, int64_t each, int rows, int64_t channels) {
    for (int mutant = 0; mutant < 2; mutant++) {
        rig r = rig_new();
        for (int d = 0; d < NSIDE; d++) {
            side *s = &r.s[d];
            int64_t n = samples * each;
            tp_tensor *ids =
                ids_of(s, 2, (int64_t[]){samples, each}, rows, mutant && d ? n / 2 : -1);
            tp_tensor *dy = normal(s, TP_F32, 1, false, 3, (int64_t[]){samples, each, channels});
            tp_tensor *x = normal(s, TP_F32, 2, false, 2, (int64_t[]){rows, channels});
            tp_tensor *flat = tp_tensor_view(s->c, ids), *src = tp_tensor_view(s->c, dy);
            flat->ndim = 1;
            flat->shape[0] = src->shape[0] = n;
            flat->stride[0] = 1;
            src->ndim = 2;
            src->shape[1] = src->stride[0] = channels;
            src->stride[1] = 1;
            s->out[0] = tp_embedding_backward(s->c, ids, dy, rows);
            s->out[1] = tp_scatter_add_rows(s->c, x, flat, src);
            s->out[2] = x;
            assert_int_equal(tp_embedding_backward_(s->c, x, ids, dy), 0);
        }
        finish(&r, !mutant);
    }
}

static void test_rows(void **state) {
    (void)state;
    rows_case(3, 7, 9, 12);
    rows_case(1, 300, 5, 4);    /* one chain, longer than a warp's run */
    rows_case(9, 60, 7, 36);    /* long runs over samples */
    rows_case(70, 40, 300, 5);  /* three tiles, two digits, a deep tree */
    rows_case(2, 40, 70000, 4); /* three digits */
    rows_case(2, 40, 9, 130);   /* two slices of columns, the second not whole */
}

/* What is added stays apart per sample: other numbers come out if the same ids are one sample. */
static void test_rows_see_samples(void **state) {
    (void)state;
    rig r = rig_new();
    for (int d = 0; d < NSIDE; d++) {
        side *s = &r.s[d];
        int64_t shape[] = {d ? 1 : 16, d ? 320 : 20, 8};
        s->out[0] = tp_embedding_backward(s->c, ids_of(s, 2, shape, 5, -1),
                                          normal(s, TP_F32, 1, false, 3, shape), 5);
    }
    finish(&r, false);
}

static void test_bad_ids(void **state) {
    (void)state;
    static const int32_t ids[] = {0, 1, 2, 1, 7, 0, -1, 2};
    for (int which = 0; which < 4; which++) {
        rig r = rig_new();
        side *s = &r.s[GPU];
        tp_tensor *i = upload(s, TP_I32, 1, (int64_t[]){8}, ids);
        tp_tensor *dy = normal(s, TP_F32, 1, false, 2, (int64_t[]){8, 6});
        tp_tensor *x = normal(s, TP_F32, 2, false, 2, (int64_t[]){7, 6});
        if (which == 0) tp_embedding(s->c, i, x);
        if (which == 1) tp_embedding_backward(s->c, i, dy, 7);
        if (which == 2) tp_gather_rows(s->c, x, i);
        if (which == 3) tp_scatter_add_rows(s->c, x, i, dy);
        assert_string_equal(tp_error(s->c), "");
        assert_int_not_equal(tp_sync(s->c), 0);
        assert_non_null(strstr(tp_error(s->c), which < 2 ? "embedding" : "_rows"));
        assert_non_null(strstr(tp_error(s->c), "value 4 of")); /* the first bad one */
        for (int d = 0; d < NSIDE; d++) tp_ctx_free(r.s[d].c);
    }
}

/* ---- gather, topk --------------------------------------------------------------------------- */
static void test_gather(void **state) {
    (void)state;
    for (int mutant = 0; mutant < 2; mutant++) {
        rig r = rig_new();
        for (int d = 0; d < NSIDE; d++) {
            side *s = &r.s[d];
            int64_t shape[] = {3, 600}, wide[] = {3, 9001};
            tp_tensor *few = ids_of(s, 2, shape, 50, -1), *many = ids_of(s, 2, shape, 9001, -1);
            tp_tensor *dy = normal(s, TP_F32, 1, false, 2, shape);
            s->out[0] = tp_gather_backward(s->c, few, dy, 50);
            s->out[1] = tp_gather_backward(s->c, mutant && d ? few : many, dy, 9001);
            s->out[2] = tp_gather_last(s->c, normal(s, TP_F32, 2, false, 2, wide), many);
        }
        finish(&r, !mutant);
    }
}

static void topk_case(int64_t channels, int64_t n, int kinds) {
    float *v = malloc((size_t)(2 * channels) * sizeof *v);
    assert_non_null(v);
    for (int64_t i = 0; i < 2 * channels; i++) {
        double u = tp_uniform(3, TP_RNG_TEST, 5, (uint64_t)i);
        v[i] = (float)(floor(u * kinds) - kinds / 2); /* ties */
        if (i % 97 == 5) v[i] = i % 2 ? NAN : INFINITY;
        if (i % 89 == 7) v[i] = i % 2 ? -0.0f : -INFINITY;
    }
    for (int mutant = 0; mutant < 2; mutant++) {
        rig r = rig_new();
        for (int d = 0; d < NSIDE; d++) {
            side *s = &r.s[d];
            if (mutant && d) v[channels / 2] = 1e9f;
            s->out[0] =
                tp_topk(s->c, upload(s, TP_F32, 2, (int64_t[]){2, channels}, v), n, &s->out[1]);
        }
        finish(&r, !mutant);
    }
    free(v);
}

static void test_topk(void **state) {
    (void)state;
    topk_case(300, 40, 7);
    topk_case(300, 300, 1000);
    topk_case(5000, 4200, 100000); /* more than fit in shared memory */
    topk_case(5000, 100, 2);       /* decided by the index alone */
}

/* ---- updates -------------------------------------------------------------------------------- */
static void test_updates(void **state) {
    (void)state;
    for (int way = 0; way < 12; way++) {
        int64_t n = way % 3 ? 1000 + way : 5;
        bool state16 = way & 1, mutant = way >= 10;
        rig r = rig_new();
        for (int d = 0; d < NSIDE; d++) {
            side *s = &r.s[d];
            tp_dtype t = state16 ? TP_BF16 : TP_F32;
            tp_tensor *p = normal(s, TP_F32, 1, false, 1, &n), *m = normal(s, t, 2, false, 1, &n);
            tp_tensor *v = normal(s, t, 3, true, 1, &n);
            tp_tensor *g = way == 4 || way == 5 ? NULL : normal(s, TP_F32, 4, false, 1, &n);
            tp_adamw_opts o = {.learning_rate = 0.1,
                               .beta1 = 0.9,
                               .beta2 = 0.95,
                               .epsilon = 1e-8,
                               .weight_decay = 0.1,
                               .grad_scale = 0.3,
                               .update = 70000,
                               .stream = 77,
                               .offset = way < 6 ? 1000000 : 61};
            if (mutant && d) o.update += state16 ? 1 : -69999; /* other random bits; another rate */
            assert_int_equal(tp_adamw_(s->c, p, m, v, g, &o), 0);
            s->out[0] = p;
            s->out[1] = m;
            s->out[2] = v;
        }
        finish(&r, !mutant);
    }
}

static void test_directions(void **state) {
    (void)state;
    for (int way = 0; way < 9; way++) {
        int64_t n = 1003 + way;
        bool mutant = way == 8;
        rig r = rig_new();
        for (int d = 0; d < NSIDE; d++) {
            side *s = &r.s[d];
            tp_tensor *p = normal(s, TP_F32, 1, false, 1, &n),
                      *b = normal(s, TP_F32, 2, false, 1, &n);
            tp_tensor *g = way & 1 ? NULL : normal(s, TP_F32, 4, false, 1, &n);
            tp_momentum_opts mo = {.momentum = 0.95, .grad_scale = 0.3, .nesterov = way & 2};
            tp_sgd_opts so = {.learning_rate = 0.1,
                              .momentum = mutant && d ? 0.900001 : 0.9,
                              .weight_decay = 0.1,
                              .grad_scale = 0.3,
                              .nesterov = way & 2};
            s->out[0] = p;
            s->out[1] = tp_momentum_(s->c, b, g, &mo);
            assert_non_null(s->out[1]);
            s->out[2] = b;
            assert_int_equal(tp_sgd_(s->c, p, way & 4 ? NULL : b, g, &so), 0);
        }
        finish(&r, !mutant);
    }
}

/* The updates of a step go in few launches; what comes between them must not notice. */
static void test_many_updates(void **state) {
    (void)state;
    enum { PARAMS = 150, PARTS = 4 };
    for (int way = 0; way < 4; way++) {
        bool state16 = way & 1, mutant = way >= 2, all = true;
        rig r = rig_new();
        tp_tensor *x[NSIDE][PARAMS][PARTS], *between[NSIDE];
        for (int d = 0; d < NSIDE; d++) {
            side *s = &r.s[d];
            for (int i = 0; i < PARAMS; i++)
                for (int j = 0; j < PARTS; j++) {
                    int64_t n = i % 9 ? 1 + i * 37 % 3000 : 1 + i % 2;
                    tp_dtype t = state16 && (j == 1 || j == 2) ? TP_BF16 : TP_F32;
                    x[d][i][j] = j == 3 && i % 7 == 0
                                     ? NULL /* no gradient */
                                     : normal(s, t, (uint64_t)(PARTS * i + j), j == 2, 1, &n);
                }
            for (int i = 0; i < PARAMS; i++) {
                tp_tensor **q = x[d][i];
                tp_adamw_opts o = {.learning_rate = i < 100 ? 0.1 : 0.2,
                                   .beta1 = 0.9,
                                   .beta2 = 0.95,
                                   .epsilon = 1e-8,
                                   .weight_decay = i % 2 ? 0.1 : 0,
                                   .update = 3,
                                   .stream = i,
                                   .offset = 1000 * (i % 3)};
                if (mutant && d && i == 77) o.weight_decay = 0;
                assert_int_equal(tp_adamw_(s->c, q[0], q[1], q[2], q[3], &o), 0);
                if (i == 40) between[d] = tp_exp(s->c, q[0]); /* of what was only handed in */
            }
            s->out[0] = between[d];
        }
        for (int i = 0; i < PARAMS; i++)
            for (int j = 0; j < 3; j++) {
                for (int d = 0; d < NSIDE; d++) r.s[d].out[1] = x[d][i][j];
                all &= same(&r);
            }
        assert_int_equal(all, !mutant);
        finish(&r, true);
    }
}

/* ---- policy_loss ---------------------------------------------------------------------------- */
static void test_policy(void **state) {
    (void)state;
    for (int way = 0; way < 10; way++) {
        int64_t rows = way % 2 ? 11 : 1, T = 20 + 17 * way, shape[] = {rows, T};
        bool mutant = way >= 8;
        rig r = rig_new();
        for (int d = 0; d < NSIDE; d++) {
            side *s = &r.s[d];
            tp_policy_opts o = {.objective = way / 2 % 2 ? TP_POLICY_CISPO : TP_POLICY_CLIP,
                                .kl = way % 3,
                                .sequence = way / 4 % 2,
                                .bias_correction = way % 3 == 1,
                                .epsilon = 0.2,
                                .epsilon_high = 0.3,
                                .delta = way == 5 ? 1.5 : 0,
                                .clip_ratio_c = way == 1 ? 1.2 : 0,
                                .beta = 0.1,
                                .entropy_coef = mutant && d ? 0.021 : 0.02};
            tp_tensor *l = normal(s, TP_F32, 1, false, 2, shape);
            tp_tensor *weight = normal(s, TP_F32, 2, true, 2, shape);
            tp_tensor *h = normal(s, TP_F32, 3, true, 2, shape);
            tp_tensor *old = way ? normal(s, TP_F32, 4, false, 2, shape) : NULL;
            tp_policy_in in = {l,      old,  NULL, normal(s, TP_F32, 5, false, 1, shape),
                               weight, NULL, h};
            if (way % 3) in.ref = normal(s, TP_F32, 6, false, 2, shape);
            l->requires_grad = h->requires_grad = true;
            assert_int_equal(tp_tape_on(s->c), 0);
            tp_policy_out y = tp_policy_loss(s->c, &in, &o);
            assert_int_equal(tp_backward(s->c, y.loss), 0);
            s->out[0] = y.loss;
            s->out[1] = y.stats;
            s->out[2] = way & 1 ? l->grad : h->grad;
        }
        finish(&r, !mutant);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),       cmocka_unit_test(test_rows_see_samples),
        cmocka_unit_test(test_bad_ids),    cmocka_unit_test(test_gather),
        cmocka_unit_test(test_topk),       cmocka_unit_test(test_updates),
        cmocka_unit_test(test_directions), cmocka_unit_test(test_many_updates),
        cmocka_unit_test(test_policy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
