// SPDX-License-Identifier: Apache-2.0
#include "api/fc/serial.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "api/fc/fc.h"
#include "microvm/base/util.h"

#define PIECE 4096u      // a pipe that is ready takes as much without waiting (pipe(7), PIPE_BUF)
#define RATE_PIECE 256u  // bytes that are dropped or not as one
#define LAST_WAIT_MS 500 // for a reader of the last output

static int out_fd(const struct fc_serial_port *p) { return p->fd < 0 ? STDOUT_FILENO : p->fd; }

void fc_serial_init(struct fc_serial_port *p, struct fc *fc)
{
	p->fc = fc;
	p->fd = -1;
}

int fc_serial_set(struct fc_serial_port *p, const struct fc_serial *to, struct api_err *err)
{
	struct vmcfg_rate rate = { 0 };
	int fd = -1;
	int r = to->has_serial_out_path ? fc_open_output("serial_out_path", to->serial_out_path, &fd, err)
					: 0;
	if (r)
		return r;
	if (to->has_rate_limiter)
		fc_limiter_apply(&to->rate_limiter, &rate);
	mv_rate_set(&p->rate, &rate, mv_now_ns());
	mv_close(&p->fd);
	p->fd = fd;
	return 0;
}

// As much as goes without waiting.
static void write_pending(struct fc_serial_port *p, int wait_ms)
{
	uint32_t done = 0;
	while (done < p->n_pending) {
		struct pollfd f = { .fd = out_fd(p), .events = POLLOUT };
		uint32_t n = p->n_pending - done < PIECE ? p->n_pending - done : PIECE;
		if (poll(&f, 1, wait_ms) <= 0)
			break;
		ssize_t w = write(f.fd, p->pending + done, n);
		if (w < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (w < 0) { // nobody will ever read it
			p->lost_bytes += p->n_pending - done;
			done = p->n_pending;
			break;
		}
		done += (uint32_t)w;
	}
	memmove(p->pending, p->pending + done, p->n_pending - done);
	p->n_pending -= done;
}

static void on_writable(void *arg, uint32_t events)
{
	struct fc_serial_port *p = arg;
	(void)events;
	write_pending(p, 0);
	if (p->n_pending)
		return;
	mv_watch_del(&p->out);
	fc_vmm_read_console(p->fc);
}

void fc_serial_output(struct fc_serial_port *p, const uint8_t *data, uint32_t len)
{
	for (uint32_t at = 0, n; at < len; at += n) {
		n = len - at < RATE_PIECE ? len - at : RATE_PIECE;
		if (mv_rate_limited(&p->rate) && mv_rate_take(&p->rate, n, mv_now_ns())) {
			p->dropped_bytes += n;
			continue;
		}
		if (n > sizeof p->pending - p->n_pending) {
			p->lost_bytes += n;
			continue;
		}
		memcpy(p->pending + p->n_pending, data + at, n);
		p->n_pending += n;
	}
	write_pending(p, 0);
	if (p->n_pending && !p->out.loop)
		mv_watch_add(&p->fc->loop, &p->out, out_fd(p), EPOLLOUT, on_writable, p);
}

static void on_input(void *arg, uint32_t events)
{
	static struct msg_bytes b; // the loop's thread only
	struct fc_serial_port *p = arg;
	struct api_err err;
	(void)events;
	ssize_t n = read(STDIN_FILENO, b.data, 1024);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) { // the terminal is gone
		mv_watch_del(&p->in);
		return;
	}
	b.n_data = (uint32_t)n;
	mv_watch_del(&p->in); // until it has arrived
	if (fc_vmm_send(p->fc, MSG_CONSOLE_WRITE, &msg_bytes_table, &b, &p->fc->vmm.input_call, &err))
		fc_log(p->fc, FC_WARN, "Input of %zd bytes was lost: %s", n, err.msg);
}

void fc_serial_input_done(struct fc_serial_port *p, const struct msg_reply *r)
{
	p->fc->vmm.input_call = 0;
	if (r->code)
		fc_log(p->fc, FC_WARN, "Input was lost: %s", r->text);
	mv_watch_add(&p->fc->loop, &p->in, STDIN_FILENO, EPOLLIN, on_input, p);
}

void fc_serial_start(struct fc_serial_port *p)
{
	struct termios raw;
	fc_vmm_read_console(p->fc);
	if (p->in.loop || !isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &p->before))
		return;
	raw = p->before;
	cfmakeraw(&raw);
	raw.c_oflag |= OPOST; // of the log's lines
	p->raw = !tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	mv_watch_add(&p->fc->loop, &p->in, STDIN_FILENO, EPOLLIN, on_input, p);
}

void fc_serial_restore_terminal(struct fc_serial_port *p)
{
	if (p->raw)
		tcsetattr(STDIN_FILENO, TCSANOW, &p->before);
	p->raw = false;
}

void fc_serial_fini(struct fc_serial_port *p)
{
	write_pending(p, LAST_WAIT_MS);
	mv_watch_del(&p->out);
	mv_watch_del(&p->in);
	fc_serial_restore_terminal(p);
	mv_close(&p->fd);
}
