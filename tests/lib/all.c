// SPDX-License-Identifier: Apache-2.0
// Every function of libthaw against a real daemon, for tests/e2e/test_lib.py, which builds it against the
// installed library: all KERNEL FOLDER, with THAW_SOCKET. Prints nothing; ends with 1 at the first surprise.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thaw.h>
#include <unistd.h>

static struct thaw_client *c;
static char text[4096];

#define CHECK(what)                                                                                          \
	do {                                                                                                 \
		if (!(what)) {                                                                               \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #what,                        \
				thaw_last_error(c)->message);                                                \
			exit(1);                                                                             \
		}                                                                                            \
	} while (0)
#define OK(call) CHECK((call) == 0)
#define REFUSED(call, code_) CHECK((call) == -EREMOTEIO && !strcmp(thaw_last_error(c)->code, code_))
#define JSON(...) (snprintf(text, sizeof text, __VA_ARGS__), text)

static void is(struct thaw_reply *r, const char *path, const char *value)
{
	const char *got = thaw_reply_str(r, path, "(nothing)");
	if (strcmp(got, value)) {
		fprintf(stderr, "%s is %s, not %s, in %s\n", path, got, value, thaw_reply_body(r, NULL));
		exit(1);
	}
	thaw_reply_free(r);
}

static void wait_for(const char *vm, const char *said, uint64_t *offset)
{
	char seen[8192] = "";
	size_t len = 0, n = 0;
	for (int empty = 0; empty < 30 && !strstr(seen, said); empty += !n) { // it may come byte by byte
		struct thaw_reply *r = NULL;
		OK(thaw_console_read(c, vm, offset, 1000, &r));
		const char *bytes = thaw_reply_body(r, &n);
		CHECK(len + n < sizeof seen);
		memcpy(seen + len, bytes, n);
		seen[len += n] = 0;
		thaw_reply_free(r);
	}
	CHECK(strstr(seen, said));
}

static void machines(const char *kernel)
{
	struct thaw_reply *r = NULL;
	uint64_t offset = 0;
	char *quoted = thaw_quote(kernel);
	CHECK(quoted && quoted[0] == '"');
	OK(thaw_set_idempotency_key(c, "once"));
	OK(thaw_vm_create(c,
			  JSON("{\"name\":\"web\",\"kernel\":%s,\"discovery\":\"cmdline\",\"memory_mib\":32,"
			       "\"vsock\":{\"cid\":3},\"balloon\":{\"free_page_hinting\":true},"
			       "\"ready\":{\"console\":\"READY\"}}",
			       quoted),
			  &r));
	CHECK(thaw_reply_status(r) == 201 && thaw_reply_header(r, "etag") && !thaw_reply_header(r, "Etagx"));
	CHECK(thaw_reply_int(r, "config.vsock.cid", 0) == 3 && thaw_reply_bool(r, "config.rng", false));
	CHECK(thaw_reply_int(r, "state", -7) == -7 && thaw_reply_count(r, "config.drives") == 0);
	is(r, "state", "created");
	OK(thaw_set_idempotency_key(c, "once")); // again: it is done once
	OK(thaw_vm_create(c, text, &r));
	CHECK(!strcmp(thaw_reply_header(r, "Idempotent-Replayed"), "true"));
	is(r, "name", "web");
	REFUSED(thaw_vm_create(c, text, NULL), "vm_exists"); // the key was for that one
	free(quoted);
	OK(thaw_vm_start(c, "web", NULL));
	OK(thaw_vm_wait_ready(c, "web", 20000, &r));
	CHECK(thaw_reply_bool(r, "ready", false));
	is(r, "state", "running");
	wait_for("web", "READY", &offset);
	OK(thaw_console_write(c, "web", "echo hi\n", 8));
	wait_for("web", "OK hi", &offset);
	OK(thaw_vm_pause(c, "web", &r));
	is(r, "state", "paused");
	REFUSED(thaw_vm_pause(c, "web", NULL), "wrong_state");
	CHECK(thaw_last_error(c)->status == 409 && thaw_last_error(c)->errnum == EREMOTEIO);
	CHECK(thaw_last_error(c)->request_id[0] && strstr(thaw_last_error(c)->body, "wrong_state"));
	OK(thaw_vm_resume(c, "web", NULL));
	OK(thaw_vm_set_metadata(c, "web", "{\"a\":{\"b\":[1,\"x\"]}}"));
	OK(thaw_vm_metadata(c, "web", &r));
	CHECK(thaw_reply_count(r, "a.b") == 2 && thaw_reply_int(r, "a.b.0", 0) == 1 &&
	      thaw_reply_count(r, "a") == 1);
	is(r, "a.b.1", "x");
	OK(thaw_vm_metrics(c, "web", &r));
	CHECK(thaw_reply_int(r, "resident_bytes", 0) > 0);
	thaw_reply_free(r);
	OK(thaw_vm_devices(c, "web", &r));
	CHECK(thaw_reply_count(r, "devices") >= 2);
	thaw_reply_free(r);
	OK(thaw_vm_set_balloon(c, "web", "{\"target_mib\":0}", NULL));
	OK(thaw_vm_balloon(c, "web", &r));
	CHECK(thaw_reply_int(r, "target_mib", -1) == 0);
	thaw_reply_free(r);
	REFUSED(thaw_vm_balloon_hint(c, "web", 100, NULL), "wrong_state"); // the guest has no driver
	REFUSED(thaw_vm_set_net(c, "web", "eth0", "{\"link_up\":false}", NULL), "not_found");
	REFUSED(thaw_vm_set_drive(c, "web", "root", "{\"reread_size\":true}", NULL), "not_found");
	REFUSED(thaw_vm_set_pmem(c, "web", "data", "{\"rate_limit\":{}}", NULL), "not_found");
	OK(thaw_vm_list(c, NULL, 0, &r));
	CHECK(thaw_reply_count(r, "vms") == 1);
	thaw_reply_free(r);
	OK(thaw_vm_list(c, "web", 5, &r));
	CHECK(thaw_reply_count(r, "vms") == 0);
	thaw_reply_free(r);
}

static void snapshots(const char *folder)
{
	struct thaw_reply *r = NULL;
	char file[4096];
	int pipes[2];
	snprintf(file, sizeof file, "%s/exported", folder);
	OK(thaw_snapshot_create(c, "{\"vm\":\"web\",\"name\":\"base\",\"format\":\"lz4\"}", &r));
	is(r, "vm", "web");
	OK(thaw_snapshot_show(c, "base", NULL));
	OK(thaw_snapshot_verify(c, "base", NULL));
	OK(thaw_snapshot_flatten(c, "base", "{\"name\":\"flat\"}", NULL));
	OK(thaw_snapshot_list(c, "base", 1, &r));
	is(r, "snapshots.0.name", "flat");
	OK(thaw_snapshot_prepare(c, "base", "{\"wait\":true,\"pool\":{\"size\":1}}", &r));
	CHECK(thaw_reply_int(r, "pool.ready", 0) == 1);
	thaw_reply_free(r);
	OK(thaw_clone(c, "base", NULL, &r));
	CHECK(thaw_reply_count(r, "clones") == 1 && thaw_reply_bool(r, "clones.0.prepared", false));
	CHECK(thaw_reply_int(r, "clones.0.timing_us.running", 0) > 0 &&
	      thaw_reply_count(r, "clones.0.timing_us") > 1);
	CHECK(!thaw_reply_str(r, "clones.1.name", NULL) && !thaw_reply_str(r, "clones.x.name", NULL));
	OK(thaw_vm_stop(c, thaw_reply_str(r, "clones.0.name", ""), "kill", 0, NULL));
	OK(thaw_vm_delete(c, thaw_reply_str(r, "clones.0.id", "")));
	thaw_reply_free(r);
	OK(thaw_snapshot_prepare(c, "base", "{\"pool\":{\"size\":0}}", NULL));
	OK(thaw_snapshot_unprepare(c, "base"));
	OK(thaw_snapshot_forget_working_set(c, "base"));
	OK(thaw_clone(c, "base", "{\"clones\":[{\"name\":\"one\"},{\"name\":\"web\"}]}",
		      &r)); // the other's is taken
	CHECK(thaw_reply_status(r) == 207);
	is(r, "clones.1.error.code", "vm_exists");
	OK(thaw_vm_delete(c, "one"));
	OK(thaw_vm_fork(c, "web", "{\"count\":2}", &r));
	CHECK(thaw_reply_count(r, "clones") == 2);
	OK(thaw_vm_delete(c, thaw_reply_str(r, "clones.0.name", "")));
	OK(thaw_vm_delete(c, thaw_reply_str(r, "clones.1.name", "")));
	thaw_reply_free(r);

	int fd = open(file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	OK(thaw_snapshot_export(c, "base", fd));
	CHECK(lseek(fd, 0, SEEK_SET) == 0);
	OK(thaw_snapshot_import(c, "copy", fd, &r));
	is(r, "name", "copy");
	CHECK(ftruncate(fd, lseek(fd, 0, SEEK_END) / 2) == 0 && lseek(fd, 0, SEEK_SET) == 0);
	CHECK(thaw_snapshot_import(c, "half", fd, NULL) == -EREMOTEIO);
	close(fd);
	CHECK(thaw_snapshot_import(c, "half", fd, NULL) == -EBADF);
	REFUSED(thaw_snapshot_show(c, "half", NULL), "snapshot_not_found");
	CHECK(pipe(pipes) == 0);
	close(pipes[0]);
	CHECK(thaw_snapshot_export(c, "base", pipes[1]) == -EPIPE);
	close(pipes[1]);
	CHECK(thaw_snapshot_export(c, "base", open("/dev/full", O_WRONLY)) == -ENOSPC);
	REFUSED(thaw_snapshot_export(c, "nothing", 1), "snapshot_not_found");
	OK(thaw_snapshot_delete(c, "copy", false));
	OK(thaw_snapshot_delete(c, "flat", true));
}

static int first_event(void *arg, const char *json)
{
	*(int *)arg += strstr(json, "\"type\":\"vm.created\"") != NULL;
	return json[0] == '{' && json[strlen(json) - 1] == '}' ? 0 : -EPROTO;
}

static int stop_at_once(void *arg, const char *json)
{
	(void)json;
	++*(int *)arg;
	return 1;
}

static int count_bytes(void *arg, uint64_t sent, uint64_t received)
{
	*(uint64_t *)arg = sent + received;
	return 0;
}

static int cancel(void *arg, uint64_t sent, uint64_t received)
{
	(void)arg;
	return sent + received == 0; // nothing came for a while
}

static void streams(void)
{
	struct thaw_attach a = THAW_ATTACH_INIT;
	enum thaw_attach_end end;
	int in[2], out[2], n = 0;
	uint64_t bytes = 0;
	char said[4096] = "";
	OK(thaw_events(c, 0, "vm,snapshot", false, first_event, &n));
	CHECK(n >= 4);
	n = 0;
	OK(thaw_events(c, 0, NULL, true, stop_at_once, &n));
	CHECK(n == 1);
	CHECK(thaw_events(c, -1, "vm&x", true, stop_at_once, &n) == -EINVAL);

	thaw_set_progress(c, count_bytes, &bytes);
	OK(thaw_metrics(c, true, NULL));
	CHECK(bytes > 1000);
	thaw_set_progress(c, cancel, NULL);
	CHECK(thaw_events(c, -1, "template", true, stop_at_once, &n) == -ECANCELED);
	thaw_set_progress(c, NULL, NULL);

	CHECK(pipe(in) == 0 && pipe(out) == 0);
	a.in_fd = in[0];
	a.out_fd = out[1];
	a.escape = '!';
	CHECK(write(in[1], "echo there\n!", 12) == 12);
	OK(thaw_console_attach(c, "web", &a, &end));
	CHECK(end == THAW_ATTACH_ESCAPED);
	wait_for("web", "OK there", &a.offset);
	a.stop_fd = in[0];
	CHECK(write(in[1], "x", 1) == 1);
	OK(thaw_console_attach(c, "web", &a, &end));
	CHECK(end == THAW_ATTACH_STOPPED);
	a.stop_fd = -1;
	a.ends_with_input = 1;
	a.offset = 0;
	close(in[1]);
	OK(thaw_console_attach(c, "web", &a, &end));
	CHECK(end == THAW_ATTACH_INPUT_ENDED);
	a.in_fd = -1;
	OK(thaw_console_write(c, "web", "\nexit\n", 6));
	OK(thaw_console_attach(c, "web", &a, &end));
	CHECK(end == THAW_ATTACH_EXITED && read(out[0], said, sizeof said - 1) > 0 &&
	      strstr(said, "OK there"));
	a.size = 1;
	CHECK(thaw_console_attach(c, "web", &a, &end) == -EINVAL);
	CHECK(thaw_console_attach(c, "nobody", &(struct thaw_attach)THAW_ATTACH_INIT, &end) == -EREMOTEIO);
}

static long half_a_body(void *arg, void *buf, size_t size)
{
	(void)size;
	if (++*(int *)arg > 1)
		return -EIO;
	memcpy(buf, "half", 4);
	return 4;
}

static void any_request(void)
{
	struct thaw_reply *r = NULL;
	struct thaw_request q = THAW_REQUEST_INIT;
	char tag[64];
	int n = 0;
	OK(thaw_info(c, &r));
	CHECK(!strcmp(thaw_reply_str(r, "version", ""), thaw_version()) && !thaw_reply_header(r, "ETag"));
	thaw_reply_free(r);
	OK(thaw_operations(c, &r));
	CHECK(!strcmp(thaw_reply_str(r, "operations.0.kind", "none"), "none"));
	thaw_reply_free(r);
	OK(thaw_openapi(c, &r));
	is(r, "openapi", "3.1.0");
	OK(thaw_gc(c, NULL));
	OK(thaw_vm_show(c, "web", &r));
	snprintf(tag, sizeof tag, "%s", thaw_reply_header(r, "ETag"));
	thaw_reply_free(r);
	q.method = "GET";
	q.path = "/v1/vms/web";
	q.if_none_match = tag;
	q.request_id = "mine";
	OK(thaw_request(c, &q, &r));
	CHECK(thaw_reply_status(r) == 304 && !strcmp(thaw_reply_header(r, "X-Request-Id"), "mine"));
	thaw_reply_free(r);
	q = (struct thaw_request)THAW_REQUEST_INIT;
	q.method = "DELETE";
	q.path = "/v1/vms/web";
	q.if_match = "\"other\"";
	REFUSED(thaw_request(c, &q, NULL), "precondition_failed");
	q.request_id = "a\r\nX: y";
	CHECK(thaw_request(c, &q, NULL) == -EINVAL);
	q.request_id = NULL;
	q.path = "/v1/vms/web\nx";
	CHECK(thaw_request(c, &q, NULL) == -EINVAL);
	q.path = "/v1/snapshots/part/import";
	q.method = "PUT";
	q.if_match = NULL;
	q.read = half_a_body;
	q.read_arg = &n;
	CHECK(thaw_request(c, &q, NULL) == -EIO && n == 2);
	q.size = sizeof q + 8;
	struct {
		struct thaw_request q;
		long of_tomorrow;
	} later = { q, 1 };
	CHECK(thaw_request(c, &later.q, NULL) == -EINVAL); // what this version does not know is not ignored
	CHECK(thaw_set_idempotency_key(c, "a b") == -EINVAL && thaw_set_idempotency_key(c, "") == -EINVAL);
	CHECK(thaw_vm_delete(c, "../info") == -EINVAL && thaw_vm_delete(c, "") == -EINVAL);
	CHECK(thaw_vm_stop(c, "web", "\"}", 0, NULL) == -EINVAL);
	CHECK(!thaw_quote("\xff"));
	r = NULL;
	CHECK(thaw_vm_show(c, "nobody", &r) == -EREMOTEIO && !r);
	OK(thaw_vm_delete(c, "web"));
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	signal(SIGPIPE, SIG_IGN); // of the pipe that nobody reads
	OK(thaw_open(NULL, &c));
	CHECK(!strcmp(thaw_socket_path(c), getenv("THAW_SOCKET")));
	thaw_set_timeout_ms(c, 60000);
	machines(argv[1]);
	snapshots(argv[2]);
	streams();
	any_request();
	thaw_close(c);
	thaw_close(NULL);
	return 0;
}
