/* stub */
#include "cli/tape.h"
void tape_svg(const tape_log *l, FILE *f, const char *title) { (void)l, (void)f, (void)title; }
void tape_dot(const tape_log *l, FILE *f, const char *title) { (void)l, (void)f, (void)title; }
