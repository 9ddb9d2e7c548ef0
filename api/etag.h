// SPDX-License-Identifier: Apache-2.0
// Versions of VMs and snapshots as HTTP shows and checks them: ETag, If-None-Match, If-Match (RFC 9110
// section 13). A VM's is a number that vm_changed() makes anew, so it costs nothing in the path of a clone; a
// snapshot's is a hash of what it shows, made when somebody asks. Loop's thread only.
#pragma once
#include "api/routes.h"
#include "snapshot/manifest.h"

#define ETAG_LEN 20
struct etag {
	char text[ETAG_LEN]; // with its quotes
};

bool etag_shown(const struct route *t);        // answers have an ETag
bool etag_unchanged_of(const struct route *t); // If-None-Match is looked at
bool etag_match_of(const struct route *t);     // of a VM or snapshot: If-Match is looked at

struct etag etag_of_vm(const struct vm *vm);
struct etag etag_of_snapshot(struct server *s, const struct manifest *m);

// The version of a snapshot takes reading all manifests of its chain, so a thread looks (etag_look()) before
// etag_check(), if etag_must_look(). What publishes or deletes one meanwhile is in no order with that, as it
// is with the handlers, which leave it to a worker.
struct etag_seen {
	struct manifest m;
	int result; // of store_show()
	struct mv_err err;
	struct etag tag;
};
bool etag_must_look(const struct route *t, struct http_req *r, const char *name);
void etag_look(struct server *s, const char *name, struct etag_seen *ret_seen); // any thread

// Before a handler: 0, or precondition_failed (-EINVAL). A request that is let through by a VM's tag is the
// only one: the VM gets another. An object that does not exist is left to the handler. seen: NULL: there was
// nothing to look at.
int etag_check(struct server *s, const struct route *t, struct http_req *r, const char *name,
	       const struct etag_seen *seen, struct api_err *err);

// Answers 304 if the client has this one already.
bool etag_reply_unchanged(struct http_req *r, const struct etag *tag);
void etag_reply(struct http_req *r, unsigned status, const struct etag *tag, js *body);
void etag_reply_vm(struct http_req *r, unsigned status, const struct vm *vm);
