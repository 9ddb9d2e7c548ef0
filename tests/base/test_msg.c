// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include <errno.h>
#include <sys/socket.h>

#include "microvm/base/msg.h"
#include "microvm/base/util.h"

struct fixture {
	int a, b; // two ends
	int fds;  // open when the test began
	uint8_t buf[MSG_MAX_BYTES];
	struct msg m;
	struct msg_reply reply, got; // large
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	int s[2];
	if (!f || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, s))
		return -1;
	f->a = s[0];
	f->b = s[1];
	f->fds = t_count_fds();
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	bool leaked = t_count_fds() != f->fds; // whatever came with a message was closed
	mv_close(&f->a);
	mv_close(&f->b);
	free(f);
	return leaked;
}

static int receive(struct fixture *f) { return msg_recv(f->b, f->buf, &f->m); }

// Any bytes with n_fds descriptors.
static void send_raw(struct fixture *f, const void *bytes, size_t len, unsigned n_fds)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * 250)] = { 0 };
	struct iovec iov = { (void *)(uintptr_t)bytes, len };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	if (n_fds) {
		m.msg_control = control;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		for (unsigned i = 0; i < n_fds; i++)
			memcpy(CMSG_DATA(c) + i * sizeof(int), &f->a, sizeof(int));
	}
	assert_int_equal(sendmsg(f->a, &m, 0), len);
}

// The bytes of a good message: what msg_send puts on the wire.
static size_t good_bytes(struct fixture *f, uint8_t *ret_bytes)
{
	struct msg_stop stop = { VM_STOP_CTRL_ALT_DEL };
	assert_int_equal(msg_send(f->a, MSG_STOP, 7, &msg_stop_table, &stop, NULL, 0), 0);
	ssize_t n = recv(f->b, ret_bytes, 256, 0);
	assert_true(n > 24);
	return (size_t)n;
}

static void round_trip(void **state)
{
	struct fixture *f = *state;
	struct msg_stop stop = { VM_STOP_CTRL_ALT_DEL }, got = { 0 };
	struct mv_err err;
	int fds[2] = { f->a, f->b };
	assert_int_equal(msg_send(f->a, MSG_STOP, 0x1122334455667788, &msg_stop_table, &stop, fds, 2), 0);
	assert_int_equal(msg_send(f->a, MSG_RUN, 2, NULL, NULL, NULL, 0), 0);

	assert_int_equal(receive(f), 0);
	assert_int_equal(f->m.type, MSG_STOP);
	assert_true(f->m.id == 0x1122334455667788);
	assert_int_equal(f->m.n_fds, 2);
	assert_true(fcntl(f->m.fds[0], F_GETFD) & FD_CLOEXEC);
	assert_int_equal(mv_state_load(&msg_stop_table, f->m.body, f->m.body_len, &got, &err), 0);
	assert_int_equal(got.mode, VM_STOP_CTRL_ALT_DEL);
	msg_close_fds(&f->m);
	msg_close_fds(&f->m);

	assert_int_equal(receive(f), 0);
	assert_int_equal(f->m.type, MSG_RUN);
	assert_true(f->m.body_len == 0 && f->m.n_fds == 0);
	assert_int_equal(receive(f), -EAGAIN);
}

static void largest_reply_and_most_fds(void **state)
{
	struct fixture *f = *state;
	struct mv_err err;
	int fds[VM_FDS_MAX + 1];
	f->reply = (struct msg_reply){ .code = 4095, .n_data = MSG_CONSOLE_BYTES, .console_end = UINT64_MAX };
	memset(f->reply.text, 'x', sizeof f->reply.text - 1);
	memset(f->reply.data, 0xab, sizeof f->reply.data);
	for (size_t i = 0; i < MV_ARRAY_LEN(fds); i++)
		fds[i] = f->a;
	int r = msg_send(f->a, MSG_REPLY, 1, &msg_reply_table, &f->reply, fds, VM_FDS_MAX + 1);
	assert_int_equal(r, -EINVAL);
	r = msg_send(f->a, MSG_REPLY, 1, &msg_reply_table, &f->reply, fds, VM_FDS_MAX);
	assert_int_equal(r, 0);
	assert_int_equal(receive(f), 0);
	assert_int_equal(f->m.n_fds, VM_FDS_MAX);
	assert_int_equal(mv_state_load(&msg_reply_table, f->m.body, f->m.body_len, &f->got, &err), 0);
	assert_memory_equal(&f->got, &f->reply, sizeof f->got);
	msg_close_fds(&f->m);
}

static void peer_gone(void **state)
{
	struct fixture *f = *state;
	int a = f->a;
	f->a = -1;
	f->fds--;
	close(a);
	assert_int_equal(receive(f), -EPIPE);
	assert_int_equal(msg_send(f->b, MSG_RUN, 1, NULL, NULL, NULL, 0), -EPIPE);
}

static void peer_does_not_read(void **state)
{
	struct fixture *f = *state;
	int r = 0;
	for (int i = 0; i < 100000 && !r; i++)
		r = msg_send(f->a, MSG_RUN, 1, NULL, NULL, NULL, 0);
	assert_int_equal(r, -EAGAIN);
}

// Every malformed message is -EPROTO, and the descriptors that came with it are closed.
static void malformed(void **state)
{
	struct fixture *f = *state;
	uint8_t good[256];
	static uint8_t huge[MSG_MAX_BYTES + 1];
	size_t len = good_bytes(f, good);

	for (size_t n = 1; n < 24; n++) { // shorter than a header
		send_raw(f, good, n, 2);
		assert_int_equal(receive(f), -EPROTO);
	}
	send_raw(f, good, len - 1, 2); // body cut
	assert_int_equal(receive(f), -EPROTO);
	good[len] = 0;
	send_raw(f, good, len + 1, 2); // body too long
	assert_int_equal(receive(f), -EPROTO);
	memcpy(huge, good, len);
	int size = 1 << 20;
	setsockopt(f->a, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	send_raw(f, huge, sizeof huge, 2); // longer than any message
	assert_int_equal(receive(f), -EPROTO);
	send_raw(f, good, len, VM_FDS_MAX + 1); // too many descriptors
	assert_int_equal(receive(f), -EPROTO);
	send_raw(f, good, len, 250);
	assert_int_equal(receive(f), -EPROTO);
	static const size_t reserved[] = { 0, 3, 6, 7, 20, 23 }; // magic and zeros
	for (size_t i = 0; i < MV_ARRAY_LEN(reserved); i++) {
		good[reserved[i]] ^= 1;
		send_raw(f, good, len, 1);
		assert_int_equal(receive(f), -EPROTO);
		good[reserved[i]] ^= 1;
	}
	send_raw(f, good, len, 1);
	assert_int_equal(receive(f), 0);
	msg_close_fds(&f->m);
}

// A datagram of no bytes looks like the end of the stream, but may carry descriptors.
static void empty_datagram_with_fds(void **state)
{
	struct fixture *f = *state;
	send_raw(f, "", 0, 3);
	assert_true(receive(f) < 0);
}

static void hostile_bytes(void **state)
{
	struct fixture *f = *state;
	uint8_t good[256], bytes[256];
	uint64_t seed = 1234;
	int ok = 0;
	size_t len = good_bytes(f, good);
	for (int i = 0; i < 50000; i++) {
		struct msg_stop stop = { 99 };
		memcpy(bytes, good, len);
		t_mutate(bytes, len, &seed);
		size_t cut = i % 5 ? 0 : t_rand(&seed) % (len - 1);
		send_raw(f, bytes, len - cut, (unsigned)(t_rand(&seed) % 4));
		int r = receive(f);
		assert_true(r == 0 || r == -EPROTO);
		if (r)
			continue;
		ok++;
		assert_true(f->m.body >= f->buf && f->m.body + f->m.body_len <= f->buf + sizeof f->buf);
		if (mv_state_load(&msg_stop_table, f->m.body, f->m.body_len, &stop, NULL))
			assert_int_equal(stop.mode, 99);
		msg_close_fds(&f->m);
	}
	assert_true(ok > 100);
}

static void names(void **state)
{
	(void)state;
	assert_string_equal(vm_state_name(VM_PAUSED), "paused");
	assert_string_equal(vm_state_name(VM_EXITED), "exited");
	assert_string_equal(vm_state_name(999), "unknown");
	assert_string_equal(vm_exit_name(VM_EXIT_TRIPLE_FAULT), "triple-fault");
	assert_string_equal(vm_exit_name(VM_EXIT_CRASHED), "crashed");
	assert_string_equal(vm_exit_name(999), "none");
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

// The largest device there can be travels in an answer's data.
static void largest_device(void **state)
{
	(void)state;
	struct msg_device *d = calloc(1, sizeof *d), *got = calloc(1, sizeof *d);
	MV_BUF bytes = { 0 };
	memset(d->name, 'x', sizeof d->name - 1);
	d->n_devices = 16;
	d->features_offered = UINT64_MAX;
	d->n_queues = MSG_MAX_QUEUES;
	for (unsigned i = 0; i < MSG_MAX_QUEUES; i++)
		d->queue[i] = (struct msg_queue){ .ready = true, .size = 1024, .used = INT64_MAX };
	d->n_vcpus = VMCFG_MAX_VCPUS;
	d->vcpu[VMCFG_MAX_VCPUS - 1].mmio = 7;
	mv_state_save(&msg_device_table, d, &bytes);
	assert_false(bytes.failed);
	assert_true(bytes.len <= MSG_CONSOLE_BYTES);
	assert_int_equal(mv_state_load(&msg_device_table, bytes.p, bytes.len, got, NULL), 0);
	assert_memory_equal(d, got, sizeof *d);
	free(d);
	free(got);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(round_trip),
		T(largest_reply_and_most_fds),
		T(peer_gone),
		T(peer_does_not_read),
		T(malformed),
		T(empty_datagram_with_fds),
		T(hostile_bytes),
		cmocka_unit_test(names),
		cmocka_unit_test(largest_device),
	};
	return cmocka_run_group_tests_name("base/msg", tests, NULL, NULL);
}
