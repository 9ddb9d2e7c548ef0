// SPDX-License-Identifier: Apache-2.0
// Finds the VMs that an earlier daemon left behind, by its records, and takes them over. What it
// finds is believed as far as it can be checked: a record by its checksum, name and process (number,
// start time and program), what the VM process answers as any message of one.
//
//   record, its process is there      adopted: listed at once, in state "unknown" until it answers;
//                                     killed when it does not within 30 s, or can't be what the
//                                     record says
//   of another version, process there left alone: not listed, and its files stay
//   record, its process is not there  all of it is removed; it is not listed
//   damaged record                    removed; then as without one
//   a socket without a record         the VM is told to end, and the socket is removed
//
// Loop's thread only, before the daemon listens.
#pragma once
#include "api/server.h"

// After vmrecs_init(), before what is left without a record is removed (layers_init() and vsock sockets).
void adopt_begin(struct server *s);

// Runs the loop until all have answered, or for 2 s: one that hangs must not hang the daemon.
// 0, or -errno of the loop.
int adopt_wait(struct server *s);
