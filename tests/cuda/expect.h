/* Checks that are counted and, where one fails, told in a line. */
#ifndef TP_TESTS_EXPECT_H
#define TP_TESTS_EXPECT_H
#include <stdbool.h>
#include <stdio.h>

static int failed, checks;
static void expect(bool ok, const char *what, const char *who) {
    checks++;
    if (ok) return;
    failed++;
    printf("FAILED %s: %s\n", who, what);
}
#endif
