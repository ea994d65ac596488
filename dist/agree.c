/* Do all ranks bring the same text? */
#include "dist/comm.h"
#include <stdio.h>
#include <string.h>

enum { SHOWN = 100 };

/* The line in which the texts part, from its start or shortly before the difference. */
static void show(char to[SHOWN], const char *text, const char *other) {
    size_t same = 0;
    while (text[same] && text[same] == other[same]) same++;
    size_t from = same;
    while (from && text[from - 1] != '\n' && same - from < SHOWN / 2) from--;
    snprintf(to, SHOWN, "%.*s", (int)strcspn(text + from, "\n"), text + from);
}

tp_status tp_comm_agree(tp_comm *m, tp_ctx *c, const char *what, const char *text) {
    if (!m->t) return TP_OK;
    tp_status st = TP_OK;
    struct {
        char theirs[SHOWN], first[SHOWN];
    } shown = {{0}, {0}};
    char *first = NULL; /* rank 0's text */
    int64_t bytes = (int64_t)strlen(text) + 1;
    double *other = tp_calloc(c, (size_t)m->size, sizeof *other); /* 1: has another text */
    if (!other || (st = tp_comm_broadcast(m, c, &bytes, sizeof bytes, 0))) goto done;
    if (!(first = tp_malloc(c, (size_t)bytes))) goto done;
    if (m->rank == 0) memcpy(first, text, (size_t)bytes);
    if ((st = tp_comm_broadcast(m, c, first, (size_t)bytes, 0))) goto done;
    other[m->rank] = strcmp(first, text) != 0;
    if ((st = tp_comm_sum_f64(m, c, other, m->size))) goto done;
    int rank = 0;
    while (rank < m->size && !(other[rank] > 0)) rank++;
    if (rank == m->size) goto done;
    if (rank == m->rank) {
        show(shown.theirs, text, first);
        show(shown.first, first, text);
    }
    if ((st = tp_comm_broadcast(m, c, &shown, sizeof shown, rank))) goto done;
    m->disagreed = !tp_error_status(c);
    st = tp_fail(c, TP_EARG, "rank %d has another %s than rank 0: \"%s\", not \"%s\"", rank, what,
                 shown.theirs, shown.first);
    tp_comm_barrier(m, c); /* all know it before the first leaves */
done:
    tp_free(first);
    tp_free(other);
    return st ? st : tp_error_status(c);
}
