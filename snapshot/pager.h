// SPDX-License-Identifier: Apache-2.0
// thaw-pager: fills the shared memory of templates on demand. One process per daemon, one
// thread and a helper (pager_helper.h), started by thawd with a SOCK_SEQPACKET socket as
// descriptor 3; it opens nothing, and could not (sandbox.h).
// Messages have the form of microvm/base/msg.h.
//
// A template is a compressed memory file (snapshot/chunk.h) and a memfd as large as the
// guest's memory. Clones map the memfd privately and give their userfaultfd, registered
// for missing pages. A fault is answered by decoding the chunk into the memfd with write(2)
// (so that no page is seen before it is whole) and waking the thread; every chunk is decoded
// at most once for all clones. A chunk of zeros is mapped as the kernel's page of zeros and
// takes no memory. What is filled is in a second memfd that outlives the pager.
//
// The pager may be killed at any moment: the daemon keeps all descriptors and gives them to
// the next one, which decodes again what is not marked (the same bytes) and wakes all
// ranges, so that faults whose messages were lost come again.
#pragma once
#include <stdatomic.h>
#include <stdint.h>

#include "microvm/base/msg.h"

enum pager_msg {
	// daemon -> pager
	PAGER_TEMPLATE = 1, // id: its number; struct pager_template; fds: memfd, status
	PAGER_CLONE,        // id: its number; struct pager_clone; fd: userfaultfd
	PAGER_END_CLONE,    // id: the clone's
	PAGER_END_TEMPLATE, // id: the template's, which has no clones any more
	PAGER_FILL,         // id: the template's: fill in the background from now on
	PAGER_FILES,        // id: of the template that comes next; fds: memory files, newest first
	PAGER_WORKING_SET,  // id: the template's; struct pager_working_set; fd: snapshot/working_set.h:
			    // its pages are loaded before all others
	// pager -> daemon
	PAGER_COMPLETE = 100, // id: the template's: every chunk is there; may come twice
	PAGER_DAMAGED,        // id: the template's: a chunk was found that can't be read
	PAGER_PREFILLED,      // id: the template's: its working set is there, as far as it can be
	PAGER_CORRUPT,        // id: the clone's; struct pager_corrupt: it waits for a bad chunk
};

struct pager_template {
	uint64_t memory_bytes;
	bool fill;     // in the background, when there are no faults
	bool raw_base; // the last of the files is raw
};

#define PAGER_FILES_MAX 100u // in one message; as many messages as it takes
struct pager_working_set {
	char snapshot_id[MV_UUID_LEN]; // that it must be of
};

struct pager_clone {
	uint64_t template_id;
	struct msg_lazy lazy;
};

struct pager_corrupt {
	uint64_t chunk;
};

extern const struct mv_table pager_template_table, pager_clone_table, pager_corrupt_table,
	pager_working_set_table;

// The status memfd: counters, then a bit per chunk that is filled. Written by the pager
// alone; the daemon reads the counters.
struct pager_status {
	_Atomic uint64_t faults, zero_faults; // messages of userfaultfd; those of chunks of zeros
	_Atomic uint64_t fills;               // chunks decoded into the memfd
	_Atomic uint64_t background_fills;    // of them, without a fault
	_Atomic uint64_t prefills;            // chunks decoded for some pages only, of the working set
	_Atomic uint64_t filled, stored;      // chunks that are there; all that have to be
	_Atomic uint64_t bad;                 // found damaged
};
#define PAGER_STATUS_HEAD 4096u
static inline uint64_t pager_status_bytes(uint64_t n_chunks)
{
	return PAGER_STATUS_HEAD + (n_chunks + 7) / 8;
}

// Of a chunk's pages (a bit each), those that share a page of the host, of n_each, with one of them, as well:
// a page of the template is all there or not.
uint32_t pager_whole_pages(uint32_t pages, unsigned n_each);

// The program: pager_init() makes its descriptors and threads, once; pager_run() makes nothing
// but memory and serves until the daemon closes the socket. 0 or -errno.
int pager_init(int socket_fd, struct mv_err *err);
int pager_run(void);
