/* The checks behind cuda_op_test. */
#ifndef OPCHECK_DEVICE_H
#define OPCHECK_DEVICE_H
#include "opcheck.h"
void op_check_device(op_report *r, const tp_op *op, const tp_sample *s);
void op_check_device_refusal(op_report *r, const tp_op *op, const tp_sample *s);
void op_check_device_gradient(op_report *r, const tp_op *op, const tp_sample *s);
/* The test program says: threads in another order (on the CPU; a GPU has its own), and the ops that
 * are for f32 alone. */
void op_device_order(int other);
bool op_device_f32_only(const tp_op *op);
#endif
