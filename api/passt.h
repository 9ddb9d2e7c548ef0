// SPDX-License-Identifier: Apache-2.0
// One passt process: user-mode networking for one virtio-net device, without any privilege
// (https://passt.top). It runs in the foreground, in namespaces of its own making, and ends
// when its socket does.
//
// Every VM's network looks the same from inside, so that clones of one snapshot need no new
// addresses: the guest is PASST_ADDRESS, everything else is behind PASST_GATEWAY.
// Any one thread. What it prints is not trusted.
#pragma once
#include <sys/types.h>

#include "microvm/base/err.h"
#include "microvm/base/vmcfg.h"

#define PASST_ADDRESS "10.0.2.15" // by DHCP, prefix length 24
#define PASST_GATEWAY "10.0.2.2"
#define PASST_DNS "10.0.2.3"          // the host's first resolver
#define PASST_MAC "9a:55:9a:55:9a:55" // of the gateway

struct passt {
	pid_t pid;
	int pidfd;
	int out_fd; // what it prints; non-blocking
	bool ready; // its ports are bound, it forwards
	// its last message; empty: none
	char message[200];
	char line[200];
	unsigned n_line;
};

// Starts it on `theirs`, a connected Unix stream socket (stays the caller's). -ENOENT: not
// installed. The caller reaps it, then passt_fini().
int passt_start(const struct vmcfg_user *u, int theirs, struct passt *ret_p, struct mv_err *err);

// Reads what it has printed: 0; -EAGAIN: no more for now; -EPIPE: no more ever. Updates ready
// and message.
int passt_read(struct passt *p);

void passt_fini(struct passt *p); // closes the descriptors; idempotent
