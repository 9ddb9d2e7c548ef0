// SPDX-License-Identifier: Apache-2.0
// The tiny guest's commands that use a virtio device.
#include "tests/guest/tiny.h"

void do_rand(char *args)
{
	u64 n;
	u8 got[RNG_MAX];
	if (!arg_number(&args, &n) || n < 1 || n > RNG_MAX)
		return error("not 1 to 64 bytes");
	if (!rng_init())
		return error("no virtio-rng device");
	if (!rng_fill(got, n))
		return error("virtio-rng does not answer");
	put("OK ");
	put_bytes(got, n);
	put("\n");
}

// blk r SECTOR | p SECTOR PAGE | w SECTOR TEXT | d SECTOR N | z SECTOR N | q QUEUE | c | f | t SECTORS ROUNDS
// r|w: a sector as text, or into a page of the heap that only the device touches; discard, make zeros; which
// queue; capacity; flush; traffic in all queues.
void do_blk(char *args)
{
	static u8 data[BLK_SECTOR + 1];
	const char *how = word(&args);
	u64 sector = 0, page;
	bool ok;
	if (!same(how, "f") && !same(how, "c") && !arg_number(&args, &sector))
		return error("bad sector");
	if (!blk_init())
		return error("no virtio-blk device");
	if (same(how, "r")) {
		ok = blk_read(sector, data);
		if (ok)
			return ok_text((const char *)data);
	} else if (same(how, "p")) {
		if (!arg_number(&args, &page) || !in_heap(page, 1))
			return error("bad page");
		ok = blk_read(sector, (u8 *)heap_page(page));
	} else if (same(how, "w")) {
		memset(data, 0, sizeof data);
		copy_text((char *)data, args, BLK_SECTOR);
		ok = blk_write(sector, data);
	} else if (same(how, "d") || same(how, "z")) {
		if (!arg_number(&args, &page))
			return error("bad number of sectors");
		ok = blk_zero(sector, (u32)page, same(how, "d"));
	} else if (same(how, "t")) {
		if (!arg_number(&args, &page) || !sector)
			return error("bad number of rounds");
		ok = blk_traffic(sector, page, same(word(&args), "w"));
	} else if (same(how, "q")) {
		ok = blk_use(sector);
	} else if (same(how, "c")) {
		return ok_dec(blk_sectors());
	} else if (same(how, "f")) {
		ok = blk_flush();
	} else {
		return error("not r, p, w, d, z, t, q, c or f");
	}
	if (!ok)
		return error("virtio-blk failed");
	put("OK\n");
}

// A.B.C.D
static bool arg_address(char **args, u32 *address)
{
	const char *w = word(args);
	u64 v;
	*address = 0;
	for (int i = 0; i < 4; i++, w++) {
		if (!number(&w, &v) || v > 255 || (i < 3 && *w != '.'))
			return false;
		*address = *address << 8 | (u32)v;
	}
	return !w[-1];
}

// METHOD PATH [HEADER]
static bool do_http(u32 address, char *args, char *answer)
{
	static char request[sizeof machine.cmdline];
	const char *method = word(&args), *path = word(&args), *end = *args ? "\r\n\r\n" : "\r\n";
	const char *part[] = { method, " ", path, " HTTP/1.0\r\n", args, end };
	u32 n = 0;
	for (u32 i = 0; i < sizeof part / sizeof *part; i++)
		for (const char *p = part[i]; *p && n < sizeof request; p++)
			request[n++] = *p;
	return net_http(address, request, n, answer);
}

// net arp ADDRESS | udp ADDRESS PORT FROM TEXT | http ADDRESS METHOD PATH [HEADER] | link | pairs N: who has
// the address; the answer to a datagram from port FROM; the body of that to a request; up or down; how many
// pairs of queues to use.
void do_net(char *args)
{
	static char answer[NET_TEXT];
	const char *how = word(&args);
	u8 mac[6];
	u32 address = 0;
	u64 port = 0, from = 0;
	if (same(how, "pairs")) {
		if (!arg_number(&args, &from) || from < 1 || from > 2)
			return error("bad number of pairs");
	} else if (!same(how, "link") && !arg_address(&args, &address))
		return error("bad address");
	if (same(how, "udp") &&
	    (!arg_number(&args, &port) || port > 65535 || !arg_number(&args, &from) || from > 65535))
		return error("bad port");
	if (!net_init())
		return error("no virtio-net device");
	if (same(how, "pairs"))
		return net_pairs((u32)from) ? put("OK\n") : error("not that many pairs");
	if (same(how, "link"))
		return ok_text(net_link_up() ? "up" : "down");
	if (same(how, "udp"))
		return net_udp(address, (u16)port, (u16)from, args, answer) ? ok_text(answer)
									    : error("no answer");
	if (same(how, "http"))
		return do_http(address, args, answer) ? ok_text(answer) : error("no answer");
	if (!same(how, "arp"))
		return error("not arp, udp, http, link or pairs");
	if (!net_arp(address, mac))
		return error("no answer");
	put("OK ");
	put_bytes(mac, sizeof mac);
	put("\n");
}

// vsock PORT: all that the host says there.
void do_vsock(char *args)
{
	static char text[66000];
	u64 port;
	u32 n;
	if (!arg_number(&args, &port) || port > 0xffffffff)
		return error("bad port");
	if (!vsock_init())
		return error("no virtio-vsock device");
	if (!vsock_read((u32)port, text, sizeof text, &n))
		return error("refused");
	put("OK ");
	for (u32 i = 0; i < n && text[i] != '\n'; i++)
		put_char(text[i]);
	put("\n");
}

// balloon target | in FIRST N | out FIRST N | report FIRST N | stats FREE | command | hint FIRST N | stop
void do_balloon(char *args)
{
	const char *how = word(&args);
	u64 first = 0, n = 0;
	bool ok;
	if (!balloon_init())
		return error("no virtio-balloon device");
	if (same(how, "target"))
		return ok_dec(balloon_target());
	if (same(how, "command"))
		return ok_dec(balloon_command());
	if (same(how, "stop"))
		return balloon_hint_stop() ? put("OK\n") : error("no free page hints");
	if (!arg_number(&args, &first))
		return error("bad number");
	if (same(how, "stats"))
		ok = balloon_stats(first);
	else if (!arg_number(&args, &n) || !in_heap(first, n))
		return error("bad range of pages");
	else if (same(how, "report"))
		ok = balloon_report((u64)heap_page(first), (u32)n);
	else if (same(how, "hint"))
		ok = balloon_hint((u64)heap_page(first), (u32)n);
	else
		ok = balloon_move(same(how, "in"), (u64)heap_page(first), (u32)n);
	if (!ok)
		return error("virtio-balloon does not answer");
	put("OK\n");
}

// port 0|1 show | write TEXT | read
void do_port(char *args)
{
	static char text[65];
	u64 p, n = 0;
	u32 len;
	if (!arg_number(&args, &p) || p > 1)
		return error("bad port");
	if (!console_init())
		return error("no virtio-console device");
	const char *how = word(&args);
	if (same(how, "show")) {
		put("OK ");
		put(console_port((u32)p)->name);
		put(console_port((u32)p)->tty ? " tty" : " port");
		put(console_port((u32)p)->open ? " open\n" : " closed\n");
		return;
	}
	while (args[n])
		n++;
	if (same(how, "write"))
		return console_write((u32)p, args, (u32)n) ? put("OK\n") : error("no answer");
	if (!console_read((u32)p, text, &len))
		return error("nothing");
	text[len] = 0;
	ok_text(text);
}

// pmem size | get INDEX | set INDEX NUMBER | flush
void do_pmem(char *args)
{
	const char *how = word(&args);
	u64 i = 0, v = 0, bytes;
	u32 ret;
	if (!pmem_init())
		return error("no virtio-pmem device");
	pmem_word(0, &bytes);
	if (same(how, "size"))
		return ok_dec(bytes);
	if (same(how, "flush"))
		return pmem_flush(&ret) ? ok_dec(ret) : error("no answer");
	if (!arg_number(&args, &i) || i >= bytes / 8)
		return error("bad index");
	if (same(how, "set")) {
		if (!arg_number(&args, &v))
			return error("bad number");
		*pmem_word(i, &bytes) = v;
	}
	ok_dec(*pmem_word(i, &bytes));
}

// events PIN each|batch N [irq]: N requests to virtio-rng, whose interrupt is at PIN. With irq it asks for
// one at the last request and sleeps until it comes; else it asks for none, and none is to be pending.
void do_events(char *args)
{
	u64 pin, n;
	if (!arg_number(&args, &pin))
		return error("not a pin");
	bool each = same(word(&args), "each");
	if (!arg_number(&args, &n) || !n || n > 30000)
		return error("not 1 to 30000 requests");
	bool wish = same(word(&args), "irq");
	if (!rng_init())
		return error("no virtio-rng device");
	if (!machine_unmask_virtio(pin))
		return error("not a pin");
	if (!rng_events(n, each, wish))
		return error("virtio-rng does not answer");
	for (bool came = !wish; !came; came = handle_events() & EVENT_VIRTIO)
		wait_interrupt();
	if (machine_virtio_pending())
		return error("an interrupt too many");
	ok_dec(n);
}
