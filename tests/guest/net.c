// SPDX-License-Identifier: Apache-2.0
// The tiny guest's virtio-net driver, virtio 1.2 section 5.1, and as much of ARP (RFC 826),
// IPv4 (RFC 791), UDP (RFC 768) and TCP (RFC 9293) as one question and its answer need. There is always
// one receive buffer for each pair of queues in use; other traffic is looked at and dropped.
#include "tests/guest/tiny.h"

enum { RX, TX, MAX_PAIRS = 2, QUEUES = 2 * MAX_PAIRS + 1 };
enum { CLASS_MQ = 4, PAIRS_SET = 0 };
enum { HEADER = 12, ETH = 14, IP = 20, UDP = 8, TCP = 20, FRAME = 1514, TRIES = 64 };
#define OUR_ADDRESS 0x0a00020fu // 10.0.2.15
#define WAIT_ROUNDS 30000000ull
#define CONFIG_STATUS 4 // the word that has it in its upper half, and that of
#define CONFIG_PAIRS 8  // in the lower

static struct virtio net[QUEUES];
static u32 n_queues, pairs = 1; // made; in use
static u8 in[MAX_PAIRS][HEADER + FRAME], out[HEADER + FRAME], mac[6];
static bool waiting[MAX_PAIRS]; // the receive buffer is with the device
static const u8 broadcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

bool net_init(void)
{
	for (u32 n = QUEUES; n > TX && !n_queues; n -= n == QUEUES ? 2 : 1)
		if (virtio_init(net, n, VIRTIO_NET))
			n_queues = n;
	if (!n_queues)
		return false;
	u32 word[2] = { mmio_read(net->base + VIRTIO_CONFIG), mmio_read(net->base + VIRTIO_CONFIG + 4) };
	for (int i = 0; i < 6; i++)
		mac[i] = (u8)(word[i / 4] >> i % 4 * 8);
	return true;
}

bool net_link_up(void) { return mmio_read(net->base + VIRTIO_CONFIG + CONFIG_STATUS) >> 16 & 1; }

bool net_pairs(u32 n)
{
	static volatile struct {
		u8 class, command;
		u16 pairs;
	} order;
	static volatile u8 answer;
	const struct virtio_buf bufs[] = { { &order, sizeof order, false }, { &answer, 1, true } };
	u32 len;
	if (n_queues != QUEUES || (mmio_read(net->base + VIRTIO_CONFIG + CONFIG_PAIRS) & 0xffff) != MAX_PAIRS)
		return false;
	order.class = CLASS_MQ;
	order.command = PAIRS_SET;
	order.pairs = (u16)n;
	answer = 0xff;
	if (!virtio_request(&net[QUEUES - 1], bufs, 2, &len) || answer)
		return false;
	pairs = n;
	return true;
}

static void put16(u8 *p, u32 v)
{
	p[0] = (u8)(v >> 8);
	p[1] = (u8)v;
}

static void put32(u8 *p, u32 v)
{
	put16(p, v >> 16);
	put16(p + 2, v & 0xffff);
}

static u32 get16(const u8 *p) { return p[0] * 256u + p[1]; }
static u32 get32(const u8 *p) { return get16(p) << 16 | get16(p + 2); }

static void copy(void *to, const void *from, u32 n)
{
	for (u32 i = 0; i < n; i++)
		((volatile u8 *)to)[i] = ((const u8 *)from)[i];
}

// The frame's Ethernet header; what follows it.
static u8 *begin(const u8 to[6], u32 type)
{
	for (u32 i = 0; i < sizeof out; i++)
		((volatile u8 *)out)[i] = 0;
	copy(out + HEADER, to, 6);
	copy(out + HEADER + 6, mac, 6);
	put16(out + HEADER + 12, type);
	return out + HEADER + ETH;
}

static void listen(u32 p)
{
	if (!waiting[p])
		virtio_submit(&net[2 * p + RX], &(struct virtio_buf){ in[p], sizeof in[p], true }, 1);
	waiting[p] = true;
}

// The pair by which a frame came, or `pairs`: none in time.
static u32 receive(u32 *ret_len)
{
	enum { AT_ONCE = 100 };
	for (u32 i = 0; i < WAIT_ROUNDS / AT_ONCE; i++)
		for (u32 p = 0; p < pairs; p++)
			if (virtio_wait(&net[2 * p + RX], AT_ONCE, ret_len)) {
				waiting[p] = false;
				return p;
			}
	return pairs;
}

// Sends `len` bytes behind the Ethernet header; then looks at frames until one is the answer:
// what follows its Ethernet header, or NULL.
static const u8 *ask(u32 len, bool (*is_answer)(const u8 *p, u32 n))
{
	const struct virtio_buf tx = { out, HEADER + ETH + len, false };
	u32 n;
	for (u32 p = 0; p < pairs; p++)
		listen(p);
	if (!virtio_request(&net[2 * (pairs - 1) + TX], &tx, 1, &n))
		return NULL;
	for (int i = 0; i < TRIES; i++) {
		u32 p = receive(&n);
		if (p == pairs)
			return NULL;
		if (n >= HEADER + ETH && is_answer(in[p] + HEADER + ETH, n - HEADER - ETH))
			return in[p] + HEADER + ETH;
		listen(p);
	}
	return NULL;
}

static u32 asked_address, asked_port, asked_from;

static bool is_arp_answer(const u8 *p, u32 n)
{
	return get16(p - 2) == 0x0806 && n >= 28 && get16(p + 6) == 2 && get32(p + 14) == asked_address;
}

bool net_arp(u32 address, u8 ret_mac[6])
{
	static const u8 request[] = { 0, 1, 8, 0, 6, 4, 0, 1 };
	u8 *p = begin(broadcast, 0x0806);
	copy(p, request, sizeof request);
	copy(p + 8, mac, 6);
	put32(p + 14, OUR_ADDRESS);
	put32(p + 24, asked_address = address);
	const u8 *a = ask(28, is_arp_answer);
	if (a)
		copy(ret_mac, a + 8, 6);
	return a;
}

static void put_ip(u8 *p, u32 address, u8 protocol, u32 bytes)
{
	u32 sum = 0;
	p[0] = 0x45;
	put16(p + 2, IP + bytes);
	p[8] = 64;
	p[9] = protocol;
	put32(p + 12, OUR_ADDRESS);
	put32(p + 16, asked_address = address);
	for (int i = 0; i < IP; i += 2)
		sum += get16(p + i);
	put16(p + 10, ~(sum % 0xffff) & 0xffff);
}

static bool is_udp_answer(const u8 *p, u32 n)
{
	return get16(p - 2) == 0x0800 && n >= IP + UDP && p[0] == 0x45 && p[9] == 17 &&
	       get32(p + 12) == asked_address && get16(p + IP) == asked_port &&
	       get16(p + IP + 2) == asked_from && get16(p + IP + 4) >= UDP && get16(p + IP + 4) <= n - IP;
}

// To the gateway, whoever that is, by broadcast: passt takes it.
bool net_udp(u32 address, u16 port, u16 from, const char *text, char ret_text[NET_TEXT])
{
	u8 *p = begin(broadcast, 0x0800);
	u32 n = 0;
	while (text[n] && n < NET_TEXT - 1)
		n++;
	copy(p + IP + UDP, text, n);
	put_ip(p, address, 17, UDP + n);
	put16(p + IP, asked_from = from);
	put16(p + IP + 2, asked_port = port);
	put16(p + IP + 4, UDP + n); // without a checksum
	const u8 *a = ask(IP + UDP + n, is_udp_answer);
	if (!a)
		return false;
	n = get16(a + IP + 4) - UDP;
	n = n < NET_TEXT - 1 ? n : NET_TEXT - 1;
	copy(ret_text, a + IP + UDP, n);
	ret_text[n] = 0;
	return true;
}

enum { FIN = 1, SYN = 2, ACK = 16, HTTP_PORT = 80, FIRST_PORT = 30000 };
static u32 tcp_seq = 1, tcp_ack, wanted_flags;

static bool is_tcp_answer(const u8 *p, u32 n)
{
	return get16(p - 2) == 0x0800 && n >= IP + TCP && p[0] == 0x45 && p[9] == 6 && get16(p + 2) <= n &&
	       get32(p + 12) == asked_address && get16(p + IP) == HTTP_PORT &&
	       get16(p + IP + 2) == asked_from && get32(p + IP + 8) == tcp_seq &&
	       (p[IP + 13] & wanted_flags) == wanted_flags;
}

// Sends a segment and waits for one with these flags; its data.
static const u8 *tcp(const u8 to[6], u32 address, u32 flags, const char *data, u32 n, u32 wanted, u32 *ret_n)
{
	u8 *p = begin(to, 0x0800), *t = p + IP;
	u32 sum = 6 + TCP + n;
	put_ip(p, address, 6, TCP + n);
	put16(t, asked_from);
	put16(t + 2, HTTP_PORT);
	put32(t + 4, tcp_seq);
	put32(t + 8, tcp_ack);
	t[12] = TCP / 4 << 4;
	t[13] = (u8)flags;
	put16(t + 14, FRAME);
	copy(t + TCP, data, n);
	for (u32 i = 0; i < 8 + TCP + n; i += 2) // with the addresses; what is behind the data is zero
		sum += get16(p + 12 + i);
	put16(t + 16, ~(sum % 0xffff) & 0xffff);
	tcp_seq += n + (flags & (SYN | FIN) ? 1 : 0);
	wanted_flags = wanted;
	const u8 *a = ask(IP + TCP + n, is_tcp_answer);
	if (!a)
		return NULL;
	u32 header = IP + (a[IP + 12] >> 4) * 4u;
	*ret_n = get16(a + 2) - header;
	tcp_ack = get32(a + IP + 4) + *ret_n + (a[IP + 13] & (SYN | FIN) ? 1 : 0);
	return a + header;
}

bool net_http(u32 address, const char *request, u32 n, char ret_body[NET_TEXT])
{
	u8 to[6];
	u32 len, at = 0;
	if (!net_arp(address, to))
		return false;
	asked_from = asked_from < FIRST_PORT ? FIRST_PORT : asked_from + 1;
	tcp_ack = 0;
	if (!tcp(to, address, SYN, "", 0, SYN | ACK, &len))
		return false;
	const u8 *a = tcp(to, address, ACK, request, n, FIN | ACK, &len);
	if (!a)
		return false;
	while (at + 4 <= len &&
	       !(a[at] == '\r' && a[at + 1] == '\n' && a[at + 2] == '\r' && a[at + 3] == '\n'))
		at++;
	at = at + 4 <= len ? at + 4 : len;
	len = len - at < NET_TEXT - 1 ? len - at : NET_TEXT - 1;
	copy(ret_body, a + at, len);
	ret_body[len] = 0;
	return tcp(to, address, FIN | ACK, "", 0, ACK, &len);
}
