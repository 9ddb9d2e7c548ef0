// SPDX-License-Identifier: Apache-2.0
// A pool of shells: api/pool.c. The daemon's loop is one thread, so each of its functions is one step; what may
// come between two steps is any order of replies, ends of processes, claims, ticks, new sizes, the drop.
//
// Shown: a shell is claimed or ended, once; when the pool is dropped and all replies are in, no process of
// it is left that nobody claimed, and the pool is freed, not sooner; who waits for it to be full is told; the
// counts are those of the shells.
//
// Each -DWITHOUT_... leaves out one thing that the code does; the check must then fail.
#define SHELLS 3 // at most, in its life
#define MAX_STARTING 2
#define MAX_FAILURES 2
#define CLAIMS 1

mtype = { none, starting, ready, claimed, freed };
mtype = { unborn, alive, killed, gone };

mtype shell[SHELLS], process[SHELLS];
bool known_end[SHELLS]; // the loop handled the process's end
byte made, n_ready, n_starting, target, failures, refs, claims;
bool dropped, error, waits, asked, pool_freed;

inline unref() {
	assert(refs > 0);
	refs--;
	if
	:: refs == 0 -> pool_freed = true
	:: else
	fi
}

inline tell_waiters() {
	assert(!pool_freed);
	if
	:: waits && !n_starting && (error || n_ready >= target) -> waits = false
	:: else
	fi
}

inline free_shell(h, to) {
	assert(shell[h] != freed && shell[h] != claimed);
	shell[h] = to;
	unref()
}

inline kill(h) {
	if
	:: process[h] == alive -> process[h] = killed
	:: else
	fi
}

inline refill() {
	do
	:: !dropped && failures < MAX_FAILURES && n_ready + n_starting < target &&
		n_starting < MAX_STARTING && made < SHELLS ->
		shell[made] = starting;
		process[made] = alive;
		made++;
		refs++;
		n_starting++
	:: else -> break
	od;
	tell_waiters()
}

// No more shells than the check has: as if memory were short.
inline note_end_of_shells() {
	if
	:: made == SHELLS -> error = true
	:: else
	fi
}

// on_restored()
inline restored(h, failed) {
	n_starting--;
	if
	:: failed ->
		failures++;
		error = true
	:: else
	fi;
	if
#ifdef WITHOUT_DROPPED
	:: failed ->
#else
	:: failed || dropped ->
#endif
#ifndef WITHOUT_KILL
		kill(h);
#endif
#ifndef WITHOUT_TELL
		if
		:: dropped -> tell_waiters()
		:: else
		fi;
#endif
		free_shell(h, freed)
	:: else ->
		failures = 0;
		error = false;
		shell[h] = ready;
		n_ready++;
		note_end_of_shells();
		refill()
	fi
}

inline end_shells(keep) {
	i = 0;
	do
	:: i < SHELLS && n_ready > keep ->
		if
		:: shell[i] == ready ->
			n_ready--;
			kill(i);
			free_shell(i, freed)
		:: else
		fi;
		i++
	:: else -> break
	od
}

// Between two steps of the loop.
inline check_counts() {
	n = 0;
	for (i : 0 .. SHELLS - 1) {
		n = n + (shell[i] == ready -> 1 : 0) + (shell[i] == starting -> SHELLS + 1 : 0)
	}
	assert(n == n_ready + n_starting * (SHELLS + 1) && n_starting <= MAX_STARTING);
	d_step { i = 0; h = 0; n = 0 }
}

byte i, h, n;

init {
	d_step {
		for (i : 0 .. SHELLS - 1) { shell[i] = none; process[i] = unborn };
		refs = 1;
		target = 2;
		refill()
	}
	do
	// A reply; or the end of a process that was to give one.
	:: atomic {
		select(h : 0 .. SHELLS - 1);
		if
		:: shell[h] == starting && process[h] == alive -> restored(h, false)
		:: shell[h] == starting && process[h] == alive -> restored(h, true)
		:: shell[h] == starting && process[h] == gone && !known_end[h] ->
			known_end[h] = true;
			restored(h, true)
		:: shell[h] == ready && process[h] == gone && !known_end[h] -> // on_shell_end()
			known_end[h] = true;
			n_ready--;
			error = true;
			free_shell(h, freed)
		:: else
		fi;
		check_counts() }
	// Processes end: killed ones, and others at any time.
	:: atomic {
		select(h : 0 .. SHELLS - 1);
		if
		:: process[h] == killed || process[h] == alive -> process[h] = gone
		:: else
		fi;
		check_counts() }
	:: atomic { !dropped && claims < CLAIMS -> // pool_claim()
		claims++;
		i = 0;
		do
		:: i < SHELLS && shell[i] != ready -> i++
		:: else -> break
		od;
		if
		:: i < SHELLS ->
			n_ready--;
			free_shell(i, claimed)
		:: else
		fi;
		check_counts() }
	:: atomic { !dropped && !asked -> // pool_wait()
		asked = true;
		waits = true;
		tell_waiters();
		check_counts() }
	:: atomic { !dropped -> // the tick, or the refill after a claim
		refill();
		check_counts() }
	:: atomic { !dropped -> // pool_set()
		if
		:: target = 0
		:: target = 1
		:: target = 3
		fi;
		failures = 0;
		error = false;
		note_end_of_shells();
		end_shells(target);
		refill();
		check_counts() }
	:: atomic { !dropped -> // drop()
		dropped = true;
		end_shells(0);
		error = true;
		tell_waiters();
		unref();
		check_counts() }
	:: d_step { dropped && n_starting == 0 } -> break
	od;
	assert(n_ready == 0 && pool_freed && !waits);
	for (i : 0 .. SHELLS - 1) {
		assert(shell[i] == none || shell[i] == freed || shell[i] == claimed);
		assert(shell[i] != freed || process[i] != alive)
	}
}
