// SPDX-License-Identifier: Apache-2.0
// Long work on snapshots, and how far it is: GET /v1/operations. Embedded in what does the work; begun and
// ended on the loop's thread, while a worker's thread or a VM process counts (microvm/base/progress.h).
#pragma once
#include "api/http.h"
#include "api/server.h"
#include "microvm/base/progress.h"
#include "microvm/base/vmcfg.h"

enum operation_kind {
	OPERATION_SNAPSHOT,
	OPERATION_VERIFY,
	OPERATION_FLATTEN,
	OPERATION_EXPORT,
	OPERATION_IMPORT
};

struct operation { // zero-initialised: none
	LIST_ENTRY(operation) link;
	bool listed;
	enum operation_kind kind;
	char snapshot[VMCFG_NAME_LEN], vm[VMCFG_NAME_LEN]; // vm: empty: of none
	struct mv_log_tag request;
	uint64_t began_ns;
	struct mv_progress progress;
	int vm_fd;         // listed: while a VM process counts, in this file; -1: none does
	uint64_t vm_bytes; // of at most so many: it may write anything
};

// vm: NULL: of none.
void operation_begin(struct server *s, struct operation *o, enum operation_kind kind, const char *snapshot,
		     const char *vm, const struct http_req *r);
// From here on a VM process counts, in the file that is returned (the operation's own); -1: there is none,
// and nothing will be told. Then again this one's threads do.
int operation_by_vm(struct operation *o, uint64_t memory_bytes);
void operation_by_us(struct operation *o);
void operation_end(struct operation *o); // idempotent

extern const char *const operation_kinds[], *const operation_steps[];
