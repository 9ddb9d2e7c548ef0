// SPDX-License-Identifier: Apache-2.0
// The guest's serial port on the host's side: output to standard output, a file or a FIFO; input from
// standard input when that is a terminal, which is in raw mode while the VM runs. Whoever does not read makes
// nobody wait: the guest's output then piles up in the VM process, which keeps the last of it. Input is read
// when the one before has arrived there. Loop's thread.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <termios.h>

#include "api/error.h"
#include "microvm/base/loop.h"
#include "microvm/base/token_bucket.h"

#define FC_SERIAL_PENDING (128u * 1024)

struct fc;
struct fc_serial;

struct fc_serial_port {
	struct fc *fc;
	int fd; // -1: standard output
	struct mv_rate rate;
	struct mv_watch out, in;
	uint8_t pending[FC_SERIAL_PENDING]; // that the other end has not taken yet
	uint32_t n_pending;
	uint64_t lost_bytes, dropped_bytes; // by nobody reading; by the rate limit
	struct termios before;
	bool raw;
};
struct msg_reply;

void fc_serial_init(struct fc_serial_port *p, struct fc *fc);
int fc_serial_set(struct fc_serial_port *p, const struct fc_serial *to, struct api_err *err);
void fc_serial_start(struct fc_serial_port *p);                                 // the VM runs: input counts
void fc_serial_input_done(struct fc_serial_port *p, const struct msg_reply *r); // what was typed went
void fc_serial_output(struct fc_serial_port *p, const uint8_t *data, uint32_t len);
void fc_serial_restore_terminal(struct fc_serial_port *p); // idempotent
void fc_serial_fini(struct fc_serial_port *p);             // what is pending is written, if it is taken soon
