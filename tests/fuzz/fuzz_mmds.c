// SPDX-License-Identifier: Apache-2.0
// A hostile guest and its metadata service: frames as they come, or segments of a few connections with the
// right checksums and nearly the right numbers, so that requests get through; with time that passes, output
// that is taken or left, and a document of any bytes.
#include <stdlib.h>
#include <string.h>

#include "devices/mmds.h"
#include "devices/mmds_json.h"
#include "devices/mmds_tcp.h"
#include "microvm/base/util.h"

enum { MAX_STEPS = 200, PORTS = 4, TCP_AT = 34, FRAME = 2048 };

static struct mmds *service;
static struct mmds_tcp tcp;
static uint64_t now_ns;
static uint32_t seq[PORTS], ack[PORTS]; // the guest's next one; the service's

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void put(uint8_t *p, uint32_t v, unsigned bytes)
{
	while (bytes--) {
		p[bytes] = (uint8_t)v;
		v >>= 8;
	}
}
static uint32_t get(const uint8_t *p, unsigned bytes)
{
	uint32_t v = 0;
	while (bytes--)
		v = v << 8 | *p++;
	return v;
}

static uint32_t take(const uint8_t **data, size_t *size, unsigned bytes)
{
	uint32_t v = 0;
	for (unsigned i = 0; i < bytes && *size; i++, ++*data, --*size)
		v |= (uint32_t) * *data << 8 * i;
	return v;
}

static void input(const uint8_t *frame, size_t len, bool unsummed)
{
	MV_FREE uint8_t *exact = malloc(len + !len);
	must(exact);
	memcpy(exact, frame, len);
	mmds_tcp_is_ours(tcp.address, exact, len);
	mmds_tcp_input(&tcp, exact, len, unsummed, now_ns);
}

static void segment(unsigned port, const uint8_t **data, size_t *size)
{
	uint8_t frame[FRAME] = { [12] = 8, [TCP_AT - 20] = 0x45, [23] = 6, [26] = 10, [29] = 2 },
		*t = frame + TCP_AT;
	uint32_t flags = take(data, size, 1), n = take(data, size, 1), sum = 0;
	n = n < *size ? n : (uint32_t)*size;
	memcpy(frame + 30, tcp.address, 4);
	put(frame + 16, 40 + n, 2);
	put(t, 1000 + port, 2);
	put(t + 2, 80, 2);
	put(t + 4, seq[port] + (flags & 0x40 ? take(data, size, 1) - 128 : 0), 4);
	put(t + 8, ack[port] + (flags & 0x80 ? take(data, size, 1) - 128 : 0), 4);
	t[12] = 0x50;
	t[13] = flags & 0x37;
	put(t + 14, flags & 0x20 ? take(data, size, 2) : 0xffff, 2);
	n = n < *size ? n : (uint32_t)*size;
	memcpy(t + 20, *data, n);
	*data += n;
	*size -= n;
	put(frame + 16, 40 + n, 2);
	for (unsigned i = 0; i < 20; i += 2)
		sum += get(frame + 14 + i, 2);
	put(frame + 24, ~(sum % 0xffff), 2);
	input(frame, TCP_AT + 20 + n, true);
	seq[port] += n + (flags & 1) + (flags >> 1 & 1);
}

static void output(unsigned most)
{
	uint8_t *frame = malloc(MMDS_TCP_FRAME_MAX);
	must(frame);
	for (size_t n; most && (n = mmds_tcp_output(&tcp, frame, now_ns)); most--) {
		must(n >= 42 && n <= MMDS_TCP_FRAME_MAX);
		if (frame[13] == 6)
			continue;
		uint8_t *t = frame + TCP_AT;
		uint32_t port = get(t + 2, 2) - 1000u, header = t[12] >> 2;
		must(get(frame + 16, 2) == n - 14 && TCP_AT + header <= n);
		if (port < PORTS)
			ack[port] = get(t + 4, 4) + (uint32_t)(n - TCP_AT) - header + (t[13] & 1) +
				    (t[13] >> 1 & 1);
	}
	free(frame);
}

static void look_up(const uint8_t **data, size_t *size)
{
	uint32_t path_len = take(data, size, 1);
	size_t text_len = path_len < *size ? *size - path_len : 0;
	struct mmds_json v;
	MV_BUF out = { 0 };
	path_len = (uint32_t)(*size - text_len);
	MV_FREE char *text = malloc(*size + 1);
	must(text);
	memcpy(text, *data, text_len);
	if (mmds_json_find(text, text_len, (const char *)*data + text_len, path_len, &v)) {
		must(v.p >= text && v.p < v.end && v.end <= text + text_len);
		mmds_json_plain(&v, &out);
	}
	must(out.len <= 2 * text_len + 1);
	*size = 0;
}

static void set_up(bool tokens)
{
	static const char document[] =
		"{\"a\":{\"b\":\"text\",\"c\":[1,2,{\"d\":\"\\u00e4\"}]},\"e\":\"f\"}\n";
	const struct mmds_config config = { { 169, 254, 169, 254 }, tokens, false };
	const struct mmds_tcp_app app = { mmds_http_request, service = mmds_new(&config) };
	must(service);
	mmds_set_document(service, document, sizeof document - 1);
	mmds_tcp_init(&tcp, config.address, MMDS_HTTP_PORT, 1500, &app);
	now_ns = 1;
	memset(seq, 0, sizeof seq);
	memset(ack, 0, sizeof ack);
}

// What a step is: its lower three bits; the others are the step's own.
enum { RAW, SEGMENT, SEGMENT_TOO, SEGMENT_AND_OUTPUT, OUTPUT, TIME, RESET, LOOK_UP };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	set_up(take(&data, &size, 1) & 1);
	for (unsigned i = 0; size && i < MAX_STEPS; i++) {
		unsigned op = take(&data, &size, 1), how = op / 8;
		size_t n;
		switch (op % 8) {
		case RAW:
			n = take(&data, &size, 1);
			n = n < size ? n : size;
			input(data, n, how & 1);
			data += n;
			size -= n;
			break;
		case SEGMENT_AND_OUTPUT:
			segment(how % PORTS, &data, &size);
			output(100);
			break;
		case OUTPUT: output(how); break;
		case TIME: {
			now_ns += (uint64_t)take(&data, &size, 1) * MMDS_TCP_RETRY_NS;
			uint64_t next_ns = mmds_tcp_tick(&tcp, now_ns);
			must(!next_ns || next_ns > now_ns);
			break;
		}
		case RESET:
			if (!how)
				mmds_tcp_reset(&tcp);
			break;
		case LOOK_UP: look_up(&data, &size); break;
		default: segment(how % PORTS, &data, &size);
		}
	}
	// Left alone, everything comes to an end.
	for (unsigned i = 0; mmds_tcp_next_tick(&tcp); i++) {
		must(i < 200 * MMDS_TCP_CONNS);
		output(1000);
		now_ns = mmds_tcp_next_tick(&tcp) > now_ns ? mmds_tcp_next_tick(&tcp) : now_ns;
		mmds_tcp_tick(&tcp, now_ns);
	}
	mmds_tcp_reset(&tcp);
	mmds_free(service);
	return 0;
}
