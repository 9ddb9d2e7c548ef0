# SPDX-License-Identifier: Apache-2.0
# The tiny guest, for tests, bench and demo: $(GUEST), a freestanding x86-64 ELF.

GUEST := $(B)/tests/guest/tiny
ALL_TARGETS += $(GUEST)

GUEST_CFLAGS := -O2 -g -std=gnu11 -Wall -Wextra -Wshadow -Wconversion -ffreestanding \
	-fno-pie -fno-stack-protector -fno-asynchronous-unwind-tables -mgeneral-regs-only \
	-fcf-protection=none
GUEST_SRC := tests/guest/start.S tests/guest/tiny.c tests/guest/virtio.c \
	tests/guest/rng.c tests/guest/blk.c tests/guest/net.c tests/guest/vsock.c tests/guest/balloon.c tests/guest/console.c tests/guest/pmem.c

$(GUEST): $(GUEST_SRC) tests/guest/tiny.h tests/guest/tiny.ld tests/guest/guest.mk
	@mkdir -p $(@D)
	$(call say,GUEST,$@)$(CC) $(GUEST_CFLAGS) -nostdlib -static -Wl,--build-id=none \
		-Wl,-z,noexecstack -Wl,-z,max-page-size=4096 -Wl,-T,tests/guest/tiny.ld \
		-o $@ $(GUEST_SRC)
