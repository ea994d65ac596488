/* The tasks, one function each that makes an item and, where an answer is not simply compared, one
 * that checks it. */
#ifndef TP_TASK_LIST_H
#define TP_TASK_LIST_H
#include "rl/task.h"

/* Numbers of one item: the n-th is uniform in [lo, hi]. */
typedef struct tp_dice {
    uint64_t seed, item;
    uint32_t n;
} tp_dice;
int64_t tp_roll(tp_dice *d, int64_t lo, int64_t hi);

typedef struct tp_task_text {      /* room for TP_TASK_TEXT bytes each */
    char *prompt, *answer, *steps; /* steps: the scratchpad, without the "#" and the answer */
} tp_task_text;
typedef struct tp_task_kind {
    const char *name, *about;
    int64_t min, max, least, most; /* sizes: the task's own, those it can have */
    void (*make)(tp_dice *d, int64_t size, tp_task_text *out);
    bool (*right)(const char *prompt, const char *answer, size_t n); /* NULL: equal text */
} tp_task_kind;
extern const tp_task_kind tp_task_kinds[]; /* ends with .name = NULL */
bool tp_countdown_right(const char *prompt, const char *answer, size_t n);
#endif
