# SPDX-License-Identifier: Apache-2.0
GUEST_CFLAGS += -fcf-protection=none
GUEST_SRC += tests/guest/x86_64/start.S tests/guest/x86_64/machine.c
