// SPDX-License-Identifier: Apache-2.0
// Client of thawd, the daemon that freezes a running VM once and thaws any number of copies of it. A struct
// thaw_client is a connection to one daemon; each function here is one request on it, and one route of the
// interface that docs/api.md tells, where the fields of bodies and answers are. Bodies are JSON text.
//
// Functions return 0 or a negative errno value. -EREMOTEIO: the daemon answered and said no; -ECONNREFUSED,
// -ENOENT, -EACCES: it can't be reached; -ETIMEDOUT, -ECANCELED: the client's time-out, or its progress
// function; -EINVAL: what was passed can't be right, and nothing was sent. thaw_last_error() tells more.
//
// Threads: a client and its replies belong to one thread at a time; any number of clients may be used at
// once. Nothing here blocks or handles signals, prints, or ends the process; no SIGPIPE comes from a
// connection. A client is not for the child of a fork.
//
// ABI: within libthaw.so.0 functions, constants and fields stay, new ones are added. Structs that a caller
// fills begin with their size and grow at their end: use their INIT macros. Others are the library's to make.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#define THAW_API __attribute__((visibility("default")))

// --- clients ---------------------------------------------------------------------------------------

// One connection, made by the first request and kept between them. socket_path NULL: $THAW_SOCKET, else
// /run/thaw/thaw.sock (root) or $XDG_RUNTIME_DIR/thaw.sock. -ENAMETOOLONG, -ENOMEM; -ENOENT: there is no
// path.
struct thaw_client;
THAW_API int thaw_open(const char *socket_path, struct thaw_client **ret_client);

// NULL is allowed. Replies live on.
THAW_API void thaw_close(struct thaw_client *c);

// The path that the client connects to, and the version of the library.
THAW_API const char *thaw_socket_path(const struct thaw_client *c);
THAW_API const char *thaw_version(void);

// How long each request may take as a whole; 0, the default: as long as it takes. Not for streams (events,
// export, import, attach). A request that timed out may have been done: see thaw_set_idempotency_key().
THAW_API void thaw_set_timeout_ms(struct thaw_client *c, unsigned timeout_ms);

// The Idempotency-Key of the next POST that is sent, and of that alone: 1 to 128 visible ASCII characters,
// NULL: none. A POST that is repeated with the key of the first is done once, and gets the first one's
// answer. Without one a request may be done twice: a kept connection that ends before the first byte of an
// answer has it sent anew. -EINVAL: it is no such key.
THAW_API int thaw_set_idempotency_key(struct thaw_client *c, const char *key);

// Called some times a second while a request is in progress and whenever bytes have moved, with those of
// bodies; anything but 0 ends the request with -ECANCELED. It must not use the client. NULL: none.
typedef int thaw_progress_fn(void *arg, uint64_t sent_bytes, uint64_t received_bytes);
THAW_API void thaw_set_progress(struct thaw_client *c, thaw_progress_fn *fn, void *arg);

// --- errors ----------------------------------------------------------------------------------------

// Of the last function of the client that failed; all of it is valid until its next one.
struct thaw_error {
	int errnum;             // positive errno, as was returned
	unsigned status;        // HTTP status; 0: there was no answer
	const char *code;       // the daemon's word, as "vm_not_found", to decide by; "": none
	const char *message;    // a sentence for a person, never NULL
	const char *request_id; // as in the daemon's log; "": none
	const char *body;       // the whole answer, NUL-terminated; "": none
};
THAW_API const struct thaw_error *thaw_last_error(const struct thaw_client *c);

// --- replies ---------------------------------------------------------------------------------------

// An answer of status 2xx, or 304. Where a function has `ret`, it may be NULL; otherwise what it gives is to
// be freed, and is left alone on failure.
struct thaw_reply;
THAW_API void thaw_reply_free(struct thaw_reply *r); // NULL is allowed
THAW_API unsigned thaw_reply_status(const struct thaw_reply *r);

// As it came, NUL-terminated, never NULL; its length in *ret_len unless NULL.
THAW_API const char *thaw_reply_body(const struct thaw_reply *r, size_t *ret_len);

// A header field by its name in any case, as "ETag" or "X-Request-Id". NULL: it is not there.
THAW_API const char *thaw_reply_header(const struct thaw_reply *r, const char *name);

// A value in a JSON answer by its path: names and numbers of list elements with dots between, as
// "clones.0.vsock_path". What is not there, or of another type, is `otherwise`; strings live as long as the
// reply. thaw_reply_count() is the number of elements of a list or object, 0 otherwise.
THAW_API const char *thaw_reply_str(struct thaw_reply *r, const char *path, const char *otherwise);
THAW_API int64_t thaw_reply_int(struct thaw_reply *r, const char *path, int64_t otherwise);
THAW_API bool thaw_reply_bool(struct thaw_reply *r, const char *path, bool otherwise);
THAW_API size_t thaw_reply_count(struct thaw_reply *r, const char *path);

// Text as a JSON string, quotes included, to be freed with free(3). NULL: it is not UTF-8, or out of memory.
THAW_API char *thaw_quote(const char *text);

// --- any request -----------------------------------------------------------------------------------

// For what has no function of its own: conditional requests, request ids, answers as they come. The functions
// further down are this one.
struct thaw_request {
	size_t size;               // sizeof(struct thaw_request)
	const char *method, *path; // "GET", "/v1/vms"; a path is sent as it is
	const void *body;
	size_t body_len;
	const char *idempotency_key, *if_match, *if_none_match, *request_id; // NULL: none
	// Instead of body: fills buf and returns how many bytes, 0: the end; or a negative errno value.
	long (*read)(void *arg, void *buf, size_t size);
	void *read_arg;
	// Takes an answer of status 2xx as it comes; anything but 0 ends the request, and is returned if
	// negative.
	int (*write)(void *arg, const void *bytes, size_t n);
	void *write_arg;
	int stream; // 1: no time-out
};
#define THAW_REQUEST_INIT                                                                                    \
	{                                                                                                    \
		sizeof(struct thaw_request), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0                           \
	}
THAW_API int thaw_request(struct thaw_client *c, const struct thaw_request *q, struct thaw_reply **ret);

// --- daemon ----------------------------------------------------------------------------------------

// GET /v1/info; GET /v1/operations, long work on snapshots and how far it is; GET /v1/openapi.json; POST
// /v1/gc; GET /v1/metrics, the text for Prometheus.
THAW_API int thaw_info(struct thaw_client *c, struct thaw_reply **ret);
THAW_API int thaw_operations(struct thaw_client *c, struct thaw_reply **ret);
THAW_API int thaw_openapi(struct thaw_client *c, struct thaw_reply **ret);
THAW_API int thaw_gc(struct thaw_client *c, struct thaw_reply **ret);
THAW_API int thaw_metrics(struct thaw_client *c, bool per_vm, struct thaw_reply **ret);

// GET /v1/events: fn gets each event as one line of JSON, without the newline; anything but 0 ends it, and is
// returned if negative. since: the number of the last event seen, -1: those from now on. types: NULL for all,
// or as "vm,snapshot.created". follow false: it ends behind what is kept.
typedef int thaw_event_fn(void *arg, const char *json);
THAW_API int thaw_events(struct thaw_client *c, int64_t since, const char *types, bool follow,
			 thaw_event_fn *fn, void *arg);

// --- VMs -------------------------------------------------------------------------------------------

// POST /v1/vms; with "start":true in the body it runs. GET /v1/vms: those behind the name `after` (NULL:
// all), at most `limit` (0: all). `vm` is always a name or an id.
THAW_API int thaw_vm_create(struct thaw_client *c, const char *json, struct thaw_reply **ret);
THAW_API int thaw_vm_list(struct thaw_client *c, const char *after, unsigned limit, struct thaw_reply **ret);

// GET /v1/vms/{name}, at once or when its guest is ready; not in time: -EREMOTEIO with status 408.
THAW_API int thaw_vm_show(struct thaw_client *c, const char *vm, struct thaw_reply **ret);
THAW_API int thaw_vm_wait_ready(struct thaw_client *c, const char *vm, unsigned timeout_ms,
				struct thaw_reply **ret);

// POST /v1/vms/{name}/start; POST /v1/vms/{name}/pause; POST /v1/vms/{name}/resume.
THAW_API int thaw_vm_start(struct thaw_client *c, const char *vm, struct thaw_reply **ret);
THAW_API int thaw_vm_pause(struct thaw_client *c, const char *vm, struct thaw_reply **ret);
THAW_API int thaw_vm_resume(struct thaw_client *c, const char *vm, struct thaw_reply **ret);

// POST /v1/vms/{name}/stop: mode "power-button" (or NULL), "ctrl-alt-del" or "kill". A reply of status 202:
// it has not ended within wait_ms.
THAW_API int thaw_vm_stop(struct thaw_client *c, const char *vm, const char *mode, unsigned wait_ms,
			  struct thaw_reply **ret);

// DELETE /v1/vms/{name}.
THAW_API int thaw_vm_delete(struct thaw_client *c, const char *vm);

// POST /v1/vms/{name}/clone: forks it as it is now. json: as for thaw_clone().
THAW_API int thaw_vm_fork(struct thaw_client *c, const char *vm, const char *json, struct thaw_reply **ret);

// GET /v1/vms/{name}/metrics; GET /v1/vms/{name}/devices.
THAW_API int thaw_vm_metrics(struct thaw_client *c, const char *vm, struct thaw_reply **ret);
THAW_API int thaw_vm_devices(struct thaw_client *c, const char *vm, struct thaw_reply **ret);

// GET and PUT /v1/vms/{name}/metadata.
THAW_API int thaw_vm_metadata(struct thaw_client *c, const char *vm, struct thaw_reply **ret);
THAW_API int thaw_vm_set_metadata(struct thaw_client *c, const char *vm, const char *json);

// PATCH /v1/vms/{name}/nets/{net}; PATCH /v1/vms/{name}/drives/{drive}; PATCH /v1/vms/{name}/pmems/{pmem}.
THAW_API int thaw_vm_set_net(struct thaw_client *c, const char *vm, const char *net, const char *json,
			     struct thaw_reply **ret);
THAW_API int thaw_vm_set_drive(struct thaw_client *c, const char *vm, const char *drive, const char *json,
			       struct thaw_reply **ret);
THAW_API int thaw_vm_set_pmem(struct thaw_client *c, const char *vm, const char *pmem, const char *json,
			      struct thaw_reply **ret);

// GET and PATCH /v1/vms/{name}/balloon; POST /v1/vms/{name}/balloon/hint.
THAW_API int thaw_vm_balloon(struct thaw_client *c, const char *vm, struct thaw_reply **ret);
THAW_API int thaw_vm_set_balloon(struct thaw_client *c, const char *vm, const char *json,
				 struct thaw_reply **ret);
THAW_API int thaw_vm_balloon_hint(struct thaw_client *c, const char *vm, unsigned timeout_ms,
				  struct thaw_reply **ret);

// --- consoles --------------------------------------------------------------------------------------

// GET /v1/vms/{name}/console: what it said behind *offset, or says within wait_ms; *offset moves on. An empty
// body: nothing. PUT /v1/vms/{name}/console: n bytes, at most 32 KiB, all of them or none.
THAW_API int thaw_console_read(struct thaw_client *c, const char *vm, uint64_t *offset, unsigned wait_ms,
			       struct thaw_reply **ret);
THAW_API int thaw_console_write(struct thaw_client *c, const char *vm, const void *bytes, size_t n);

// Both at once: what comes from in_fd to the guest, what it says to out_fd, until one of the ends below.
// While out_fd takes nothing, both wait. The terminal's modes are the caller's business, who can make stop_fd
// a signalfd(2).
struct thaw_attach {
	size_t size;         // sizeof(struct thaw_attach)
	int in_fd, out_fd;   // -1: none
	int stop_fd;         // it ends when this can be read; -1: none
	int escape;          // it ends with this byte of in_fd; -1: none
	int ends_with_input; // 0: the end of in_fd does not end it
	uint64_t offset;     // where its output begins; then: where it goes on
};
#define THAW_ATTACH_INIT                                                                                     \
	{                                                                                                    \
		sizeof(struct thaw_attach), 0, 1, -1, -1, 0, 0                                               \
	}
enum thaw_attach_end {
	THAW_ATTACH_EXITED,      // the VM; all that it said was written
	THAW_ATTACH_ESCAPED,     // by `escape`
	THAW_ATTACH_INPUT_ENDED, // with ends_with_input
	THAW_ATTACH_STOPPED,     // by stop_fd
};
THAW_API int thaw_console_attach(struct thaw_client *c, const char *vm, struct thaw_attach *a,
				 enum thaw_attach_end *ret_end);

// --- snapshots -------------------------------------------------------------------------------------

// POST /v1/snapshots, as {"vm":"web","name":"base"}; GET /v1/snapshots, as thaw_vm_list().
THAW_API int thaw_snapshot_create(struct thaw_client *c, const char *json, struct thaw_reply **ret);
THAW_API int thaw_snapshot_list(struct thaw_client *c, const char *after, unsigned limit,
				struct thaw_reply **ret);

// GET /v1/snapshots/{name}; POST /v1/snapshots/{name}/verify; POST /v1/snapshots/{name}/flatten, json NULL:
// in place.
THAW_API int thaw_snapshot_show(struct thaw_client *c, const char *snapshot, struct thaw_reply **ret);
THAW_API int thaw_snapshot_verify(struct thaw_client *c, const char *snapshot, struct thaw_reply **ret);
THAW_API int thaw_snapshot_flatten(struct thaw_client *c, const char *snapshot, const char *json,
				   struct thaw_reply **ret);

// DELETE /v1/snapshots/{name}; force: with the snapshots that need it.
THAW_API int thaw_snapshot_delete(struct thaw_client *c, const char *snapshot, bool force);

// POST and DELETE /v1/snapshots/{name}/prepare; json NULL: its template, without waiting.
THAW_API int thaw_snapshot_prepare(struct thaw_client *c, const char *snapshot, const char *json,
				   struct thaw_reply **ret);
THAW_API int thaw_snapshot_unprepare(struct thaw_client *c, const char *snapshot);

// DELETE /v1/snapshots/{name}/working-set.
THAW_API int thaw_snapshot_forget_working_set(struct thaw_client *c, const char *snapshot);

// GET /v1/snapshots/{name}/export: one stream, to fd. PUT /v1/snapshots/{name}/import: such a stream from fd,
// to its end. What fd can't do is its errno value. A stream that was cut off is refused by the import.
THAW_API int thaw_snapshot_export(struct thaw_client *c, const char *snapshot, int fd);
THAW_API int thaw_snapshot_import(struct thaw_client *c, const char *snapshot, int fd,
				  struct thaw_reply **ret);

// POST /v1/snapshots/{name}/clone: VMs from a snapshot, as {"count":3}; json NULL: one. With a reply of
// status 207 some of "clones" have an "error".
THAW_API int thaw_clone(struct thaw_client *c, const char *snapshot, const char *json,
			struct thaw_reply **ret);

#ifdef __cplusplus
}
#endif
