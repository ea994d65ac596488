/* The float formulas of log, once: log_cpu.c and log.cu both call them. */
#ifndef TP_LOG_MATH_H
#define TP_LOG_MATH_H
#include "ops/math.h"

static inline TP_HD float log_f(float x) { return tp_logf(x); }
#endif
