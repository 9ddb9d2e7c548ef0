// SPDX-License-Identifier: Apache-2.0
// HTTP client of the daemon over its Unix socket (client.c is the only includer of
// libcurl). One connection, kept open between calls. One thread per client.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "microvm/base/err.h"

struct client;

struct client_reply {
	unsigned status;
	char *body; // malloc'd, NUL-terminated behind len; NULL when empty
	size_t len;
	uint64_t console_offset, console_next; // of the console routes
};

int client_new(const char *socket_path, struct client **ret_c, struct mv_err *err);
void client_free(struct client *c); // NULL allowed

// One request; body may be NULL. 0 whatever the status; -ECONNREFUSED: the daemon can't be
// reached; other errors: the connection broke. Free the reply with client_reply_fini().
int client_call(struct client *c, const char *method, const char *path, const void *body, size_t len,
		struct client_reply *ret_r, struct mv_err *err);

// A request whose body is read from in_fd to its end (-1: none), or whose answer goes to out_fd
// (-1: into the reply) when its status is 2xx.
int client_stream(struct client *c, const char *method, const char *path, int in_fd, int out_fd,
		  struct client_reply *ret_r, struct mv_err *err);

// A GET whose answer is given to fn as it comes; nonzero ends it early, and is in *ret_stop.
typedef int client_data_fn(void *arg, const char *data, size_t n);
int client_follow(struct client *c, const char *path, client_data_fn *fn, void *arg, int *ret_stop,
		  struct client_reply *ret_r, struct mv_err *err);
void client_reply_fini(struct client_reply *r); // idempotent
