// SPDX-License-Identifier: Apache-2.0
// (to be written with the devices)
#pragma once
#include "microvm/base/gmem.h"
struct vq {
	uint16_t size;
};
