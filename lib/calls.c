// SPDX-License-Identifier: Apache-2.0
// The routes of /v1, one function each, but for consoles (console.c).
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/private.h"

#define MAX_NAME 64
#define MAX_EVENT (1u << 20)
#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// As the daemon's names and ids are; so nothing else gets into a path.
bool lib_name_ok(const char *name)
{
	size_t n = name ? strlen(name) : 0;
	return n && n <= MAX_NAME && strspn(name, LETTERS) && strspn(name, LETTERS "_.-") == n;
}

int lib_wrong_name(struct thaw_client *c, const char *name)
{
	return lib_fail(
		c, EINVAL,
		"\"%.80s\" is not a name: use 1 to 64 letters, digits, '_', '.' or '-', starting with a "
		"letter or digit",
		name ? name : "");
}

int lib_take_sized(struct thaw_client *c, void *to, size_t size, const void *from)
{
	size_t given = *(const size_t *)from, known = given < size ? given : size;
	const char *bytes = from;
	if (given < sizeof given || given > 4096)
		return lib_fail(c, EINVAL, "a struct was passed without its size");
	for (size_t i = known; i < given; i++)
		if (bytes[i])
			return lib_fail(c, EINVAL, "a struct has what libthaw %s does not know",
					THAW_VERSION);
	memset(to, 0, size);
	memcpy(to, from, known);
	return 0;
}

int lib_call(struct thaw_client *c, const char *method, const char *json, struct thaw_reply **ret,
	     const char *fmt, ...)
{
	char path[400];
	va_list ap;
	struct thaw_request q = THAW_REQUEST_INIT;
	va_start(ap, fmt);
	int n = vsnprintf(path, sizeof path, fmt, ap);
	va_end(ap);
	if (n < 0 || (size_t)n >= sizeof path)
		return lib_fail(c, EINVAL, "too long");
	q.method = method;
	q.path = path;
	q.body = json;
	q.body_len = json ? strlen(json) : 0;
	return thaw_request(c, &q, ret);
}

// tail: behind the name.
static int of_vm(struct thaw_client *c, const char *method, const char *vm, const char *tail,
		 const char *json, struct thaw_reply **ret)
{
	if (!lib_name_ok(vm))
		return lib_wrong_name(c, vm);
	return lib_call(c, method, json, ret, "/v1/vms/%s%s", vm, tail);
}

static int of_snapshot(struct thaw_client *c, const char *method, const char *snapshot, const char *tail,
		       const char *json, struct thaw_reply **ret)
{
	if (!lib_name_ok(snapshot))
		return lib_wrong_name(c, snapshot);
	return lib_call(c, method, json, ret, "/v1/snapshots/%s%s", snapshot, tail);
}

static int list(struct thaw_client *c, const char *kind, const char *after, unsigned limit,
		struct thaw_reply **ret)
{
	char most[32] = "";
	if (after && !lib_name_ok(after))
		return lib_wrong_name(c, after);
	if (limit)
		snprintf(most, sizeof most, "limit=%u", limit);
	return lib_call(c, "GET", NULL, ret, "/v1/%s%s%s%s%s%s", kind, after || limit ? "?" : "", most,
			after && limit ? "&" : "", after ? "after=" : "", after ? after : "");
}

// --- daemon ---------------------------------------------------------------------------------------
int thaw_info(struct thaw_client *c, struct thaw_reply **ret)
{
	return lib_call(c, "GET", NULL, ret, "/v1/info");
}

int thaw_operations(struct thaw_client *c, struct thaw_reply **ret)
{
	return lib_call(c, "GET", NULL, ret, "/v1/operations");
}

int thaw_openapi(struct thaw_client *c, struct thaw_reply **ret)
{
	return lib_call(c, "GET", NULL, ret, "/v1/openapi.json");
}

int thaw_gc(struct thaw_client *c, struct thaw_reply **ret)
{
	return lib_call(c, "POST", NULL, ret, "/v1/gc");
}

int thaw_metrics(struct thaw_client *c, bool per_vm, struct thaw_reply **ret)
{
	return lib_call(c, "GET", NULL, ret, "/v1/metrics%s", per_vm ? "?per_vm=true" : "");
}

struct lines {
	thaw_event_fn *fn;
	void *arg;
	struct lib_buf rest; // of a line that has not ended
};

static int on_lines(void *arg, const void *bytes, size_t n)
{
	struct lines *l = arg;
	const char *p = bytes;
	int r = 0;
	while (n && !r) {
		const char *end = memchr(p, '\n', n);
		size_t part = end ? (size_t)(end - p) : n;
		lib_append(&l->rest, p, part);
		if (l->rest.failed || l->rest.len > MAX_EVENT)
			return -ENOMEM;
		if (end) {
			r = l->fn(l->arg, l->rest.p);
			l->rest.len = 0;
		}
		part += end != NULL;
		p += part;
		n -= part;
	}
	return r;
}

int thaw_events(struct thaw_client *c, int64_t since, const char *types, bool follow, thaw_event_fn *fn,
		void *arg)
{
	char path[400], from[40] = "";
	struct lines l = { .fn = fn, .arg = arg };
	struct thaw_request q = THAW_REQUEST_INIT;
	if (types && strspn(types, LETTERS "_.,") != strlen(types))
		return lib_fail(c, EINVAL, "\"%.80s\" is no list of types", types);
	if (since >= 0)
		snprintf(from, sizeof from, "&since=%" PRId64, since);
	if ((size_t)snprintf(path, sizeof path, "/v1/events?follow=%s%s%s%s", follow ? "true" : "false", from,
			     types ? "&types=" : "", types ? types : "") >= sizeof path)
		return lib_fail(c, EINVAL, "the list of types is too long");
	q.method = "GET";
	q.path = path;
	q.write = on_lines;
	q.write_arg = &l;
	q.stream = 1;
	int r = thaw_request(c, &q, NULL);
	free(l.rest.p);
	return r;
}

// --- VMs ------------------------------------------------------------------------------------------
int thaw_vm_create(struct thaw_client *c, const char *json, struct thaw_reply **ret)
{
	return lib_call(c, "POST", json, ret, "/v1/vms");
}

int thaw_vm_list(struct thaw_client *c, const char *after, unsigned limit, struct thaw_reply **ret)
{
	return list(c, "vms", after, limit, ret);
}

int thaw_vm_show(struct thaw_client *c, const char *vm, struct thaw_reply **ret)
{
	return of_vm(c, "GET", vm, "", NULL, ret);
}

int thaw_vm_wait_ready(struct thaw_client *c, const char *vm, unsigned timeout_ms, struct thaw_reply **ret)
{
	char tail[64];
	snprintf(tail, sizeof tail, "?wait=ready&timeout_ms=%u", timeout_ms);
	return of_vm(c, "GET", vm, tail, NULL, ret);
}

int thaw_vm_start(struct thaw_client *c, const char *vm, struct thaw_reply **ret)
{
	return of_vm(c, "POST", vm, "/start", NULL, ret);
}

int thaw_vm_pause(struct thaw_client *c, const char *vm, struct thaw_reply **ret)
{
	return of_vm(c, "POST", vm, "/pause", NULL, ret);
}

int thaw_vm_resume(struct thaw_client *c, const char *vm, struct thaw_reply **ret)
{
	return of_vm(c, "POST", vm, "/resume", NULL, ret);
}

int thaw_vm_stop(struct thaw_client *c, const char *vm, const char *mode, unsigned wait_ms,
		 struct thaw_reply **ret)
{
	char json[120];
	mode = mode ? mode : "power-button";
	if (strlen(mode) > 32 || strspn(mode, LETTERS "-") != strlen(mode))
		return lib_fail(c, EINVAL, "\"%.40s\" is no way to stop a VM", mode);
	snprintf(json, sizeof json, "{\"mode\":\"%s\",\"wait_ms\":%u}", mode, wait_ms);
	return of_vm(c, "POST", vm, "/stop", json, ret);
}

int thaw_vm_delete(struct thaw_client *c, const char *vm) { return of_vm(c, "DELETE", vm, "", NULL, NULL); }

int thaw_vm_fork(struct thaw_client *c, const char *vm, const char *json, struct thaw_reply **ret)
{
	return of_vm(c, "POST", vm, "/clone", json, ret);
}

int thaw_vm_metrics(struct thaw_client *c, const char *vm, struct thaw_reply **ret)
{
	return of_vm(c, "GET", vm, "/metrics", NULL, ret);
}

int thaw_vm_devices(struct thaw_client *c, const char *vm, struct thaw_reply **ret)
{
	return of_vm(c, "GET", vm, "/devices", NULL, ret);
}

int thaw_vm_metadata(struct thaw_client *c, const char *vm, struct thaw_reply **ret)
{
	return of_vm(c, "GET", vm, "/metadata", NULL, ret);
}

int thaw_vm_set_metadata(struct thaw_client *c, const char *vm, const char *json)
{
	return of_vm(c, "PUT", vm, "/metadata", json, NULL);
}

static int set_device(struct thaw_client *c, const char *vm, const char *kind, const char *device,
		      const char *json, struct thaw_reply **ret)
{
	char tail[120];
	if (!lib_name_ok(device))
		return lib_wrong_name(c, device);
	snprintf(tail, sizeof tail, "/%s/%s", kind, device);
	return of_vm(c, "PATCH", vm, tail, json, ret);
}

int thaw_vm_set_net(struct thaw_client *c, const char *vm, const char *net, const char *json,
		    struct thaw_reply **ret)
{
	return set_device(c, vm, "nets", net, json, ret);
}

int thaw_vm_set_drive(struct thaw_client *c, const char *vm, const char *drive, const char *json,
		      struct thaw_reply **ret)
{
	return set_device(c, vm, "drives", drive, json, ret);
}

int thaw_vm_set_pmem(struct thaw_client *c, const char *vm, const char *pmem, const char *json,
		     struct thaw_reply **ret)
{
	return set_device(c, vm, "pmems", pmem, json, ret);
}

int thaw_vm_balloon(struct thaw_client *c, const char *vm, struct thaw_reply **ret)
{
	return of_vm(c, "GET", vm, "/balloon", NULL, ret);
}

int thaw_vm_set_balloon(struct thaw_client *c, const char *vm, const char *json, struct thaw_reply **ret)
{
	return of_vm(c, "PATCH", vm, "/balloon", json, ret);
}

int thaw_vm_balloon_hint(struct thaw_client *c, const char *vm, unsigned timeout_ms, struct thaw_reply **ret)
{
	char json[48];
	snprintf(json, sizeof json, "{\"timeout_ms\":%u}", timeout_ms);
	return of_vm(c, "POST", vm, "/balloon/hint", json, ret);
}

// --- snapshots --------------------------------------------------------------------------------------
int thaw_snapshot_create(struct thaw_client *c, const char *json, struct thaw_reply **ret)
{
	return lib_call(c, "POST", json, ret, "/v1/snapshots");
}

int thaw_snapshot_list(struct thaw_client *c, const char *after, unsigned limit, struct thaw_reply **ret)
{
	return list(c, "snapshots", after, limit, ret);
}

int thaw_snapshot_show(struct thaw_client *c, const char *snapshot, struct thaw_reply **ret)
{
	return of_snapshot(c, "GET", snapshot, "", NULL, ret);
}

int thaw_snapshot_verify(struct thaw_client *c, const char *snapshot, struct thaw_reply **ret)
{
	return of_snapshot(c, "POST", snapshot, "/verify", NULL, ret);
}

int thaw_snapshot_flatten(struct thaw_client *c, const char *snapshot, const char *json,
			  struct thaw_reply **ret)
{
	return of_snapshot(c, "POST", snapshot, "/flatten", json, ret);
}

int thaw_snapshot_delete(struct thaw_client *c, const char *snapshot, bool force)
{
	return of_snapshot(c, "DELETE", snapshot, force ? "?force=true" : "", NULL, NULL);
}

int thaw_snapshot_prepare(struct thaw_client *c, const char *snapshot, const char *json,
			  struct thaw_reply **ret)
{
	return of_snapshot(c, "POST", snapshot, "/prepare", json, ret);
}

int thaw_snapshot_unprepare(struct thaw_client *c, const char *snapshot)
{
	return of_snapshot(c, "DELETE", snapshot, "/prepare", NULL, NULL);
}

int thaw_snapshot_forget_working_set(struct thaw_client *c, const char *snapshot)
{
	return of_snapshot(c, "DELETE", snapshot, "/working-set", NULL, NULL);
}

static long read_fd(void *arg, void *buf, size_t size)
{
	ssize_t n;
	do
		n = read(*(int *)arg, buf, size);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : (long)n;
}

static int write_fd(void *arg, const void *bytes, size_t n)
{
	const char *p = bytes;
	while (n) {
		ssize_t w = write(*(int *)arg, p, n);
		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0)
			return -errno;
		p += w;
		n -= (size_t)w;
	}
	return 0;
}

static int stream(struct thaw_client *c, const char *method, const char *snapshot, int fd,
		  struct thaw_reply **ret)
{
	char path[120];
	struct thaw_request q = THAW_REQUEST_INIT;
	bool out = !strcmp(method, "GET");
	if (!lib_name_ok(snapshot))
		return lib_wrong_name(c, snapshot);
	snprintf(path, sizeof path, "/v1/snapshots/%s/%s", snapshot, out ? "export" : "import");
	q.method = method;
	q.path = path;
	q.stream = 1;
	q.read = out ? NULL : read_fd;
	q.write = out ? write_fd : NULL;
	q.read_arg = q.write_arg = &fd;
	return thaw_request(c, &q, ret);
}

int thaw_snapshot_export(struct thaw_client *c, const char *snapshot, int fd)
{
	return stream(c, "GET", snapshot, fd, NULL);
}

int thaw_snapshot_import(struct thaw_client *c, const char *snapshot, int fd, struct thaw_reply **ret)
{
	return stream(c, "PUT", snapshot, fd, ret);
}

int thaw_clone(struct thaw_client *c, const char *snapshot, const char *json, struct thaw_reply **ret)
{
	return of_snapshot(c, "POST", snapshot, "/clone", json, ret);
}
