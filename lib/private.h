// SPDX-License-Identifier: Apache-2.0
// Between the files of the library; see thaw.h for threads and errors. None of these names leaves it.
#pragma once
#include <poll.h>
#include <stdarg.h>

#include "lib/thaw.h"

struct lib_buf { // failed stays set; then appends do nothing
	char *p; // NUL-terminated, or NULL
	size_t len, cap;
	bool failed;
};
void lib_append(struct lib_buf *b, const void *bytes, size_t n);

struct thaw_reply {
	unsigned status;
	struct lib_buf body, headers; // headers: "Name: value" and NUL, one after the other
	void *json;                   // parsed by the first reader
	bool is_no_json;
};

// Two requests can be in progress, each in its slot.
enum lib_slot { LIB_MAIN, LIB_BESIDE, LIB_N_SLOTS };

// http.c. All fill the client's error when they fail.
int lib_begin(struct thaw_client *c, enum lib_slot slot, const struct thaw_request *q);
// Moves what is in progress; waits up to a quarter of a second for it, or for one of fds, whose revents it
// sets.
int lib_step(struct thaw_client *c, struct pollfd *fds, unsigned n);
bool lib_in_progress(const struct thaw_client *c, enum lib_slot slot);
// What is not in progress any more. *ret_reply, NULL allowed, is to be freed.
int lib_end(struct thaw_client *c, enum lib_slot slot, struct thaw_reply **ret_reply);
void lib_abandon(struct thaw_client *c, enum lib_slot slot); // idempotent; its connection is closed

// Sets the error, and returns -errnum.
int lib_fail(struct thaw_client *c, int errnum, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
// From an answer that says no.
int lib_refused(struct thaw_client *c, const struct thaw_reply *r);

void lib_forget_json(struct thaw_reply *r);

bool lib_name_ok(const char *name);
// json NULL: no body. path has been made of checked names.
int lib_call(struct thaw_client *c, const char *method, const char *json, struct thaw_reply **ret,
	     const char *fmt, ...) __attribute__((format(printf, 5, 6)));
int lib_wrong_name(struct thaw_client *c, const char *name);
// Copies a caller's sized struct; -EINVAL: too short, or it has what this version does not know.
int lib_take_sized(struct thaw_client *c, void *to, size_t size, const void *from);
