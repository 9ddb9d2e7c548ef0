// SPDX-License-Identifier: Apache-2.0
// Templates of compressed snapshots: guest memory as one memfd per snapshot that
// thaw-pager fills on demand and in the background, shared by all clones on this host.
// The daemon keeps every descriptor, so the pager can be replaced at any time. A template
// lives until it is dropped and its last clone has ended. Loop's thread only.
//
//                lazy_new             PAGER_COMPLETE
//   (snapshot) ----------> filling -------------------> complete: sealed, clones need no
//                             clones have a userfaultfd             userfaultfd
#pragma once
#include <sys/queue.h>

#include "api/json.h"
#include "api/server.h"
#include "microvm/base/msg.h"
#include "snapshot/manifest.h"
#include "snapshot/store_chain.h"

struct lazy;
struct vm;

// Once, at start: can there be a userfaultfd? `forbidden`: act as if not.
void lazy_init(struct server *s, bool forbidden);
void lazy_fini(struct server *s);

// The template of exactly this snapshot, or NULL. Borrowed.
struct lazy *lazy_find(struct server *s, const struct manifest *m);

// Makes it; the memory files were checked, and are taken over when it succeeds. fill: in the
// background, too. A reference for the caller is in *ret_lazy.
int lazy_new(struct server *s, const struct manifest *m, struct store_chain *files, bool fill,
	     struct lazy **ret_lazy, struct mv_err *err);
struct lazy *lazy_ref(struct lazy *t);
void lazy_unref(struct lazy *t); // NULL is fine
void lazy_fill(struct lazy *t);  // in the background from now on
// The pages of the working set before all others; the first one that is given counts. fd -1:
// none. Borrowed.
void lazy_prefill(struct lazy *t, int working_set_fd);

// No new clones from it: the snapshot was deleted, or the template is to go.
bool lazy_drop(struct server *s, const char *name); // false: there was none

// fn is called once: when it is complete, or now when it is already. Waiting starts the
// background fill. Damaged chunks: never.
LIST_HEAD(lazy_waiters, lazy_waiter);
struct lazy_waiter {
	LIST_ENTRY(lazy_waiter) link;
	void (*fn)(void *arg, bool complete); // false: it can't become complete
	void *arg;
};
void lazy_wait(struct lazy *t, struct lazy_waiter *w, void (*fn)(void *arg, bool complete), void *arg);

// The same for its working set: when the pager has loaded what it can of it (now, without one).
void lazy_wait_prefilled(struct lazy *t, struct lazy_waiter *w, void (*fn)(void *arg, bool complete),
			 void *arg);

bool lazy_is_complete(const struct lazy *t);
bool lazy_must_be_complete(const struct server *s); // there is no userfaultfd here

// The descriptors for a clone: *ret_memory_fd, and *ret_uffd_fd for /dev/userfaultfd, or -1.
// The VM is counted as a clone until lazy_clone_end(). -errno.
int lazy_clone_begin(struct lazy *t, struct vm *vm, int *ret_memory_fd, int *ret_uffd_fd);
// MSG_LAZY of its process; takes the descriptor. -EPROTO: not one of ours.
int lazy_clone_take(struct vm *vm, struct msg *m);
void lazy_clone_end(struct vm *vm);         // idempotent
bool lazy_clone_waits(const struct vm *vm); // restores with a userfaultfd

js *lazy_json(const struct lazy *t);
js *lazy_clone_json(const struct vm *vm); // of the template that a clone uses; NULL: none
void lazy_metrics(struct server *s);      // sets the metrics of templates and the pager

// For pager.c.
bool lazy_needs_pager(const struct server *s);
void lazy_give_all(struct server *s);
void lazy_complete(struct server *s, uint64_t template_id);
void lazy_prefilled(struct server *s, uint64_t template_id);
void lazy_damaged(struct server *s, uint64_t template_id);
void lazy_corrupt(struct server *s, uint64_t clone_id, uint64_t chunk);
void lazy_no_pager(struct server *s); // for good: what waits for pages is ended
