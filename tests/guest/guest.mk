# SPDX-License-Identifier: Apache-2.0
# The tiny guest, for tests, bench and demo: $(GUEST), freestanding; what the architecture's folder says makes it
# an ELF or an Image.

GUEST := $(B)/tests/guest/tiny
ALL_TARGETS += $(GUEST)

GUEST_CFLAGS := -O2 -g -std=gnu11 -Wall -Wextra -Wshadow -Wconversion -ffreestanding \
	-fno-pie -fno-stack-protector -fno-asynchronous-unwind-tables -mgeneral-regs-only \
	-I. -Itests/guest/$(ARCH)
GUEST_SRC := $(wildcard tests/guest/*.c)
GUEST_IMAGE :=
include tests/guest/$(ARCH)/guest.mk
GUEST_LD := tests/guest/$(ARCH)/tiny.ld

$(GUEST): $(GUEST_SRC) $(wildcard tests/guest/*.h tests/guest/$(ARCH)/*) tests/guest/guest.mk
	@mkdir -p $(@D)
	$(call say,GUEST,$@)$(CC) $(GUEST_CFLAGS) -nostdlib -static -Wl,--build-id=none \
		-Wl,-z,noexecstack -Wl,-z,max-page-size=4096 -Wl,-T,$(GUEST_LD) \
		-o $@$(if $(GUEST_IMAGE),.elf) $(GUEST_SRC)
	$(if $(GUEST_IMAGE),$(Q)$(GUEST_IMAGE) $@.elf $@)
