/* The float formula of put_tokens, once. */
#ifndef TP_PUT_TOKENS_MATH_H
#define TP_PUT_TOKENS_MATH_H
#include "ops/math.h"
static inline TP_HD float put_f(float x, float w, float s) { return x + w * s; }
#endif
