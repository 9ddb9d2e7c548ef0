// SPDX-License-Identifier: Apache-2.0
// Errors. Every function that can fail returns 0 (or a count) or -errno. Setup,
// save and restore paths also fill a struct mv_err with a sentence for a person:
// what was wrong with which input, and what to do. Hot paths use -errno only.
// Any thread; no allocation; a NULL struct mv_err is allowed everywhere.
#pragma once

struct mv_err {
	int code;      // positive errno; 0 = nothing failed
	char msg[360]; // always NUL-terminated
};

// Sets the message and returns -code.
int mv_fail(struct mv_err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

// Puts "context: " before a message already there; returns -err->code (-EIO when
// err is NULL). Used once per module boundary.
int mv_wrap(struct mv_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
