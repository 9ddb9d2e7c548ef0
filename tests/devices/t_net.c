// SPDX-License-Identifier: Apache-2.0
#include "tests/devices/t_net.h"

#include <sys/socket.h>

#include "microvm/base/util.h"

const uint8_t t_mac[6] = { 2, 1, 2, 3, 4, 5 };

struct fixture {
	T_NET_FIELDS;
};

struct vio_dev *t_net_new(struct t_vm *vm, uint16_t mtu, int *ret_peer)
{
	int pair[2];
	struct vio_dev *d;
	const struct vio_net_options o = { .name = "eth0", .mac = t_mac, .kind = VIO_NET_STREAM, .mtu = mtu };
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(fcntl(pair[1], F_SETFL, O_NONBLOCK), 0);
	assert_int_equal(vio_net_new_with(&vm->mem, &vm->loop, &o, pair, &d, NULL), 0);
	assert_int_equal(pair[0], -1);
	*ret_peer = pair[1];
	return d;
}

void *t_net_set_up(size_t bytes)
{
	struct fixture *f = calloc(1, bytes);
	assert_non_null(f);
	t_vm_init(&f->vm);
	f->d = t_net_new(&f->vm, 0, &f->peer);
	return f;
}

int t_net_tear_down(void **state)
{
	struct fixture *f = *state;
	vio_free(f->d);
	mv_close(&f->peer);
	t_vm_fini(&f->vm);
	free(f);
	return 0;
}
