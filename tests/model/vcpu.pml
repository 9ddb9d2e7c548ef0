// SPDX-License-Identifier: Apache-2.0
// How vCPU threads are stopped and started: microvm/vcpu.c. One thread of the control loop orders, each vCPU
// thread enters KVM_RUN, leaves it by an exit of its own or by the kick, and may want the loop's lock to
// handle an exit.
//
// Shown: after vcpus_stop() no vCPU runs or touches a device, after vcpus_run() every one gets to run, after
// vcpus_end() no thread is left; nobody waits for ever (no invalid end state).
//
// Each -DWITHOUT_... leaves out one thing that the code does; the check must then fail.
#define VCPUS 2
#define ROUNDS 2

bool loop_lock, run_lock;
bool run_vcpus, end_vcpus;
bool immediate_exit[VCPUS], stopped[VCPUS], ended[VCPUS];
bool signal[VCPUS];      // pending: pthread_kill()
bool in_guest[VCPUS], in_device[VCPUS];
bool asleep[VCPUS + 1];  // in pthread_cond_wait(changed); the last one is the control loop
bool entered[VCPUS];     // in this round
bool waiting;            // for that

ltl all_run { [] (waiting -> <> !waiting) }

inline lock(l) { atomic { !l -> l = true } }
inline unlock(l) { l = false }
// Gives the lock up and sleeps in one step, as condition variables do.
inline wait_changed(who) {
	d_step { asleep[who] = true; run_lock = false };
	!asleep[who];
	lock(run_lock)
}
inline broadcast() { d_step { asleep[0] = false; asleep[1] = false; asleep[VCPUS] = false } }

// wait_for_run(): go tells whether to run.
inline wait_for_run(c, go) {
	lock(run_lock);
	do
	:: (!run_vcpus && !end_vcpus) ->
		if
		:: !stopped[c] ->
			stopped[c] = true;
			broadcast()
		:: else
		fi;
		wait_changed(c)
	:: else -> break
	od;
	go = !end_vcpus;
	stopped[c] = !go;
#ifndef WITHOUT_CLEAR
	immediate_exit[c] = false;
#endif
	unlock(run_lock)
}

proctype vcpu(byte c)
{
	bool go, spins;
	wait_for_run(c, go);
	do
	:: !go -> break
	:: go ->
		if // a signal that comes outside KVM_RUN is gone with its handler, which does nothing
		:: signal[c] -> signal[c] = false
		:: true
		fi;
		// KVM_RUN: it looks at immediate_exit first; the signal ends it later on.
		if
		:: immediate_exit[c] -> wait_for_run(c, go)
		:: !immediate_exit[c] ->
			in_guest[c] = true;
			if // a guest may well never leave by itself
			:: spins = true
			:: spins = false
			fi;
			entered[c] = true;
			if
			:: signal[c] -> // EINTR
				atomic { in_guest[c] = false; signal[c] = false };
				if
				:: immediate_exit[c] -> wait_for_run(c, go)
				:: else
				fi
			:: !spins -> // an exit of its own: a device's register
				in_guest[c] = false;
				lock(loop_lock);
				in_device[c] = true;
				in_device[c] = false;
				unlock(loop_lock)
			fi
		fi
	od;
	ended[c] = true
}

inline all_stopped(yes) { yes = stopped[0] && stopped[1] }

inline kick_all() {
	byte i = 0;
	do
	:: i < VCPUS ->
		if
		:: !stopped[i] ->
#ifndef WITHOUT_IMMEDIATE_EXIT
			immediate_exit[i] = true;
#endif
#ifndef WITHOUT_SIGNAL
			signal[i] = true
#endif
		:: else
		fi;
		i++
	:: else -> break
	od
}

inline vcpus_stop(yes) {
	lock(run_lock);
	run_vcpus = false;
	kick_all();
	all_stopped(yes);
	unlock(run_lock);
	if
	:: yes
	:: !yes ->
#ifndef WITHOUT_UNLOCK
		unlock(loop_lock);
#endif
		lock(run_lock);
		do
		:: all_stopped(yes);
			if
			:: yes -> break
			:: else -> wait_changed(VCPUS)
			fi
		od;
		unlock(run_lock);
#ifndef WITHOUT_UNLOCK
		lock(loop_lock)
#endif
	fi
}

init {
	byte round;
	bool yes;
	run vcpu(0);
	run vcpu(1);
	lock(loop_lock);
	do
	:: round < ROUNDS ->
		lock(run_lock); // vcpus_run()
		d_step { entered[0] = false; entered[1] = false };
		run_vcpus = true;
		broadcast();
		unlock(run_lock);
		unlock(loop_lock);
		if // the guest runs for any time, or until both were in it
		:: true
		:: true ->
			waiting = true;
			entered[0] && entered[1];
			waiting = false
		fi;
		lock(loop_lock);
		vcpus_stop(yes);
		assert(!in_guest[0] && !in_guest[1] && !in_device[0] && !in_device[1]);
		round++
	:: else -> break
	od;
	lock(run_lock); // vcpus_end()
	end_vcpus = true;
	run_vcpus = false;
	kick_all();
	broadcast();
	unlock(run_lock);
	ended[0] && ended[1]
}
