/* The kernel behind every list on the CPU: converts to doubles, runs the op's oracle, converts
 * back. */
#ifndef TP_REFERENCE_H
#define TP_REFERENCE_H
#include "ops/op.h"
extern const tp_kernel tp_reference_kernel;
#endif
