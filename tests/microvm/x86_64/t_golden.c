// SPDX-License-Identifier: Apache-2.0
#include "tests/microvm/t_golden.h"

#include <stddef.h>

#include "microvm/arch/x86_64/vcpu_state.h"
#include "microvm/arch/x86_64/x86.h"

static const char *const names[] = { "plain", "net", "devices", "map", NULL };
const struct t_golden t_golden = { "", names, &x86_vcpu_table, &x86_machine_table };
