// SPDX-License-Identifier: Apache-2.0
// Parking is not there on arm64: an idle VM keeps its VM of KVM's. Nothing below is reached once
// arch_park_check() refused.
#include <errno.h>

#include "microvm/arch/arch.h"

static int refuse(struct mv_err *err) { return mv_fail(err, ENOTSUP, "parking is not there on arm64"); }

int arch_park_check(struct vm *vm, struct mv_err *err)
{
	(void)vm;
	return refuse(err);
}

int arch_vcpu_waits(struct vcpu *c, bool *ret_waits, uint64_t *ret_left_ns, struct mv_err *err)
{
	(void)c;
	(void)ret_waits;
	(void)ret_left_ns;
	return refuse(err);
}

int arch_park(struct vm *vm, struct mv_err *err)
{
	(void)vm;
	return refuse(err);
}

int arch_unpark(struct vm *vm, struct mv_err *err)
{
	(void)vm;
	return refuse(err);
}
