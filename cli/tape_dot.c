/* Owns the tape as text for Graphviz: calls are boxes, tensors the arrows, blocks the clusters. */
#include "cli/tape.h"
#include <string.h>

static void quoted(FILE *f, const char *s, size_t n) {
    for (size_t i = 0; i < n && s[i]; i++) {
        if (s[i] == '"' || s[i] == '\\') fputc('\\', f);
        fputc(s[i], f);
    }
}

static void node(FILE *f, const tape_log *l, int i) {
    const tape_call *k = &l->call[i];
    fprintf(f, "    c%d [label=\"%s\\n%s\"%s];\n", i, k->op->name, k->op->synopsis,
            k->backward ? ", color=\"#bc4c00\"" : "");
}

/* Of this pass and block, with the calls that follow without a scope of their own. */
static int cluster(FILE *f, const tape_log *l, int from) {
    const tape_call *first = &l->call[from];
    size_t n = (size_t)tape_block(first->scope);
    fprintf(f, "  subgraph cluster_%d {\n    label=\"", from);
    quoted(f, first->scope, n);
    fprintf(f, "%s\";\n", first->backward ? " backward" : "");
    int i = from;
    for (; i < l->n_calls && l->call[i].backward == first->backward; i++) {
        const char *s = l->call[i].scope;
        if (*s && ((size_t)tape_block(s) != n || strncmp(s, first->scope, n) != 0)) break;
        node(f, l, i);
    }
    fputs("  }\n", f);
    return i;
}

static void arrow(FILE *f, const tape_log *l, int from, int to, int id) {
    fprintf(f, "  c%d -> c%d [label=\"%%%d\"", from, to, id);
    if (l->call[to].backward && !l->call[from].backward) fputs(", style=dashed", f);
    fputs("];\n", f);
}

void tape_dot(const tape_log *l, FILE *f, const char *title) {
    fputs("digraph tape {\n  label=\"", f);
    quoted(f, title, strlen(title));
    fputs("\";\n  labelloc=t;\n  node [shape=box, style=rounded, color=\"#0969da\", "
          "fontname=\"monospace\"];\n",
          f);
    for (int i = 0; i < l->n_calls;) i = cluster(f, l, i);
    for (int i = 1; i <= l->n_tensors; i++) {
        const tape_tensor *x = &l->tensor[i];
        if (!x->t || x->made >= 0 || !x->t->name) continue;
        fprintf(f, "  t%d [shape=plain, label=\"", i);
        quoted(f, x->t->name, strlen(x->t->name));
        fputs("\"];\n", f);
    }
    for (int i = 0; i < l->n_calls; i++)
        for (int j = 0; j < l->call[i].nin; j++) {
            int id = l->call[i].in[j], made = id ? l->tensor[id].made : -1;
            if (!id) continue;
            if (made >= 0)
                arrow(f, l, made, i, id);
            else if (l->tensor[id].t->name)
                fprintf(f, "  t%d -> c%d;\n", id, i);
        }
    fputs("}\n", f);
}
