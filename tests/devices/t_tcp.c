// SPDX-License-Identifier: Apache-2.0
#include "tests/devices/t_tcp.h"

enum { ETH = 14, IP = 20, TCP = 20 };

const uint8_t t_tcp_address[4] = { 169, 254, 169, 254 }, t_tcp_guest[4] = { 10, 0, 2, 15 },
	      t_tcp_guest_mac[6] = { 2, 1, 2, 3, 4, 5 };

static uint32_t get16(const uint8_t *p) { return p[0] * 256u + p[1]; }
static uint32_t get32(const uint8_t *p) { return get16(p) << 16 | get16(p + 2); }
static void put16(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}
static void put32(uint8_t *p, uint32_t v)
{
	put16(p, v >> 16);
	put16(p + 2, v);
}

static uint32_t sum(uint32_t s, const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		s += i % 2 ? p[i] : p[i] * 256u;
		s = s > 0xffff ? s - 0xffff : s;
	}
	return s;
}

static uint32_t tcp_sum(const uint8_t *ip)
{
	size_t n = get16(ip + 2) - IP;
	return sum(sum(6 + (uint32_t)(n % 0xffff), ip + 12, 8), ip + IP, n);
}

void t_tcp_sum(uint8_t *frame)
{
	uint8_t *ip = frame + ETH;
	put16(ip + 10, 0);
	put16(ip + 10, ~sum(0, ip, IP));
	put16(ip + IP + 16, 0);
	put16(ip + IP + 16, ~tcp_sum(ip));
}

size_t t_tcp_frame(const struct t_tcp *c, unsigned flags, const void *data, size_t n, uint8_t *ret_frame)
{
	uint8_t *ip = ret_frame + ETH, *tcp = ip + IP;
	size_t options = flags & T_SYN && c->mss ? 4 : 0;
	memset(ret_frame, 0, ETH + IP + TCP);
	memcpy(ret_frame, mmds_tcp_mac, 6);
	memcpy(ret_frame + 6, t_tcp_guest_mac, 6);
	put16(ret_frame + 12, 0x0800);
	ip[0] = 0x45;
	put16(ip + 2, (uint32_t)(IP + TCP + options + n));
	ip[8] = 64;
	ip[9] = 6;
	memcpy(ip + 12, t_tcp_guest, 4);
	memcpy(ip + 16, t_tcp_address, 4);
	put16(tcp, c->port);
	put16(tcp + 2, c->to);
	put32(tcp + 4, c->seq);
	put32(tcp + 8, flags & T_ACK ? c->ack : 0);
	tcp[12] = (uint8_t)((TCP + options) * 4);
	tcp[13] = (uint8_t)flags;
	put16(tcp + 14, c->window);
	if (options) {
		put16(tcp + TCP, 0x0204);
		put16(tcp + TCP + 2, c->mss);
	}
	if (n)
		memcpy(tcp + TCP + options, data, n);
	t_tcp_sum(ret_frame);
	return ETH + IP + TCP + options + n;
}

size_t t_tcp_arp(uint8_t *ret_frame)
{
	static const uint8_t request[] = { 8, 6, 0, 1, 8, 0, 6, 4, 0, 1 };
	memset(ret_frame, 0, ETH + 28);
	memset(ret_frame, 0xff, 6);
	memcpy(ret_frame + 6, t_tcp_guest_mac, 6);
	memcpy(ret_frame + 12, request, sizeof request);
	memcpy(ret_frame + ETH + 8, t_tcp_guest_mac, 6);
	memcpy(ret_frame + ETH + 14, t_tcp_guest, 4);
	memcpy(ret_frame + ETH + 24, t_tcp_address, 4);
	return ETH + 28;
}

void t_tcp_reply(const uint8_t *frame, size_t len, struct t_reply *ret_r)
{
	static const uint8_t arp[] = { 8, 6, 0, 1, 8, 0, 6, 4, 0, 2 };
	const uint8_t *ip = frame + ETH, *tcp = ip + IP;
	*ret_r = (struct t_reply){ 0 };
	assert_true(len >= ETH + 28);
	assert_memory_equal(frame, t_tcp_guest_mac, 6);
	assert_memory_equal(frame + 6, mmds_tcp_mac, 6);
	if (!memcmp(frame + 12, arp, sizeof arp)) {
		assert_int_equal(len, ETH + 28);
		assert_memory_equal(frame + ETH + 8, mmds_tcp_mac, 6);
		assert_memory_equal(frame + ETH + 14, t_tcp_address, 4);
		assert_memory_equal(frame + ETH + 18, t_tcp_guest_mac, 6);
		assert_memory_equal(frame + ETH + 24, t_tcp_guest, 4);
		ret_r->arp = true;
		return;
	}
	assert_int_equal(get16(frame + 12), 0x0800);
	assert_int_equal(ip[0], 0x45);
	assert_int_equal(get16(ip + 2), len - ETH);
	assert_memory_equal(ip + 12, t_tcp_address, 4);
	assert_memory_equal(ip + 16, t_tcp_guest, 4);
	assert_int_equal(ip[9], 6);
	assert_int_equal(sum(0, ip, IP), 0xffff);
	assert_int_equal(tcp_sum(ip), 0xffff);
	size_t offset = (tcp[12] >> 4) * 4u;
	assert_true(offset >= TCP && IP + offset <= len - ETH);
	ret_r->from = (uint16_t)get16(tcp);
	ret_r->port = (uint16_t)get16(tcp + 2);
	ret_r->seq = get32(tcp + 4);
	ret_r->ack = get32(tcp + 8);
	ret_r->flags = tcp[13];
	ret_r->window = (uint16_t)get16(tcp + 14);
	ret_r->mss = offset > TCP && tcp[TCP] == 2 ? (uint16_t)get16(tcp + TCP + 2) : 0;
	ret_r->n = len - ETH - IP - offset;
	assert_true(ret_r->n <= sizeof ret_r->data);
	memcpy(ret_r->data, tcp + offset, ret_r->n);
}
