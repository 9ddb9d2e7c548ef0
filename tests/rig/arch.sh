#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The unit tests of the machine's state on a real KVM, where a guest's TSC is its own. Runs in L1, by
# run.sh -b P -a P -x arch.sh, where P is BUILD/tests/microvm/test_arch
export CMOCKA_MESSAGE_OUTPUT=TAP THAW_GUEST=tests/guest/tiny
exec ./test_arch
