# SPDX-License-Identifier: Apache-2.0
# thaw's build: one make, a fragment per folder, everything made lands in $(B).
#   make                 programs            make check   all tests
#   make demo            see it work         make bench   measure (QUICK=1: subset)
#   make bench-rig       thaw's devices beside QEMU's microvm (ROUNDS=3 SECONDS_EACH=3)
#   make lint format     style checks        make deps    install what is missing (Debian)
#   make docs            what is generated in docs/
#   make man             manual pages      make install  all of it (PREFIX=/usr/local DESTDIR=)
#   make deb             Debian package      make uninstall
# V=1 shows commands; SAN=asan|tsan builds with sanitizers into a folder of its own, ARCH=aarch64 for arm64.

all: programs

SAN ?=
V ?=
HOST_ARCH := $(shell uname -m)
ARCH ?= $(HOST_ARCH)
DESTDIR ?=
PREFIX ?= /usr/local
B ?= build$(if $(filter-out $(HOST_ARCH),$(ARCH)),/$(ARCH))$(if $(SAN),/$(SAN))
Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' $(1) '$(2)';)

CC ?= cc
OBJCOPY ?= objcopy
CFLAGS ?= -O2 -g
BASE_CFLAGS := -std=gnu11 -D_GNU_SOURCE -I. -MMD -MP -pthread \
	-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Wvla \
	-fno-strict-overflow -fstack-protector-strong -fPIE
SAN_FLAGS_asan := -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined
SAN_FLAGS_tsan := -fsanitize=thread
SAN_FLAGS := $(SAN_FLAGS_$(SAN))
BASE_CFLAGS += $(if $(SAN),-DMV_SAN='"$(SAN)"',-D_FORTIFY_SOURCE=2)
LDFLAGS_ALL = -pthread $(SAN_FLAGS) $(LDFLAGS) -Wl,-z,relro,-z,now
VERSION := 0.1.0
BASE_CFLAGS += -DTHAW_VERSION='"$(VERSION)"'

ifneq ($(ARCH),$(HOST_ARCH))
include scripts/cross.mk
endif

PROGRAMS :=
TEST_PROGRAMS :=
OBJECTS :=

# objs FILES: their object files, remembered for the dependency includes.
objs = $(eval OBJECTS += $(patsubst %.c,$(B)/%.o,$(1)))$(patsubst %.c,$(B)/%.o,$(1))

include lib/module.mk devices/module.mk snapshot/module.mk microvm/module.mk api/module.mk
include bench/module.mk tests/module.mk

.PHONY: all programs deps demo check bench format lint docs man install uninstall deb clean

# `thaw guest`, where the build folder's thaw looks for it.
GUEST_FILES := $(patsubst %,guests/%,main.py util.py debian.py tree.py ext4.py boot.py initrd-init udhcpc-script rc)
GUEST_TOOL := $(B)/libexec/thaw/guest/main.py
programs: $(PROGRAMS) $(LIBRARIES) $(GUEST_TOOL)
$(GUEST_TOOL): $(GUEST_FILES)
	$(Q)mkdir -p $(@D)
	$(call say,COPY,$(@D))cp $^ $(@D)

$(B)/%.o: %.c | $(SYSROOT_READY)
	$(Q)mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(BASE_CFLAGS) $(SAN_FLAGS) $(CFLAGS) $(CFLAGS_LIB) $(CFLAGS_$<) -c $< -o $@

deps:
	$(Q)scripts/deps.sh

lint:
	$(Q)scripts/lint.sh

format:
	$(Q)clang-format -i $$(git ls-files '*.c' '*.h')

docs: $(B)/tests/devices/test_features
	$(Q)scripts/docs.sh $<

demo: | ensure-deps
	$(Q)$(MAKE) --no-print-directory programs guest
	$(Q)tests/demo.sh $(B)

# arm64's programs too, for its rig; built at the side of x86-64's.
check: | ensure-deps
	$(Q)$(MAKE) --no-print-directory programs tests
	$(Q)$(if $(SAN),,$(if $(filter x86_64,$(ARCH)),$(MAKE) --no-print-directory ARCH=aarch64 programs arch-tests guest))
	$(Q)tests/run.sh $(B)

bench: | ensure-deps
	$(Q)$(MAKE) --no-print-directory programs guest $(B)/bench/bench
	$(Q)$(B)/bench/bench $(if $(QUICK),--quick) --bin $(B)/bin --guest $(GUEST) --out $(B)/bench

ROUNDS ?= 3
SECONDS_EACH ?= 3
QEMU_DATA ?= /usr/share/qemu
QEMU_ROMS := $(patsubst %,-a $(QEMU_DATA)/%,bios-microvm.bin linuxboot_dma.bin pvh.bin)
bench-rig: | ensure-deps
	$(Q)$(MAKE) --no-print-directory programs
	$(Q)RIG_SECONDS=7200 tests/rig/run.sh -g -s 6.12 -k bzImage -c 1 -b qemu-system-x86_64 $(QEMU_ROMS) \
		-e ROUNDS=$(ROUNDS) -e SECONDS_EACH=$(SECONDS_EACH) -o $(B)/bench/rig -x bench-qemu.sh $(B)

.PHONY: ensure-deps guest tests bench-rig
ensure-deps:
	$(Q)scripts/deps.sh --missing-only

# From what the programs and libthaw's header say of themselves.
MAN := $(B)/man/thaw.1 $(B)/man/thawd.8 $(B)/man/thaw-vmm.8 $(B)/man/thaw-firecracker.8 \
	$(B)/man/thaw-page-handler.8 $(B)/man/libthaw.3
man: $(MAN)
$(MAN) &: scripts/man.py lib/thaw.h $(PROGRAMS)
	$(call say,MAN,$(B)/man)scripts/man.py $(B)/bin $(B)/man

INSTALL := install
SHARE = $(DESTDIR)$(PREFIX)/share
LIB = $(DESTDIR)$(PREFIX)/lib
LIBEXEC = $(DESTDIR)$(PREFIX)/libexec
install: programs man
	$(Q)$(INSTALL) -d $(DESTDIR)$(PREFIX)/bin $(LIBEXEC)/thaw/guest $(DESTDIR)$(PREFIX)/include $(LIB)/pkgconfig \
		$(SHARE)/man/man1 $(SHARE)/man/man3 $(SHARE)/man/man8 \
		$(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions \
		$(SHARE)/fish/vendor_completions.d $(LIB)/systemd/system $(LIB)/sysusers.d
	$(Q)$(INSTALL) -m 755 $(PROGRAMS) $(DESTDIR)$(PREFIX)/bin
	$(Q)$(INSTALL) -m 644 $(GUEST_FILES) $(LIBEXEC)/thaw/guest
	$(Q)$(INSTALL) -m 644 $(filter %.1,$(MAN)) $(SHARE)/man/man1
	$(Q)$(INSTALL) -m 644 $(filter %.3,$(MAN)) $(SHARE)/man/man3
	$(Q)$(INSTALL) -m 644 $(filter %.8,$(MAN)) $(SHARE)/man/man8
	$(Q)$(INSTALL) -m 644 lib/thaw.h $(DESTDIR)$(PREFIX)/include
	$(Q)$(INSTALL) -m 644 $(LIBRARIES) $(LIB)
	$(Q)for l in $(LIBTHAW_LINKS); do ln -sf $(notdir $(LIBTHAW_SO)) $(LIB)/$$l; done
	$(Q)umask 022; sed 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|' lib/libthaw.pc.in >$(LIB)/pkgconfig/libthaw.pc
	$(Q)umask 022; $(THAW) completion bash >$(SHARE)/bash-completion/completions/thaw
	$(Q)umask 022; $(THAW) completion zsh >$(SHARE)/zsh/site-functions/_thaw
	$(Q)umask 022; $(THAW) completion fish >$(SHARE)/fish/vendor_completions.d/thaw.fish
	$(Q)umask 022; sed 's|@PREFIX@|$(PREFIX)|' scripts/install/thawd.service >$(LIB)/systemd/system/thawd.service
	$(Q)$(INSTALL) -m 644 scripts/install/thawd.socket $(LIB)/systemd/system
	$(Q)$(INSTALL) -m 644 scripts/install/sysusers.conf $(LIB)/sysusers.d/thaw.conf

# Just what install would put there, and the folders that are thaw's alone; neither VMs nor their store.
UNINSTALL = $(B)/uninstall
uninstall:
	$(Q)rm -rf $(UNINSTALL)
	$(Q)$(MAKE) --no-print-directory install DESTDIR=$(abspath $(UNINSTALL))
	$(Q)cd $(UNINSTALL) && find . ! -type d | while IFS= read -r f; do rm -f "$(DESTDIR)/$$f"; done
	$(Q)rm -rf $(UNINSTALL)
	$(Q)rmdir $(LIBEXEC)/thaw/guest $(LIBEXEC)/thaw

# $(B)/deb/*.deb, of what is in $(B). debian/ is copied, since packaging works inside of it.
deb: programs man | ensure-deps
	$(Q)rm -rf $(B)/deb && mkdir -p $(B)/deb/thaw && cp -r debian $(B)/deb/thaw
	$(call say,DEB,$(B)/deb)cd $(B)/deb/thaw && THAW_SOURCE=$(CURDIR) THAW_BUILD=$(abspath $(B)) \
		DEB_BUILD_OPTIONS=noautodbgsym dpkg-buildpackage -us -uc -b >../log 2>&1 || { cat ../log; exit 1; }
	$(Q)rm -rf $(B)/deb/thaw && ls $(B)/deb/*.deb

clean:
	rm -rf $(B)

-include $(OBJECTS:.o=.d)
