/* sub on the CPU. */
#include "ops/elementwise.h"

TP_BINARY_CPU(sub_cpu, x - y)
