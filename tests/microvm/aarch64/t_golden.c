// SPDX-License-Identifier: Apache-2.0
#include "tests/microvm/t_golden.h"

#include <stddef.h>

#include "microvm/arch/aarch64/a64.h"
#include "microvm/arch/aarch64/vcpu_state.h"

static const char *const names[] = { "plain", "net", "devices", NULL };
const struct t_golden t_golden = { "aarch64/", names, &a64_vcpu_table, &a64_machine_table };
