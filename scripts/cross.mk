# SPDX-License-Identifier: Apache-2.0
# A build for another architecture than this machine's: Debian's cross compiler, and libraries from packages of that
# architecture, unpacked into $(SYSROOT). `make ARCH=aarch64` makes the programs; `guest`, `arch-tests`
# and $(B)/bench/bench can be had as well, for the rig.
DEB_ARCH := $(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(ARCH)))
TRIPLET := $(ARCH)-linux-gnu
CC := $(TRIPLET)-gcc
LD := $(TRIPLET)-ld
AR := $(TRIPLET)-ar
OBJCOPY := $(TRIPLET)-objcopy
SYSROOT := $(B)/sysroot
SYSROOT_READY := $(SYSROOT)/usr/include/lz4.h
BASE_CFLAGS += -isystem $(SYSROOT)/usr/include -isystem $(SYSROOT)/usr/include/$(TRIPLET)
LDFLAGS += -L$(SYSROOT)/usr/lib/$(TRIPLET) -Wl,-rpath-link,$(SYSROOT)/usr/lib/$(TRIPLET):$(SYSROOT)/lib/$(TRIPLET)

$(SYSROOT_READY): scripts/sysroot.sh
	$(Q)mkdir -p $(B)
	$(call say,SYSROOT,$(SYSROOT))scripts/sysroot.sh $(DEB_ARCH) $(SYSROOT)
	$(Q)touch $@
