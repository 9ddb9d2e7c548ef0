// SPDX-License-Identifier: Apache-2.0
// The log in Firecracker's form: "TIME [ID:THREAD:LEVEL:PLACE] text", to standard output, a file or a FIFO.
// Lines of the VM process (microvm/base/log.h) come by a pipe and are put into the same form. Loop's thread.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "api/error.h"
#include "microvm/base/loop.h"

struct fc_logger;

enum fc_level { FC_OFF, FC_ERROR, FC_WARN, FC_INFO, FC_DEBUG, FC_TRACE };

struct fc_log {
	const char *id;
	int fd; // -1: standard output
	enum fc_level level;
	bool show_level, show_origin;
	uint64_t missed; // lines that the file or FIFO did not take
	// of the VM process
	int pipe_fd;
	struct mv_watch watch;
	char line[600];
	unsigned n_line;
};

void fc_log_init(struct fc_log *g, const char *id);
void fc_log_fini(struct fc_log *g);
int fc_log_set(struct fc_log *g, const struct fc_logger *to, struct api_err *err);

// A pipe for the VM process's standard error; the writing end is the caller's.
int fc_log_pipe(struct fc_log *g, struct mv_loop *l, int *ret_write_fd);
void fc_log_drain(struct fc_log *g);

void fc_log_write(struct fc_log *g, enum fc_level level, const char *file, int line, const char *fmt, ...)
	__attribute__((format(printf, 5, 6)));
#define fc_log(fc, level, ...) fc_log_write(&(fc)->log, (level), __FILE__, __LINE__, __VA_ARGS__)

// A file or FIFO that is written to and never waited for; made if it is not there.
int fc_open_output(const char *what, const char *path, int *ret_fd, struct api_err *err);
