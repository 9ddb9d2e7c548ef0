// SPDX-License-Identifier: Apache-2.0
// Every feature bit of virtio 1.2 and of what a stock kernel's drivers know beyond it, per type of
// device, and what thaw does with it. One table: the daemon takes names from it, docs/devices.md is
// made from it (make docs), and tests/devices/test_features.c compares it with what the devices
// offer. Constant; any thread.
#pragma once
#include <stdint.h>

enum feature_offer {
	FEATURE_NOT,
	FEATURE_WHEN, // offered in some configurations; `why` says in which
	FEATURE_ALWAYS,
};

struct feature {
	uint8_t device_id, bit; // device_id 0: of all devices
	uint8_t offer;          // enum feature_offer
	const char *name;       // as virtio 1.2 has it, without VIRTIO_ and _F_
	const char *why;
};
extern const struct feature features[];
extern const unsigned n_features;

struct feature_device {    // types of device that have names
	uint8_t device_id; // virtio 1.2 section 5
	const char *name, *prefix, *section;
};
extern const struct feature_device feature_devices[];
extern const unsigned n_feature_devices;

#define FEATURE_NAME_LEN 32
// The name of a bit, in small letters as the API shows it ("ring_event_idx"); "bit-N" when there is none.
// is none.
void feature_name(uint32_t device_id, unsigned bit, char ret_name[FEATURE_NAME_LEN]);
// "net", "blk", ...; "device-N" when thaw has none of this type.
void feature_device_name(uint32_t device_id, char ret_name[FEATURE_NAME_LEN]);
