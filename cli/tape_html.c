/* Owns the page: cli/page/ with the log as JSON inside, one file that needs nothing else. */
#include "cli/cli.h"
#include "cli/tape.h"
#include "core/ctx.h"
#include <math.h>
#include <string.h>

extern const char tape_page_html[], tape_page_css[], tape_page_js[]; /* cmake/embed.cmake */

/* ---- JSON that may stand in a <script> ------------------------------------------------------ */
static void put_text(FILE *f, const char *s) {
    fputc('"', f);
    for (; *s; s++) {
        unsigned char ch = (unsigned char)*s;
        if (ch < 0x20 || ch == '"' || ch == '\\' || ch == '<' || ch == 0x7f)
            fprintf(f, "\\u%04x", ch);
        else
            fputc(ch, f);
    }
    fputc('"', f);
}

/* Nine digits tell every f32 from its neighbours. */
static void put_number(FILE *f, double x) {
    if (isfinite(x))
        fprintf(f, "%.9g", x);
    else
        fputs(isnan(x) ? "\"NaN\"" : x > 0 ? "\"Infinity\"" : "\"-Infinity\"", f);
}

static void put_key(FILE *f, const char *key) { fprintf(f, "\"%s\":", key); }

static void put_pair(FILE *f, const char *key, const char *text) {
    put_key(f, key);
    put_text(f, text);
}

static void put_ids(FILE *f, const char *key, const int *id, int n) {
    fprintf(f, ",\"%s\":[", key);
    for (int i = 0; i < n; i++) fprintf(f, "%s%d", i ? "," : "", id[i]);
    fputc(']', f);
}

static const char *comma(int i) { return i ? ",\n" : "\n"; }

/* ---- the parts ------------------------------------------------------------------------------ */
static void put_calls(FILE *f, const tape_log *l) {
    put_key(f, "calls");
    fputc('[', f);
    for (int i = 0; i < l->n_calls; i++) {
        const tape_call *k = &l->call[i];
        int changed[TP_MAXIN], n = 0;
        for (int j = 0; j < k->nin; j++)
            if (k->in[j] && ((k->op->inplace >> j) & 1)) changed[n++] = k->in[j];
        fprintf(f, "%s{", comma(i));
        put_pair(f, "op", k->op->name);
        fputc(',', f);
        put_pair(f, "kernel", k->kernel);
        fputc(',', f);
        put_pair(f, "attrs", k->attrs);
        fputc(',', f);
        put_pair(f, "scope", k->scope);
        put_ids(f, "in", k->in, k->nin);
        put_ids(f, "out", k->out, k->nout);
        put_ids(f, "changed", changed, n);
        fprintf(f,
                ",\"of\":%d,\"pass\":%d,\"savedIn\":%u,\"savedOut\":%u,\"memory\":%zu,\"high\":%zu",
                k->of, k->again ? 2 : k->backward, k->saved_in, k->saved_out, k->memory, k->high);
        fputs(",\"flops\":", f);
        put_number(f, k->flops);
        fputc('}', f);
    }
    fputs("]", f);
}

static void put_tensors(FILE *f, const tape_log *l) {
    put_key(f, "tensors");
    fputs("[null", f);
    for (int i = 1; i <= l->n_tensors; i++) {
        const tape_tensor *x = &l->tensor[i];
        fputs(",\n", f);
        if (!x->t) {
            fputs("null", f);
            continue;
        }
        fputc('{', f);
        put_pair(f, "dtype", tp_dtype_name(x->t->dtype));
        fputs(",\"shape\":[", f);
        for (int d = 0; d < x->t->ndim; d++)
            fprintf(f, "%s%lld", d ? "," : "", (long long)x->t->shape[d]);
        fprintf(f, "],\"made\":%d,\"same\":%d,\"wanted\":%d,\"first\":%d,\"bytes\":%zu", x->made,
                x->same_as, x->wanted, x->first, x->bytes);
        if (x->t->name && x->made < 0) {
            fputc(',', f);
            put_pair(f, "name", x->t->name);
        }
        fputc('}', f);
    }
    fputs("]", f);
}

static void put_values(FILE *f, const tape_log *l) {
    put_key(f, "values");
    fputc('[', f);
    for (int i = 0; i < l->n_values; i++) {
        const tape_values *v = &l->values[i];
        fprintf(f, "%s{\"n\":%lld,\"rows\":%d,\"columns\":%d,\"zeros\":%lld,\"bad\":%lld", comma(i),
                (long long)v->count, v->rows, v->columns, (long long)v->zeros, (long long)v->bad);
        const char *name[] = {"min", "max", "mean", "deviation"};
        double number[] = {v->min, v->max, v->mean, v->deviation};
        for (int j = 0; j < 4; j++) {
            fprintf(f, ",\"%s\":", name[j]);
            put_number(f, number[j]);
        }
        fputs(",\"x\":[", f);
        for (int j = 0; j < v->rows * v->columns; j++) {
            if (j) fputc(',', f);
            put_number(f, v->kept[j]);
        }
        fputc(']', f);
        if (v->rows * v->columns < v->count) {
            fputs(",\"bins\":[", f);
            for (int j = 0; j < TAPE_BINS; j++) fprintf(f, "%s%d", j ? "," : "", v->bin[j]);
            fputc(']', f);
        }
        fputc('}', f);
    }
    fputs("]", f);
}

static void put_events(FILE *f, const char *key, const tape_event *e, int n) {
    put_key(f, key);
    fputc('[', f);
    for (int i = 0; i < n; i++)
        fprintf(f, "%s[%d,%d,%d,%d]", i ? "," : "", e[i].at, e[i].id, e[i].grad, e[i].values);
    fputs("]", f);
}

/* Each op that ran, once. */
static void put_ops(FILE *f, const tape_log *l) {
    put_key(f, "ops");
    fputc('{', f);
    for (int i = 0, n = 0; i < l->n_calls; i++) {
        const tp_op *op = l->call[i].op;
        bool told = false;
        for (int j = 0; j < i && !told; j++) told = l->call[j].op == op;
        if (told) continue;
        fputs(comma(n++), f);
        put_text(f, op->name);
        fputs(":{", f);
        put_pair(f, "synopsis", op->synopsis);
        fputc(',', f);
        put_pair(f, "doc", op->doc ? op->doc : "");
        fputc(',', f);
        put_pair(f, "derivation", tp_derivation_of(op->name));
        fputc(',', f);
        put_pair(f, "noVjp", op->no_vjp ? op->no_vjp : "");
        fputc('}', f);
    }
    fputs("}", f);
}

static void put_routes(FILE *f, const tape_log *l) {
    put_key(f, "routes");
    fputc('[', f);
    for (int i = 0; i < l->n_routes; i++) {
        const tape_routes *r = &l->route[i];
        int64_t n = r->B * r->T;
        fprintf(f, "%s{", comma(i));
        put_pair(f, "scope", r->scope);
        fprintf(f, ",\"B\":%lld,\"T\":%lld,\"of\":%lld,\"taken\":[", (long long)r->B,
                (long long)r->T, (long long)r->of);
        for (int64_t j = 0; j < n; j++) fprintf(f, "%s%d", j ? "," : "", r->taken[j]);
        fputs("],\"score\":[", f);
        for (int64_t j = 0; j < n; j++) {
            if (j) fputc(',', f);
            put_number(f, r->score[j]);
        }
        fputs("]}", f);
    }
    fputs("]", f);
}

static void put_tape(FILE *f, const tape_log *l, const tape_page *p) {
    fputc('{', f);
    put_pair(f, "title", p->title);
    fputs(",\n", f);
    put_pair(f, "weights", p->weights ? p->weights : "");
    fputs(",\n", f);
    put_pair(f, "whyNot", p->why_not ? p->why_not : "");
    fprintf(f, ",\n\"atRest\":%zu,\"peak\":%zu,\"loss\":", l->at_rest, l->peak);
    put_number(f, l->loss);
    fputs(",\n\"pieces\":[", f);
    for (int64_t i = 0; i < p->n_pieces; i++) {
        if (i) fputc(',', f);
        put_text(f, p->piece[i]);
    }
    fputs("],\n", f);
    put_ops(f, l);
    fputs(",\n", f);
    put_tensors(f, l);
    fputs(",\n", f);
    put_calls(f, l);
    fputs(",\n", f);
    put_values(f, l);
    fputs(",\n", f);
    put_events(f, "writes", l->write, l->n_writes);
    fputs(",\n", f);
    put_events(f, "grads", l->grad, l->n_grads);
    fputs(",\n", f);
    put_routes(f, l);
    fputs("}", f);
}

void tape_html(const tape_log *l, FILE *f, const tape_page *p) {
    static const char *const mark[] = {"@STYLE@", "@TAPE@", "@SCRIPT@"}; /* in this order */
    const char *rest = tape_page_html;
    for (int i = 0; i < 3; i++) {
        const char *at = strstr(rest, mark[i]);
        if (!at) return;
        fwrite(rest, 1, (size_t)(at - rest), f);
        if (i == 1)
            put_tape(f, l, p);
        else
            fputs(i ? tape_page_js : tape_page_css, f);
        rest = at + strlen(mark[i]);
    }
    fputs(rest, f);
}
