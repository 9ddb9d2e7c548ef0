// SPDX-License-Identifier: Apache-2.0
// The API under load: many connections of one client, each with one request at a time. One thread.
#pragma once
#include "bench/daemon.h"

int bench_api_load(const struct bench_env *env, struct daemon *d, struct bench_results *res); // 0 or -errno
