// SPDX-License-Identifier: Apache-2.0
// The metadata service of a VM: its guest's document by HTTP at a link-local address, as EC2's instance
// metadata service and Firecracker's MMDS have it. A VM has one, its network devices answer for it
// (vio_net_set_mmds()): mmds_http.c knows the requests, mmds_tcp.c the frames, net_mmds.c the queues.
//
// Version 2 gives the document only to who shows a token that it was given before, for a time: who can make
// a program in the guest fetch a URL can't make it send a PUT request and a header. Tokens are random numbers
// in a table here. Neither they nor the document are in any snapshot: a clone begins without them.
//
// Threads: any; its own lock, which is taken last. Lifetime: longer than that of the devices. Trust: requests
// are hostile, the document comes from the daemon.
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "microvm/base/util.h"

enum {
	MMDS_TOKENS = 256, // of the next one the place is that of the one that ends first
	MMDS_TOKEN_BYTES = 24,
	MMDS_TOKEN_CHARS = 2 * MMDS_TOKEN_BYTES,
	MMDS_TTL_MAX_S = 21600,
	MMDS_DOCUMENT_MAX_BYTES = 64 * 1024,
};
#define MMDS_HTTP_PORT 80

struct mmds_config {
	uint8_t address[4];
	bool tokens;      // version 2
	bool imds_compat; // plain text whatever a request accepts
};

struct mmds {
	struct mmds_config config;
	pthread_mutex_t lock; // for all that follows
	const char *document; // the caller's, JSON
	size_t document_len;
	struct mmds_token {
		uint64_t end_ns; // 0: none
		uint8_t bytes[MMDS_TOKEN_BYTES];
	} token[MMDS_TOKENS];
};

struct mmds *mmds_new(const struct mmds_config *config); // NULL: out of memory
void mmds_free(struct mmds *m);                          // NULL allowed

// From now on; the bytes stay the caller's, who gives others before they go. An empty object at first.
void mmds_set_document(struct mmds *m, const void *bytes, size_t len);

// mmds_http.c: answers the first of these requests, see struct mmds_tcp_app; arg is a struct mmds.
size_t mmds_http_request(void *arg, const uint8_t *bytes, size_t len, struct mv_buf *answer, bool *ret_last);

// For mmds_http.c. A token for so long, as text; is this one good?
void mmds_make_token(struct mmds *m, uint32_t ttl_s, char ret_text[MMDS_TOKEN_CHARS]);
bool mmds_token_ok(struct mmds *m, const char *text, size_t len);

// What a path leads to, as JSON or as plain text. -ENOENT: nothing; -ENOTSUP: it has no plain text.
int mmds_look_up(struct mmds *m, const char *path, size_t len, bool plain, struct mv_buf *out);
