// SPDX-License-Identifier: Apache-2.0
// A daemon of its own for a part of the bench, in a folder below env->out. One thread.
#pragma once
#include <sys/types.h>

#include "api/json.h"
#include "bench/bench.h"

struct daemon {
	pid_t pid;
	char dir[600], socket[700];
	struct thaw_client *client;
};

// 0 or -errno; daemon_stop() is to be called in both cases, and removes the folder.
int daemon_start(const struct bench_env *env, struct daemon *d, const char *option); // NULL: none more
void daemon_stop(struct daemon *d);

// One request that must succeed: a failure is printed, *ret is -errno. The answer, to be freed, or NULL
// when there is none.
js *daemon_call(struct daemon *d, const char *method, const char *path, const char *body, int *ret);
int daemon_act(struct daemon *d, const char *method, const char *path, const char *body);

void daemon_pause_ms(int ms);
