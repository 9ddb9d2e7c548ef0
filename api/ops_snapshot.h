// SPDX-License-Identifier: Apache-2.0
// The store's errors in words of the API; shared by ops_snapshot.c and ops_clone.c.
#pragma once
#include "api/error.h"

// ENOENT and EEXIST have codes of their own, the rest is as in api_from(). Returns -EINVAL.
int snap_error(struct api_err *err, const struct mv_err *e, enum api_code otherwise);

// A name of a route that no snapshot can have: not found. 0 or -EINVAL.
int snap_name_check(const char *name, struct api_err *err);
