# SPDX-License-Identifier: Apache-2.0
# What is booted is an Image; the ELF beside it is for debuggers. Atomic operations are none of libgcc's.
GUEST_CFLAGS += -mno-outline-atomics -fno-tree-loop-distribute-patterns
GUEST_SRC += $(addprefix tests/guest/aarch64/,start.S machine.c fdt.c gic.c)
GUEST_IMAGE := $(OBJCOPY) -O binary
