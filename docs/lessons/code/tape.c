/* Reverse-mode differentiation in one file: numbers instead of tensors, four operations, a tape.
 *
 *   lesson_tape W B X T    one neuron, L = (tanh(W X + B) - T)^2: the tape, forward and backward
 *   lesson_tape xor        a network of three neurons learns the exclusive or */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* lesson: node */
typedef enum rule { LEAF, ADD, SUB, MUL, TANH } rule;
typedef struct node {
    rule rule;
    int a, b;     /* where its inputs stand on the tape */
    double v, dv; /* its value; dL/dv, 0 until somebody says otherwise */
    const char *name;
} node;
enum { CAP = 256 };
typedef struct tape {
    node node[CAP];
    int n;
} tape;
/* end */

/* lesson: forward */
static int push(tape *t, rule how, int a, int b, double v, const char *name) {
    if (t->n == CAP) {
        fprintf(stderr, "lesson_tape: a tape holds %d numbers\n", CAP);
        exit(1);
    }
    t->node[t->n] = (node){how, a, b, v, 0, name};
    return t->n++;
}
static double val(const tape *t, int i) { return t->node[i].v; }
static int leaf(tape *t, double v, const char *name) { return push(t, LEAF, 0, 0, v, name); }
static int add(tape *t, int a, int b) { return push(t, ADD, a, b, val(t, a) + val(t, b), ""); }
static int sub(tape *t, int a, int b) { return push(t, SUB, a, b, val(t, a) - val(t, b), ""); }
static int mul(tape *t, int a, int b) { return push(t, MUL, a, b, val(t, a) * val(t, b), ""); }
static int tanh_(tape *t, int a) { return push(t, TANH, a, 0, tanh(val(t, a)), ""); }
/* end */

/* lesson: backward */
static void backward(tape *t, int root) {
    t->node[root].dv = 1; /* dL/dL */
    for (int i = root; i >= 0; i--) {
        const node *y = &t->node[i];
        node *a = &t->node[y->a], *b = &t->node[y->b];
        switch (y->rule) {
        case LEAF:
            break;
        case ADD:
            a->dv += y->dv, b->dv += y->dv;
            break;
        case SUB:
            a->dv += y->dv, b->dv -= y->dv;
            break;
        case MUL:
            a->dv += y->dv * b->v, b->dv += y->dv * a->v;
            break;
        case TANH:
            a->dv += y->dv * (1 - y->v * y->v);
            break;
        }
    }
}
/* end */

static int neuron(tape *t, const double p[4]) { /* p: W, B, X, T. Returns where L stands */
    int w = leaf(t, p[0], "w"), b = leaf(t, p[1], "b"), x = leaf(t, p[2], "x");
    int target = leaf(t, p[3], "t");
    int e = sub(t, tanh_(t, add(t, mul(t, w, x), b)), target);
    return mul(t, e, e);
}

static double loss_of(const double p[4]) {
    tape t = {.n = 0};
    return val(&t, neuron(&t, p));
}

static void print(const tape *t) {
    static const char *const sign[] = {[ADD] = "+", [SUB] = "-", [MUL] = "*"};
    for (int i = 0; i < t->n; i++) {
        const node *y = &t->node[i];
        char how[32];
        if (y->rule == LEAF)
            snprintf(how, sizeof how, "%s", y->name);
        else if (y->rule == TANH)
            snprintf(how, sizeof how, "tanh(%%%d)", y->a);
        else
            snprintf(how, sizeof how, "%%%d %s %%%d", y->a, sign[y->rule], y->b);
        printf("%%%d = %-10s  value %9.6f   dL/d%%%d %9.6f\n", i, how, y->v, i, y->dv);
    }
}

static void one_neuron(const double p[4]) {
    tape t = {.n = 0};
    int loss = neuron(&t, p);
    backward(&t, loss);
    print(&t);
    const double h = 1e-5;
    for (int i = 0; i < 4; i++) {
        double up[4], down[4];
        memcpy(up, p, sizeof up), memcpy(down, p, sizeof down);
        up[i] += h, down[i] -= h;
        printf("(L(%s+h) - L(%s-h)) / 2h = %9.6f\n", t.node[i].name, t.node[i].name,
               (loss_of(up) - loss_of(down)) / (2 * h));
    }
}

/* lesson: xor */
static int network(tape *t, const int w[9], int x, int y) {
    int h1 = tanh_(t, add(t, add(t, mul(t, w[0], x), mul(t, w[1], y)), w[2]));
    int h2 = tanh_(t, add(t, add(t, mul(t, w[3], x), mul(t, w[4], y)), w[5]));
    return tanh_(t, add(t, add(t, mul(t, w[6], h1), mul(t, w[7], h2)), w[8]));
}

static void learn_xor(void) {
    double p[9] = {0.5, -0.4, 0.1, -0.3, 0.6, -0.2, 0.4, 0.3, 0.0};
    int out[4];
    for (int step = 0; step <= 1000; step++) {
        tape t = {.n = 0};
        int w[9], loss = leaf(&t, 0, "");
        for (int i = 0; i < 9; i++) w[i] = leaf(&t, p[i], "w");
        for (int k = 0; k < 4; k++) { /* the four rows of the truth table, as -1 and 1 */
            int x = k & 1 ? 1 : -1, y = k & 2 ? 1 : -1;
            out[k] = network(&t, w, leaf(&t, x, "x"), leaf(&t, y, "y"));
            int e = sub(&t, out[k], leaf(&t, -x * y, "t"));
            loss = add(&t, loss, mul(&t, e, e));
        }
        if (step % 250 == 0) printf("step %4d  loss %.6f\n", step, val(&t, loss));
        for (int k = 0; k < 4 && step == 1000; k++)
            printf("%2d xor %2d is %6.3f\n", k & 1 ? 1 : -1, k & 2 ? 1 : -1, val(&t, out[k]));
        backward(&t, loss);
        for (int i = 0; i < 9; i++) p[i] -= 0.1 * t.node[w[i]].dv;
    }
}
/* end */

int main(int argc, char **argv) {
    double p[4];
    bool numbers = argc == 5;
    for (int i = 0; i < 4 && numbers; i++) {
        char *end;
        p[i] = strtod(argv[i + 1], &end);
        numbers = end != argv[i + 1] && !*end && isfinite(p[i]);
    }
    if (numbers)
        one_neuron(p);
    else if (argc == 2 && !strcmp(argv[1], "xor"))
        learn_xor();
    else
        return fputs("usage: lesson_tape W B X T, four numbers, or lesson_tape xor\n", stderr), 2;
    return 0;
}
