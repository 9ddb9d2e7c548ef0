// SPDX-License-Identifier: Apache-2.0
// Pause, snapshot and resume against a virtio queue in use: vm_pause(), vio_quiesce(), live_freeze(),
// vio_unquiesce() (microvm/vm.c, microvm/live.c, devices/virtio.c), and a device whose queue has a thread of
// its own (devices/blk.c). The rest is KVM's or the guest's: a kick is an eventfd, an interrupt an irqfd,
// which a worker of the kernel brings to the interrupt controller some time later; the driver suppresses
// interrupts and the device kicks, as virtio 1.2, 2.7.7 and 2.7.10, say.
//
// After a freeze the check goes on with the source or with a copy. A copy has the guest's memory, the device's
// state and the interrupt controller as they were saved, and nothing that was on its way in a descriptor.
//
// Shown: each request is done and its end seen by the guest, in source and copy; nothing writes guest
// memory or the disk while they are frozen; nobody waits for ever.
//
// Each -DWITHOUT_... leaves out one thing that the code does; the check must then fail.
#define REQUESTS 3
#define DEPTH 2
#define FREEZES 2

// Guest memory: indices of the rings, and the two flags.
byte avail, used;
bool no_kick, no_interrupt;
// The device's state.
byte seen;
bool isr;
// The interrupt controller's.
bool pending;
// Descriptors and the kernel: not saved.
bool kick, irq, irq_work;
byte at_disk, completed;
// Not the machine's.
bool quiesced, frozen, running = true, queue_lock;
byte handled; // by the guest

inline lock() { atomic { !queue_lock -> queue_lock = true } }
inline unlock() { queue_lock = false }

active proctype guest() provided (running)
{
	byte sent;
	bool status;
	do
	:: sent < REQUESTS && sent - handled < DEPTH ->
		d_step { avail++; sent++ };
		if
		:: !no_kick -> kick = true
		:: else
		fi
	:: pending -> // vm_interrupt() of Linux
		pending = false;
		status = isr;
		if
		:: status -> isr = false
		:: else
		fi;
		no_interrupt = (status -> true : no_interrupt);
		do
		:: status && handled < used -> handled++
		:: status && handled == used ->
			no_interrupt = false;
			if
			:: handled == used -> break
			:: handled < used -> no_interrupt = true
			fi
		:: !status -> break
		od
	:: handled == REQUESTS -> break
	od
}

// Under the queue's lock.
inline run_queue() {
	do
	:: quiesced -> break
	:: !quiesced ->
		assert(!frozen);
		no_kick = true;
		do
		:: seen < avail ->
			assert(!frozen);
			d_step { seen++; at_disk++ }
		:: else -> break
		od;
		no_kick = false;
		if
		:: seen == avail -> break
		:: else
		fi
	od
}

active proctype device()
{
end:	do
	:: kick ->
		lock();
		kick = false;
		run_queue();
		unlock()
	:: completed > 0 ->
		lock();
		assert(!frozen);
		used++;
		if
		:: !no_interrupt ->
			isr = true;
			irq = true
		:: else
		fi;
		d_step { completed--; at_disk-- };
		unlock()
	od
}

active proctype disk()
{
end:	do
	:: at_disk > completed ->
		assert(!frozen); // it writes what was read
		completed++
	od
}

active proctype kernel()
{
end:	do
	:: irq ->
		d_step { irq = false; irq_work = true }
	:: irq_work ->
		d_step { irq_work = false; pending = true }
	od
}

active proctype control()
{
	byte n;
	do
	:: n < FREEZES ->
		n++;
		running = false; // vcpus_stop(): vcpu.pml
#ifndef WITHOUT_QUIESCED
		lock();
		quiesced = true;
		unlock();
#endif
#ifndef WITHOUT_DRAIN
		at_disk == 0;
#endif
		frozen = true;
		if
		:: true // the source goes on
		:: true -> // a copy does
			d_step { kick = false; irq = false; irq_work = false }
		fi;
		frozen = false;
		lock();
		quiesced = false;
		unlock();
#ifndef WITHOUT_INTERRUPT
		if
		:: isr -> irq = true
		:: else
		fi;
#endif
#ifndef WITHOUT_LOOK
		kick = true;
#endif
		running = true
	:: true -> break
	od
}
