/* tapir ops: the operations, their kernels and what they say of themselves; --markdown is
 * docs/ops.md. */
#include "cli/cli.h"
#include "ops/op.h"
#include <stdio.h>
#include <string.h>

static bool markdown;
static char *only;
static const struct argp_option options[] = {
    {"markdown", 'm', NULL, 0, "Write the page docs/ops.md", 0}, {0}};

static error_t parse(int key, char *arg, struct argp_state *state) {
    if (key == 'm')
        markdown = true;
    else if (key == ARGP_KEY_ARG && !only)
        only = arg;
    else if (key == ARGP_KEY_ARG)
        argp_error(state, "one operation at a time");
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

/* "attention_flash_cpu (avx512, avx2, portable), reference" */
static void kernels(char *out, size_t cap, const tp_op *op) {
    size_t n = 0;
    out[0] = 0;
    if (op->view) {
        snprintf(out, cap, "none needed: a view");
        return;
    }
    const tp_kernel *const *list = op->kernel[TP_CPU];
    for (int i = 0; list && list[i] && n < cap; i++) {
        if (i && !strcmp(list[i]->name, list[i - 1]->name)) continue;
        n += (size_t)snprintf(out + n, cap - n, "%s, ", list[i]->name);
    }
    if (n < cap) snprintf(out + n, cap - n, "%s", op->oracle ? "reference" : "");
}

static void print_page(void) {
    puts("# Operations\n\nWritten by `tapir ops --markdown` from the rows in `ops/`. Every CPU "
         "kernel is "
         "compiled for AVX-512, AVX2 and any CPU, with the same bits; `reference` runs the float64 "
         "oracle.\n");
    puts("| op | computes | CPU kernels | gradient |\n|---|---|---|---|");
    for (int i = 0; tp_ops[i]; i++) {
        char k[512];
        kernels(k, sizeof k, tp_ops[i]);
        printf("| `%s` | `%s` | %s | %s |\n", tp_ops[i]->name, tp_ops[i]->synopsis, k,
               tp_ops[i]->vjp ? "yes" : tp_ops[i]->no_vjp);
    }
    for (int i = 0; tp_ops[i]; i++)
        printf("\n## %s\n`%s`\n\n%s\n", tp_ops[i]->name, tp_ops[i]->synopsis, tp_ops[i]->doc);
}

const char *tp_derivation_of(const char *op) {
    for (const tp_derivation *d = tp_derivations; d->op; d++)
        if (!strcmp(d->op, op)) return d->text;
    return "";
}

static void print_one(const tp_op *op) {
    char k[512];
    kernels(k, sizeof k, op);
    printf("%s\n  %s\n  %s\n  kernels: %s\n", op->name, op->synopsis, op->doc, k);
    if (op->no_vjp) printf("  no gradient: %s\n", op->no_vjp);
    for (const tp_attr *a = op->attrs; a && a->type != TP_ATTR_END; a++)
        printf("  attribute: %s\n", a->name);
    for (const tp_sample *s = op->samples; s && s->name; s++)
        printf("  tested with: %s%s%s\n", s->name, s->refuse ? " -> refused: …" : "",
               s->refuse ? s->refuse : "");
    printf("\n%s\n", tp_derivation_of(op->name));
}

int cmd_ops(int argc, char **argv) {
    const struct argp argp = {.options = options,
                              .parser = parse,
                              .args_doc = "[OP]",
                              .doc = "Lists the operations, or explains one."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    if (markdown) {
        print_page();
        return EXIT_DONE;
    }
    if (only) {
        const tp_op *op = tp_op_find(only);
        if (!op) return tp_say(argv[0], "there is no operation \"%s\"; tapir ops lists them", only);
        print_one(op);
        return EXIT_DONE;
    }
    for (int i = 0; tp_ops[i]; i++) printf("%-30s %s\n", tp_ops[i]->name, tp_ops[i]->synopsis);
    return EXIT_DONE;
}
