// SPDX-License-Identifier: Apache-2.0
// What huge pages this host has (enum gmem_pages), read from /sys at each call. Any thread.
#pragma once
#include "api/error.h"
#include "microvm/base/vmcfg.h"

// Can a VM have the huge_pages that it is to have? API_HUGE_PAGES_UNAVAILABLE says why not and what to do.
// Others may take them meanwhile: then its process fails with the same code.
int hugepages_check(const struct vmcfg *cfg, struct api_err *err);

// One line for people; false: there are none of any kind.
bool hugepages_describe(char *text, size_t size);
