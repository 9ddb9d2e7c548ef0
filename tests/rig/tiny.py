# SPDX-License-Identifier: Apache-2.0
"""Those of the end-to-end tests that say something of another architecture than x86-64 and have no need of its
machine: tests/rig/tiny.sh runs them with the tiny guest in one interpreter, since a start takes seconds there. The whole is to take two minutes at most."""
import importlib
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))
from thawlib import main  # noqa: E402

CHOSEN = {
    "test_lifecycle": "create_start_and_talk pause_and_resume snapshot_and_clones ends_of_a_guest",
    "test_fork": "three_deep_and_apart",
    "test_pool": "a_claimed_clone_is_one_of_its_own",
    "test_lazy": "a_compressed_snapshot_is_small_and_loads_on_demand",
    "test_incremental": "five_deep_over_either_base",
    "test_disks": "clones_write_the_same_sector two_queues",
    "test_ready": "a_stream_to_the_host",
    "test_devices": "kicks_take_no_exit_and_interrupts_are_as_asked_for in_clones_and_after_a_pause",
    "test_pmem": "clones_share_a_read_only_file",
    "test_balloon": "clones_give_back_zeros",
    "test_arm64": "snapshots_of_the_other_architecture",
}

chosen = {}
for module, names in CHOSEN.items():
    m = importlib.import_module(module)
    for name in names.split():
        chosen[f"test_{module[5:]}: {name}"] = getattr(m, "test_" + name)
main(chosen)
