/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the tiny guest agree on. */
#ifndef TESTS_GUEST_TINY_H
#define TESTS_GUEST_TINY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define PAGE 4096ULL
#define RNG_MAX 64

#include "tests/guest/machine.h"

// tiny.c: the serial port's other direction, and answers of one line.
void put_char(char c);
void put(const char *s);
void put_hex(u64 v, int digits);
void put_bytes(const volatile u8 *p, u64 n);
void error(const char *reason);
void ok_dec(u64 v);
void ok_text(const char *s);
// Says what there is to say about what came; returns it (enum event).
u32 handle_events(void);

// text.c
bool starts(const char *s, const char *with);
bool same(const char *a, const char *b);
void copy_text(char *to, const char *from, u64 size);
char *word(char **s); // cuts the next one off
// Decimal, or hexadecimal behind 0x; *s moves behind the digits.
bool number(const char **s, u64 *v);
bool arg_number(char **args, u64 *v);
bool cmdline_number(const char *name, u64 *v); // NAME=NUMBER

// commands.c
void run_line(char *line);
volatile u64 *heap_page(u64 n);
bool in_heap(u64 first, u64 n);

// device_commands.c
void do_rand(char *args);
void do_blk(char *args);
void do_net(char *args);
void do_vsock(char *args);
void do_balloon(char *args);
void do_port(char *args);
void do_pmem(char *args);
void do_events(char *args);

// virtio.c: a device and its only queue.
#define VIRTIO_NET 1
#define VIRTIO_BLK 2
#define VIRTIO_RNG 4
#define VIRTIO_BALLOON 5
#define VIRTIO_PMEM 27
#define VIRTIO_CONSOLE 3
#define VIRTIO_CONSOLE_F_MULTIPORT (1u << 1)
#define VIRTIO_VSOCK 19
#define R_DEVICE_FEATURES 0x10 // virtio 1.2 section 4.2.2; the low half is selected
#define VIRTIO_BALLOON_F_HINT (1u << 3)
#define VIRTIO_BALLOON_FEATURES (1u << 1 | VIRTIO_BALLOON_F_HINT | 1u << 5) // statistics, reporting
#define VIRTIO_BLK_FEATURES (1u << 9 | 1u << 12 | 1u << 13 | 1u << 14) // FLUSH, MQ, DISCARD, WRITE_ZEROES
#define VIRTIO_NET_FEATURES                                                                                  \
	(1u << 5 | 1u << 15 | 1u << 17 | 1u << 18 | 1u << 22) // MAC, MRG_RXBUF, CTRL_VQ, CTRL_RX, MQ
#define VIRTIO_RING_F_EVENT_IDX (1u << 29)
#define VIRTIO_QUEUE 16
#define POLL_ROUNDS 200000000ULL
struct virtio { // of a device with several queues: one for each
	volatile struct {
		u64 addr;
		u32 len;
		u16 flags, next;
	} desc[VIRTIO_QUEUE] __attribute__((aligned(16)));
	volatile struct {
		u16 flags, idx, ring[VIRTIO_QUEUE], used_event;
	} avail;
	volatile struct {
		u16 flags, idx;
		struct {
			u32 id, len;
		} ring[VIRTIO_QUEUE];
		u16 avail_event;
	} used __attribute__((aligned(4)));
	u64 base; // 0: not found yet
	u16 queue, idx;
};
struct virtio_buf {
	volatile void *at;
	u32 len;
	bool writable; // by the device
};
// The first device of this kind, with n queues; idempotent. False: there is none.
bool virtio_init(struct virtio *d, u32 n, u32 id);
#define VIRTIO_CONFIG 0x100 // of base
// One request, waited for; bufs up to VIRTIO_QUEUE. False: no answer in time.
bool virtio_request(struct virtio *d, const struct virtio_buf *bufs, u32 n, u32 *ret_len);
// The same in two steps; in between the device works.
void virtio_submit(struct virtio *d, const struct virtio_buf *bufs, u32 n);
bool virtio_wait(struct virtio *d, u64 rounds, u32 *ret_len);
// Tells the device of what is in the queue up to d->idx.
void virtio_kick(struct virtio *d);

// blk.c. False: no such device; an error or no answer.
#define BLK_SECTOR 512
#define BLK_QUEUES 4
bool blk_init(void);
bool blk_read(u64 sector, u8 to[BLK_SECTOR]);
bool blk_write(u64 sector, u8 from[BLK_SECTOR]);
bool blk_flush(void);
bool blk_zero(u64 sector, u32 n, bool discard);
u32 blk_sectors(void);
bool blk_use(u64 queue); // for all that follows
// In each round a request in each queue at once, for sectors whose first 64 bits are their number. With write
// they are written first, the round's number behind that, and are read again.
bool blk_traffic(u64 sectors, u64 rounds, bool write);

// net.c. False: no such device; it did not answer, or nobody did. Text ends with NUL.
#define NET_TEXT 128
bool net_init(void);
bool net_arp(u32 address, u8 ret_mac[6]);
bool net_udp(u32 address, u16 port, u16 from, const char *text, char ret_text[NET_TEXT]);
// One HTTP/1.0 request whose answer fits a frame: its body.
bool net_http(u32 address, const char *request, u32 n, char ret_body[NET_TEXT]);
bool net_link_up(void);
bool net_pairs(u32 n); // uses 1 or 2 from now on; of a device that has 2

// vsock.c: reads a stream of the host's to its end, up to size - 1 bytes. False: no such device; refused.
bool vsock_init(void);
bool vsock_read(u32 port, char *to, u32 size, u32 *ret_len);

// balloon.c: pages from addr on, which are in the balloon or not, or reported as free.
bool balloon_init(void);
u32 balloon_target(void); // pages
bool balloon_move(bool in, u64 addr, u32 n);
bool balloon_report(u64 addr, u32 n);
bool balloon_stats(u64 free_bytes); // waits until they are wanted, but for the first time
// Free page hints: the host's command ID; after waiting for that of a round, all pages one by one; its end.
u32 balloon_command(void);
bool balloon_hint(u64 addr, u32 n);
bool balloon_hint_stop(void);

// console.c: the first two ports of a device that has two.
#define CONSOLE_NAME 66
struct console_port {
	char name[CONSOLE_NAME];
	bool tty, open; // by the host
};
bool console_init(void);
const struct console_port *console_port(u32 p);
bool console_write(u32 p, const char *text, u32 n);
bool console_read(u32 p, char *to, u32 *ret_len); // up to 64 bytes; false: nothing came

// pmem.c: its 64-bit words; what the device says to a flush.
bool pmem_init(void);
volatile u64 *pmem_word(u64 i, u64 *ret_bytes);
bool pmem_flush(u32 *ret);

// rng.c. False: no such device; it gave nothing in time. n is at most RNG_MAX.
bool rng_init(void);
bool rng_fill(u8 *to, u64 n);
// n requests of one byte (up to 30000), each with a kick of its own or one kick per full queue. By EVENT_IDX
// an interrupt is asked for at the last one (wish), or not at all. No register is read or written but the
// kicks.
bool rng_events(u64 n, bool kick_each, bool wish);
#endif
