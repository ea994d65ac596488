/* What the tape saves you: one net, trained twice from the same weights, once by the tape and once
 * with the backward pass written out. After 100 steps the weights agree to the last bit.
 *
 *   cc -ffp-contract=off by_hand.c $(pkg-config --cflags --libs tapir) -lm -o by_hand && ./by_hand
 *
 *   z = x w1,   h = max(z, 0),   e = h w2 - y,   L = sum e^2
 *   de = 2 e,   dw2 = h^T de,    dh = de w2^T,   dz = dh where h > 0,   dw1 = x^T dz
 *
 * Bits agree because Tapir says in which order it adds (ops/matmul/matmul.h): an element of a
 * product is one chain of fmaf, from the first k to the last. Here the chain is `product`.
 */
#include <tapir/ops.h>
#include <tapir/tapir.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { N = 16, IN = 3, HIDDEN = 8, STEPS = 100 };
static const float RATE = 0.002f;

static void random_values(float *x, int n, uint64_t which) {
    for (int i = 0; i < n; i++) x[i] = (float)tp_normal(3, TP_RNG_TEST, which, (uint64_t)i);
}

/* ---- by hand: c (m,n) = a b, where a[i,k] = a[i*ai + k*ak], b[k,j] = b[k*bk + j*bj] ---------- */
typedef struct matrix {
    const float *x;
    int row, col; /* steps; a transpose swaps them */
} matrix;

static void product(float *c, int m, int n, int k, matrix a, matrix b) {
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            float sum = 0;
            for (int l = 0; l < k; l++)
                sum = fmaf(a.x[i * a.row + l * a.col], b.x[l * b.row + j * b.col], sum);
            c[i * n + j] = sum;
        }
}

static void step_by_hand(const float *x, const float *y, float *w1, float *w2) {
    float h[N * HIDDEN], de[N], dw2[HIDDEN], dh[N * HIDDEN], dw1[IN * HIDDEN];
    product(h, N, HIDDEN, IN, (matrix){x, IN, 1}, (matrix){w1, HIDDEN, 1});
    for (int i = 0; i < N * HIDDEN; i++) h[i] = h[i] > 0 ? h[i] : 0;
    product(de, N, 1, HIDDEN, (matrix){h, HIDDEN, 1}, (matrix){w2, 1, 1});
    for (int i = 0; i < N; i++) de[i] = 2 * (de[i] - y[i]);
    product(dw2, HIDDEN, 1, N, (matrix){h, 1, HIDDEN}, (matrix){de, 1, 1});
    product(dh, N, HIDDEN, 1, (matrix){de, 1, 1}, (matrix){w2, 1, 1});
    for (int i = 0; i < N * HIDDEN; i++) dh[i] = h[i] > 0 ? dh[i] : 0; /* now dz */
    product(dw1, IN, HIDDEN, N, (matrix){x, 1, IN}, (matrix){dh, HIDDEN, 1});
    for (int i = 0; i < IN * HIDDEN; i++) w1[i] -= RATE * dw1[i];
    for (int i = 0; i < HIDDEN; i++) w2[i] -= RATE * dw2[i];
}

/* ---- by the tape ---------------------------------------------------------------------------- */
static tp_tensor *step_by_tape(tp_ctx *c, tp_tensor *x, tp_tensor *y, tp_tensor *const w[2]) {
    tp_tensor *h = tp_relu(c, tp_matmul(c, x, w[0], NULL));
    tp_tensor *e = tp_sub(c, tp_matmul(c, h, w[1], NULL), y);
    tp_tensor *loss = tp_sum(c, tp_mul(c, e, e), TP_ALL_DIMS, false);
    if (tp_backward(c, loss)) return NULL;
    for (int i = 0; i < 2; i++)
        tp_sgd_(c, w[i], NULL, w[i]->grad, &(tp_sgd_opts){.learning_rate = (double)RATE});
    tp_zero_grad(c, w, 2);
    return loss;
}

static tp_tensor *keep(tp_ctx *c, int64_t rows, int64_t cols, const float *values) {
    tp_tensor *t = tp_tensor_keep(c, TP_F32, TP_SHAPE(rows, cols));
    return tp_upload(c, t, values) ? NULL : t;
}

int main(void) {
    float x[N * IN], y[N], w1[IN * HIDDEN], w2[HIDDEN], loss[STEPS];
    random_values(x, N * IN, 0);
    random_values(y, N, 1);
    random_values(w1, IN * HIDDEN, 2);
    random_values(w2, HIDDEN, 3);
    tp_ctx *c;
    if (tp_ctx_new(&c, NULL)) return 1;
    tp_tensor *tx = keep(c, N, IN, x), *ty = keep(c, N, 1, y);
    tp_tensor *w[2] = {keep(c, IN, HIDDEN, w1), keep(c, HIDDEN, 1, w2)};
    if (!tp_error_status(c)) {
        tp_require_grad(w[0]);
        tp_require_grad(w[1]);
    }
    tp_tape_on(c);
    for (int step = 0; step < STEPS; step++) {
        tp_tensor *l = step_by_tape(c, tx, ty, w);
        loss[step] = l ? *tp_f32(l) : NAN;
        tp_step_end(c);
        step_by_hand(x, y, w1, w2);
    }
    if (tp_error_status(c)) return fprintf(stderr, "by_hand: %s\n", tp_error(c)), 1;
    bool same = !memcmp(tp_f32(w[0]), w1, sizeof w1) && !memcmp(tp_f32(w[1]), w2, sizeof w2);
    printf("loss %.4f, after %d steps %.4f\n", (double)loss[0], STEPS, (double)loss[STEPS - 1]);
    printf("weights by tape and by hand: %s\n", same ? "the same bits" : "different");
    tp_ctx_free(c);
    return !(same && loss[STEPS - 1] < loss[0] / 2);
}
