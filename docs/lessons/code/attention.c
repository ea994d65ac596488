/* Causal attention of one head, twice: with the matrix of weights kept, and with keys walked in
 * tiles, keeping one number for each query. Both beside Tapir's op, forward and backward.
 *
 *   lesson_attention [T]    queries and keys, 1 to 1000; else 200 */
#include "autograd/autograd.h"
#include "core/core.h"
#include "ops/attention/attention.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { D = 16, TILE = 32, CAP = 1000 };
static const double scale = 1 / 4.0; /* 1/sqrt(D) */
typedef double rows[CAP][D];
typedef struct head {
    int T;
    rows q, k, v, o, d_o, dq, dk, dv;
    double p[CAP][CAP]; /* naive: the weights */
    double lse[CAP];    /* tiled: the log of the sum of exp(score), for each query */
} head;

static double dot(const double *a, const double *b) {
    double s = 0;
    for (int d = 0; d < D; d++) s += a[d] * b[d];
    return s;
}
static void add(double *a, double f, const double *b) { /* a += f b */
    for (int d = 0; d < D; d++) a[d] += f * b[d];
}

/* lesson: naive */
static void naive(head *a) {
    for (int i = 0; i < a->T; i++) {
        double *p = a->p[i], top = -INFINITY, sum = 0;
        for (int j = 0; j <= i; j++) top = fmax(top, p[j] = scale * dot(a->q[i], a->k[j]));
        for (int j = 0; j <= i; j++) sum += p[j] = exp(p[j] - top);
        for (int j = 0; j <= i; j++) add(a->o[i], p[j] /= sum, a->v[j]);
    }
}
/* end */

/* lesson: online */
static void online(head *a) {
    for (int i = 0; i < a->T; i++) {
        double m = -INFINITY, l = 0, s[TILE], *o = a->o[i];
        for (int first = 0; first <= i; first += TILE) {
            int n = i + 1 - first < TILE ? i + 1 - first : TILE;
            double m_new = m;
            for (int j = 0; j < n; j++)
                m_new = fmax(m_new, s[j] = scale * dot(a->q[i], a->k[first + j]));
            double factor = exp(m - m_new); /* what was summed so far had the weights exp(s - m) */
            l *= factor;
            for (int d = 0; d < D; d++) o[d] *= factor;
            for (int j = 0; j < n; j++) {
                double w = exp(s[j] - m_new);
                l += w;
                add(o, w, a->v[first + j]);
            }
            m = m_new;
        }
        for (int d = 0; d < D; d++) o[d] /= l;
        a->lse[i] = m + log(l);
    }
}
/* end */

/* lesson: naive backward */
static void naive_backward(head *a) {
    for (int i = 0; i < a->T; i++) {
        const double *p = a->p[i];
        double mean = 0; /* of dp, weighted by p */
        for (int j = 0; j <= i; j++) mean += p[j] * dot(a->d_o[i], a->v[j]);
        for (int j = 0; j <= i; j++) {
            double ds = p[j] * (dot(a->d_o[i], a->v[j]) - mean);
            add(a->dv[j], p[j], a->d_o[i]);
            add(a->dq[i], scale * ds, a->k[j]);
            add(a->dk[j], scale * ds, a->q[i]);
        }
    }
}
/* end */

/* lesson: backward without the weights */
static void backward(head *a) {
    for (int i = 0; i < a->T; i++) {
        double delta = dot(a->d_o[i], a->o[i]);
        for (int j = 0; j <= i; j++) {
            double p = exp(scale * dot(a->q[i], a->k[j]) - a->lse[i]); /* made again */
            double ds = p * (dot(a->d_o[i], a->v[j]) - delta);
            add(a->dv[j], p, a->d_o[i]);
            add(a->dq[i], scale * ds, a->k[j]);
            add(a->dk[j], scale * ds, a->q[i]);
        }
    }
}
/* end */

static head *random_head(int T) {
    head *a = calloc(1, sizeof *a);
    if (!a) return NULL;
    a->T = T;
    double *x[] = {*a->q, *a->k, *a->v, *a->d_o};
    for (int which = 0; which < 4; which++)
        for (int i = 0; i < T * D; i++) /* through float, so that Tapir gets the same numbers */
            x[which][i] = (double)(float)tp_normal(1, TP_RNG_TEST, (uint64_t)which, (uint64_t)i);
    return a;
}

static tp_tensor *tensor(tp_ctx *c, const head *a, const double *x) { /* (1,T,1,D) */
    tp_tensor *t = tp_tensor_new(c, TP_F32, TP_SHAPE(1, a->T, 1, D));
    for (int i = 0; t && i < a->T * D; i++) tp_f32(t)[i] = (float)x[i];
    return t;
}

/* Tapir's op and its vjp on the same numbers: to[0] is o, then dq, dk, dv. */
static tp_status by_tapir(tp_ctx *c, const head *a, tp_tensor *to[4]) {
    tp_tensor *x[] = {tensor(c, a, *a->q), tensor(c, a, *a->k), tensor(c, a, *a->v)};
    for (int i = 0; i < 3 && x[i]; i++) tp_require_grad(x[i]);
    tp_tape_on(c);
    to[0] = tp_attention(c, x[0], x[1], x[2], &(tp_attention_opts){.causal = true}, NULL);
    return tp_grad(c, to[0], tensor(c, a, *a->d_o), 3, x, to + 1, NULL);
}

static void report(const char *what, long kept, const head *a, tp_tensor *const tapir[4]) {
    const double *mine[] = {*a->o, *a->dq, *a->dk, *a->dv};
    double worst = 0, most = 0;
    for (int which = 0; which < 4; which++)
        for (int i = 0; i < a->T * D; i++) {
            worst = fmax(worst, fabs(mine[which][i] - (double)tp_f32(tapir[which])[i]));
            most = fmax(most, fabs(mine[which][i]));
        }
    printf("%-17s %8ld numbers kept; %s\n", what, kept,
           worst < 1e-5 * most ? "o, dq, dk and dv are Tapir's" : "NOT what Tapir computes");
}

int main(int argc, char **argv) {
    int T = argc > 1 ? atoi(argv[1]) : 200;
    if (argc > 2 || T < 1 || T > CAP)
        return fputs("usage: lesson_attention [T], 1 to 1000\n", stderr), 2;
    head *whole = random_head(T), *tiled = random_head(T);
    tp_ctx *c = NULL;
    tp_tensor *tapir[4];
    tp_status st = whole && tiled ? tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1}) : TP_ENOMEM;
    if (!st && !(st = by_tapir(c, whole, tapir))) {
        naive(whole);
        naive_backward(whole);
        online(tiled);
        backward(tiled);
        printf("T = %d queries and keys, for the way back, beside q, k and v:\n", T);
        report("naive: weights", (long)T * T, whole, tapir);
        report("tiled: o and lse", (long)T * (D + 1), tiled, tapir);
    }
    if (st) fprintf(stderr, "lesson_attention: %s\n", c ? tp_error(c) : tp_status_name(st));
    free(whole);
    free(tiled);
    tp_ctx_free(c);
    return st != TP_OK;
}
