// SPDX-License-Identifier: Apache-2.0
#include "devices/mmds_tcp.h"

#include <string.h>

enum { ETH = 14, ARP = 28, IP = 20, TCP = 20, MSS_OPTION = 4 };
enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };
enum { PROTOCOL_TCP = 6, TTL = 64, MSS_MIN = 64, MSS_DEFAULT = 536, RETRIES_MAX = 5 };

const uint8_t mmds_tcp_mac[6] = { 0x06, 't', 'h', 'a', 'w', 1 }; // locally administered

// Sequence numbers of what we send: iss is the SYN's; the answer is [base, base + answer.len), and the FIN,
// if it is to be the last one, is behind it. una: not acknowledged; next: to be sent; high: never sent
// before.
struct mmds_tcp_conn {
	uint8_t mac[6], ip[4];
	uint16_t port, mss;
	bool open; // the guest has acknowledged our SYN
	bool syn_due, ack_due, reset_due;
	bool last;         // we close behind the answer
	bool guest_closed; // its FIN came
	bool probe;        // send one byte into a closed window
	uint32_t base, una, next, high, window;
	uint32_t expected;    // of the guest's sequence numbers
	uint64_t progress_ns; // when either side last got on
	uint64_t retry_ns;    // when what is not acknowledged is sent again; 0: nothing is out
	unsigned retries;
	struct mv_buf answer;
	uint32_t in_len;
	uint8_t in[MMDS_TCP_ROOM];
};

struct segment {
	const uint8_t *mac, *ip;
	uint16_t port, our_port, mss;
	uint32_t seq, ack, window, n; // n: bytes of data
	uint8_t flags;
	const uint8_t *data;
};

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }
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

// RFC 1071: adds up; a sum that includes its own checksum comes to 0xffff.
static uint32_t add_up(uint32_t sum, const uint8_t *p, size_t len)
{
	uint64_t s = sum;
	for (; len > 1; p += 2, len -= 2)
		s += get16(p);
	if (len)
		s += (uint32_t)*p << 8;
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return (uint32_t)s;
}

// Of a TCP segment of `len` bytes, with the pseudo header (RFC 9293 section 3.1); the addresses lie
// behind each other.
static uint32_t tcp_sum(const uint8_t addresses[8], const uint8_t *tcp, size_t len)
{
	return add_up(add_up(PROTOCOL_TCP + (uint32_t)len, addresses, 8), tcp, len);
}

static int32_t after(uint32_t a, uint32_t b) { return (int32_t)(a - b); } // > 0: a is the later one
static uint32_t end_of(const struct mmds_tcp_conn *c) { return c->base + (uint32_t)c->answer.len; }

void mmds_tcp_init(struct mmds_tcp *t, const uint8_t address[4], uint16_t port, uint16_t mtu,
		   const struct mmds_tcp_app *app)
{
	*t = (struct mmds_tcp){ .port = port, .mtu = mtu, .app = *app };
	memcpy(t->address, address, sizeof t->address);
}

static void forget(struct mmds_tcp_conn **at)
{
	if (*at)
		mv_buf_fini(&(*at)->answer);
	free(MV_TAKE(*at));
}

void mmds_tcp_reset(struct mmds_tcp *t)
{
	for (unsigned i = 0; i < MMDS_TCP_CONNS; i++)
		forget(&t->conn[i]);
	t->n_controls = 0;
}

// ---- in

// When there are too many the guest asks again, or goes without.
static void add_control(struct mmds_tcp *t, const struct mmds_tcp_control *c)
{
	if (t->n_controls < MMDS_TCP_CONTROLS)
		t->control[(t->control_at + t->n_controls++) % MMDS_TCP_CONTROLS] = *c;
	else
		t->dropped++;
}

static void arp_input(struct mmds_tcp *t, const uint8_t *frame, size_t len)
{
	static const uint8_t request[] = { 0, 1, 8, 0, 6, 4, 0, 1 };
	const uint8_t *p = frame + ETH;
	struct mmds_tcp_control c = { .arp = true };
	if (len < ETH + ARP || memcmp(p, request, sizeof request) || memcmp(p + 24, t->address, 4) ||
	    (p[8] & 1))
		return;
	memcpy(c.mac, p + 8, sizeof c.mac);
	memcpy(c.ip, p + 14, sizeof c.ip);
	add_control(t, &c);
}

// RFC 9293 section 3.10.7.1.
static void refuse(struct mmds_tcp *t, const struct segment *s)
{
	uint32_t n = s->n + !!(s->flags & SYN) + !!(s->flags & FIN);
	struct mmds_tcp_control c = { .port = s->port, .our_port = s->our_port, .flags = RST };
	if (s->flags & RST)
		return;
	memcpy(c.mac, s->mac, sizeof c.mac);
	memcpy(c.ip, s->ip, sizeof c.ip);
	if (s->flags & ACK) {
		c.seq = s->ack;
	} else {
		c.flags |= ACK;
		c.ack = s->seq + n;
	}
	add_control(t, &c);
}

static uint16_t mss_of(const uint8_t *option, size_t n)
{
	while (n > 1 && option[0]) {
		size_t k = option[0] == 1 ? 1 : option[1];
		if (!k || k > n || (option[0] != 1 && k < 2))
			break;
		if (option[0] == 2 && k == MSS_OPTION)
			return get16(option + 2);
		option += k;
		n -= k;
	}
	return MSS_DEFAULT;
}

// False: not a whole TCP segment for us, with the right checksums.
static bool parse(const struct mmds_tcp *t, const uint8_t *frame, size_t len, bool unsummed,
		  struct segment *ret_s)
{
	const uint8_t *ip = frame + ETH, *tcp;
	size_t header, total, n, offset;
	if (len < ETH + IP || get16(frame + 12) != 0x0800 || ip[0] >> 4 != 4 || (frame[6] & 1))
		return false;
	header = (ip[0] & 15u) * 4;
	total = get16(ip + 2);
	if (header < IP || total < header + TCP || total > len - ETH || add_up(0, ip, header) != 0xffff)
		return false;
	if ((get16(ip + 6) & 0x3fff) || ip[9] != PROTOCOL_TCP || memcmp(ip + 16, t->address, 4))
		return false; // a fragment, or not ours
	if (ip[12] == 0 || ip[12] == 127 || ip[12] >= 224 || !memcmp(ip + 12, t->address, 4))
		return false; // nobody that can be answered
	tcp = ip + header;
	n = total - header;
	offset = (tcp[12] >> 4) * 4u;
	if (offset < TCP || offset > n || (!unsummed && tcp_sum(ip + 12, tcp, n) != 0xffff))
		return false;
	*ret_s = (struct segment){ .mac = frame + 6,
				   .ip = ip + 12,
				   .port = get16(tcp),
				   .our_port = get16(tcp + 2),
				   .seq = get32(tcp + 4),
				   .ack = get32(tcp + 8),
				   .flags = tcp[13],
				   .window = get16(tcp + 14),
				   .mss = mss_of(tcp + TCP, offset - TCP),
				   .data = tcp + offset,
				   .n = (uint32_t)(n - offset) };
	return true;
}

static struct mmds_tcp_conn **find(struct mmds_tcp *t, const struct segment *s)
{
	for (unsigned i = 0; i < MMDS_TCP_CONNS; i++)
		if (t->conn[i] && t->conn[i]->port == s->port && !memcmp(t->conn[i]->ip, s->ip, 4))
			return &t->conn[i];
	return NULL;
}

// No room: the guest sends its SYN again.
static void open_conn(struct mmds_tcp *t, const struct segment *s, uint64_t now_ns)
{
	uint16_t most = (uint16_t)((t->mtu < 1500 ? t->mtu : 1500) - IP - TCP);
	unsigned i = 0;
	while (i < MMDS_TCP_CONNS && t->conn[i])
		i++;
	struct mmds_tcp_conn *c = i < MMDS_TCP_CONNS ? calloc(1, sizeof *c) : NULL;
	if (!c) {
		t->dropped++;
		return;
	}
	memcpy(c->mac, s->mac, sizeof c->mac);
	memcpy(c->ip, s->ip, sizeof c->ip);
	c->port = s->port;
	c->mss = s->mss < MSS_MIN ? MSS_MIN : s->mss;
	c->mss = c->mss > most ? most : c->mss;
	c->window = s->window;
	c->expected = s->seq + 1;
	mv_random(&c->una, sizeof c->una);
	c->next = c->high = c->una;
	c->base = c->una + 1;
	c->progress_ns = now_ns;
	c->syn_due = true;
	t->conn[i] = c;
}

// Requests are carried out one by one, each when the answer to the one before has arrived.
static void serve(struct mmds_tcp *t, struct mmds_tcp_conn *c)
{
	while (c->open && !c->last && c->una == end_of(c)) {
		mv_buf_fini(&c->answer);
		c->base = c->una;
		size_t used =
			c->in_len ? t->app.request(t->app.arg, c->in, c->in_len, &c->answer, &c->last) : 0;
		if (c->answer.failed || (!used && c->in_len == MMDS_TCP_ROOM)) {
			c->reset_due = true;
			return;
		}
		if (!used) {
			c->last = c->guest_closed; // what there is will never be a request
			return;
		}
		c->ack_due = c->ack_due || c->in_len == MMDS_TCP_ROOM; // the window is open again
		c->in_len -= (uint32_t)used;
		memmove(c->in, c->in + used, c->in_len);
	}
}

// False: the segment is not to be looked at further.
static bool take_ack(struct mmds_tcp *t, struct mmds_tcp_conn *c, const struct segment *s, uint64_t now_ns)
{
	if (!c->open && s->ack != c->base) {
		refuse(t, s);
		return false;
	}
	if (after(s->ack, c->high) > 0) { // what was never sent
		c->ack_due = true;
		return false;
	}
	if (after(s->ack, c->una) >= 0) {
		if (!c->window && s->window) // of a probe nobody knows whether it was taken
			c->next = s->ack;
		c->window = s->window;
	}
	if (after(s->ack, c->una) > 0) {
		c->open = true;
		c->una = s->ack;
		c->next = after(c->next, c->una) < 0 ? c->una : c->next;
		c->progress_ns = now_ns;
		c->retries = 0;
		c->retry_ns = c->una == c->high ? 0 : now_ns + MMDS_TCP_RETRY_NS;
	}
	return true;
}

static void take_data(struct mmds_tcp_conn *c, const struct segment *s, uint64_t now_ns)
{
	uint32_t n = s->n, skip = c->expected - s->seq, fin = !!(s->flags & FIN);
	if (!n && !fin && !skip)
		return;
	c->ack_due = true; // also of what came twice, too early, or too much
	if (after(s->seq, c->expected) > 0 || skip >= n + fin || c->guest_closed)
		return;
	n -= skip;
	uint32_t room = MMDS_TCP_ROOM - c->in_len, take = n < room ? n : room;
	memcpy(c->in + c->in_len, s->data + skip, take);
	c->in_len += take;
	c->expected += take;
	if (take == n && fin) {
		c->guest_closed = true;
		c->expected++;
	}
	if (take || c->guest_closed)
		c->progress_ns = now_ns;
}

void mmds_tcp_input(struct mmds_tcp *t, const uint8_t *frame, size_t len, bool unsummed, uint64_t now_ns)
{
	struct segment s;
	if (len >= ETH && get16(frame + 12) == 0x0806) {
		arp_input(t, frame, len);
		return;
	}
	if (!parse(t, frame, len, unsummed, &s)) {
		t->dropped++;
		return;
	}
	struct mmds_tcp_conn **at = s.our_port == t->port ? find(t, &s) : NULL, *c = at ? *at : NULL;
	if (!c && (s.our_port != t->port || (s.flags & (SYN | ACK | RST | FIN)) != SYN)) {
		refuse(t, &s);
	} else if (!c) {
		open_conn(t, &s, now_ns);
	} else if (s.flags & RST) {
		if (s.seq == c->expected)
			forget(at);
	} else if (s.flags & SYN) {
		if (!c->open && s.seq + 1 == c->expected)
			c->syn_due = true;
		else
			c->ack_due = true; // RFC 5961 section 4: whoever it is tells us by a reset
	} else if ((s.flags & ACK) && !c->reset_due && take_ack(t, c, &s, now_ns)) {
		take_data(c, &s, now_ns);
		serve(t, c);
		if (c->una != end_of(c) + c->last && !c->retry_ns) // also while the guest's window is closed
			c->retry_ns = now_ns + MMDS_TCP_RETRY_NS;
	}
}

// ---- out

// Fills in all headers of a segment whose options and data are in place; the frame's bytes.
static size_t finish(const struct mmds_tcp *t, uint8_t *frame, const struct mmds_tcp_control *to,
		     uint32_t window, size_t options, size_t n)
{
	uint8_t *ip = frame + ETH, *tcp = ip + IP;
	size_t bytes = TCP + options + n;
	memcpy(frame, to->mac, 6);
	memcpy(frame + 6, mmds_tcp_mac, 6);
	put16(frame + 12, 0x0800);
	memset(ip, 0, IP);
	ip[0] = 0x45;
	put16(ip + 2, (uint32_t)(IP + bytes));
	put16(ip + 6, 0x4000); // don't fragment
	ip[8] = TTL;
	ip[9] = PROTOCOL_TCP;
	memcpy(ip + 12, t->address, 4);
	memcpy(ip + 16, to->ip, 4);
	put16(ip + 10, ~add_up(0, ip, IP));
	put16(tcp, to->our_port);
	put16(tcp + 2, to->port);
	put32(tcp + 4, to->seq);
	put32(tcp + 8, to->ack);
	tcp[12] = (uint8_t)((TCP + options) / 4 << 4);
	tcp[13] = to->flags;
	put16(tcp + 14, window);
	put32(tcp + 16, 0); // checksum, urgent pointer
	put16(tcp + 16, ~tcp_sum(ip + 12, tcp, bytes));
	return ETH + IP + bytes;
}

static size_t control_output(struct mmds_tcp *t, uint8_t *frame)
{
	static const uint8_t answer[] = { 0, 1, 8, 0, 6, 4, 0, 2 };
	const struct mmds_tcp_control *c = &t->control[t->control_at];
	uint8_t *p = frame + ETH;
	t->control_at = (t->control_at + 1) % MMDS_TCP_CONTROLS;
	t->n_controls--;
	if (!c->arp)
		return finish(t, frame, c, 0, 0, 0);
	memcpy(frame, c->mac, 6);
	memcpy(frame + 6, mmds_tcp_mac, 6);
	put16(frame + 12, 0x0806);
	memcpy(p, answer, sizeof answer);
	memcpy(p + 8, mmds_tcp_mac, 6);
	memcpy(p + 14, t->address, 4);
	memcpy(p + 18, c->mac, 6);
	memcpy(p + 24, c->ip, 4);
	return ETH + ARP;
}

// Bytes of the answer that may go now, and whether the FIN goes behind them.
static uint32_t sendable(const struct mmds_tcp_conn *c, bool *ret_fin)
{
	uint32_t end = end_of(c), out = c->next - c->una, n = 0;
	if (c->open && after(end, c->next) > 0) {
		uint32_t room = c->window > out ? c->window - out : 0;
		n = end - c->next < c->mss ? end - c->next : c->mss;
		n = n < room ? n : room;
		n = !n && !out && c->probe ? 1 : n;
	}
	*ret_fin = c->open && c->last && c->next + n == end;
	return n;
}

static bool something_due(const struct mmds_tcp_conn *c)
{
	bool fin;
	return c->reset_due || c->syn_due || c->ack_due || sendable(c, &fin) || fin;
}

static size_t conn_output(struct mmds_tcp *t, struct mmds_tcp_conn *c, uint8_t *frame, uint64_t now_ns)
{
	struct mmds_tcp_control to = {
		.port = c->port, .our_port = t->port, .seq = c->next, .ack = c->expected, .flags = ACK
	};
	uint8_t *behind = frame + MMDS_TCP_HEADERS;
	bool fin;
	uint32_t n = sendable(c, &fin), syn = c->syn_due;
	memcpy(to.mac, c->mac, sizeof to.mac);
	memcpy(to.ip, c->ip, sizeof to.ip);
	if (c->reset_due) {
		to.flags |= RST;
	} else if (syn) {
		const uint8_t option[MSS_OPTION] = { 2, MSS_OPTION };
		memcpy(behind, option, sizeof option);
		put16(behind + 2, (t->mtu < 1500 ? t->mtu : 1500u) - IP - TCP);
		to.flags |= SYN;
		to.seq = c->una;
		c->next = c->una + 1;
	} else if (n || fin) {
		if (n)
			memcpy(behind, c->answer.p + (c->next - c->base), n);
		to.flags |= (fin ? FIN : 0) | (n && c->next + n == end_of(c) ? PSH : 0);
		c->next += n + fin;
		c->probe = false;
	}
	if (after(c->next, c->high) > 0)
		c->high = c->next;
	if ((syn || n || fin) && !c->retry_ns)
		c->retry_ns = now_ns + (MMDS_TCP_RETRY_NS << c->retries);
	c->syn_due = c->ack_due = false;
	return finish(t, frame, &to, MMDS_TCP_ROOM - c->in_len, syn ? MSS_OPTION : 0, n);
}

// Both sides have closed and know it of each other, or it was reset.
static bool is_over(const struct mmds_tcp_conn *c, bool reset_sent)
{
	return reset_sent || (c->last && c->guest_closed && !c->ack_due && c->una == end_of(c) + 1);
}

size_t mmds_tcp_output(struct mmds_tcp *t, uint8_t ret_frame[MMDS_TCP_FRAME_MAX], uint64_t now_ns)
{
	if (t->n_controls)
		return control_output(t, ret_frame);
	for (unsigned k = 0; k < MMDS_TCP_CONNS; k++) {
		unsigned i = (t->turn + k) % MMDS_TCP_CONNS;
		struct mmds_tcp_conn *c = t->conn[i];
		size_t n = 0;
		bool reset = c && c->reset_due;
		if (c && something_due(c))
			n = conn_output(t, c, ret_frame, now_ns);
		if (c && is_over(c, reset))
			forget(&t->conn[i]);
		if (n) {
			t->turn = i + 1;
			return n;
		}
	}
	return 0;
}

// ---- time

static void conn_tick(struct mmds_tcp_conn **at, uint64_t now_ns)
{
	struct mmds_tcp_conn *c = *at;
	if (now_ns >= c->progress_ns + MMDS_TCP_IDLE_NS) {
		if (c->reset_due) {
			forget(at);
			return;
		}
		// One that waits for a request is closed, any other one has failed.
		if (c->open && !c->last && c->una == end_of(c))
			c->last = true;
		else
			c->reset_due = true;
		c->progress_ns = now_ns;
		c->retry_ns = 0;
	} else if (c->retry_ns && now_ns >= c->retry_ns) {
		if (something_due(c)) { // the guest takes no frames: that is no loss
			c->retry_ns = now_ns + (MMDS_TCP_RETRY_NS << c->retries);
			return;
		}
		c->retries += c->retries < RETRIES_MAX;
		c->retry_ns = 0;
		c->next = c->una;
		c->syn_due = !c->open;
		c->probe = true;
	}
}

static uint64_t deadline(const struct mmds_tcp_conn *c)
{
	uint64_t end = c->progress_ns + MMDS_TCP_IDLE_NS;
	return c->retry_ns && c->retry_ns < end ? c->retry_ns : end;
}

uint64_t mmds_tcp_next_tick(const struct mmds_tcp *t)
{
	uint64_t next = 0;
	for (unsigned i = 0; i < MMDS_TCP_CONNS; i++)
		if (t->conn[i] && (!next || deadline(t->conn[i]) < next))
			next = deadline(t->conn[i]);
	return next;
}

uint64_t mmds_tcp_tick(struct mmds_tcp *t, uint64_t now_ns)
{
	for (unsigned i = 0; i < MMDS_TCP_CONNS; i++)
		if (t->conn[i] && now_ns >= deadline(t->conn[i]))
			conn_tick(&t->conn[i], now_ns);
	return mmds_tcp_next_tick(t);
}
