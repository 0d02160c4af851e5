"""The life of a backup job that neither finalises nor dismisses itself."""

from __future__ import annotations

import errno

import pytest

from tests.contract.conftest import DISK, MIB, QDEV, SIZE_BYTES, Bench, add_bitmap, backup
from vbackup.engine import latency_throttle
from vbackup.errors import QmpError
from vbackup.qemu.jobs import set_speed, speeds

KIB = 1024
#: So slow that it is still running whatever the machine is busy with.
SLOW = {"speed": 64 * KIB}


@pytest.fixture
def jobs(bench: Bench) -> Bench:
    for name in ("one", "two", "target-one", "target-two"):
        bench.node(name)
    bench.write("one", 0, MIB)
    return bench


def test_job_waits_to_be_finalised_and_dismissed(jobs: Bench) -> None:
    jobs.transaction(backup("j", "one", "target-one"))
    pending = jobs.wait("j", "pending")
    assert "error" not in pending
    assert (pending["type"], pending["current-progress"], pending["total-progress"]) == (
        "backup",
        SIZE_BYTES,
        SIZE_BYTES,
    )
    jobs.execute("job-finalize", id="j")
    assert "error" not in jobs.wait("j", "concluded")
    jobs.execute("job-dismiss", id="j")
    assert jobs.job("j") is None
    assert jobs.told("j", "null") == ["created", "running", "waiting", "pending", "concluded", "null"]


def test_events_come_through_next_event(jobs: Bench) -> None:
    jobs.transaction(backup("j", "one", "target-one"))
    assert jobs.told("j", "pending")[0] == "created"


def test_event_has_name_and_data(jobs: Bench) -> None:
    jobs.transaction(backup("j", "one", "target-one"))
    event = jobs.monitor.next_event(5)
    assert event is not None
    assert event.name == "JOB_STATUS_CHANGE"
    assert (event.data["id"], event.data["status"]) == ("j", "created")


def test_jobs_of_one_transaction_are_independent(jobs: Bench) -> None:
    jobs.transaction(backup("j1", "one", "target-one"), backup("j2", "two", "target-two"))
    jobs.wait("j1", "pending")
    jobs.wait("j2", "pending")
    jobs.execute("job-finalize", id="j1")
    jobs.wait("j1", "concluded")
    still = jobs.job("j2")
    assert still is not None
    assert still["status"] == "pending"


def test_one_disk_can_have_two_jobs(jobs: Bench) -> None:
    """Two repositories, or the reference copies of the tests."""
    jobs.transaction(backup("j1", "one", "target-one"), backup("j2", "one", "target-two"))
    jobs.wait("j1", "pending")
    jobs.wait("j2", "pending")


def test_job_without_flags_ends_by_itself(jobs: Bench) -> None:
    jobs.transaction(backup("j", "one", "target-one", auto_finalize=True, auto_dismiss=True))
    assert jobs.told("j", "null")[-2:] == ["concluded", "null"]
    assert jobs.job("j") is None


# cancel


def test_cancelled_pending_job_concludes_with_an_error(jobs: Bench) -> None:
    jobs.transaction(backup("j", "one", "target-one"))
    jobs.wait("j", "pending")
    jobs.execute("job-cancel", id="j")
    assert jobs.wait("j", "concluded")["error"] == "Operation canceled"
    assert jobs.told("j", "concluded")[-2:] == ["aborting", "concluded"]


def test_cancelled_running_job_concludes_with_an_error(jobs: Bench) -> None:
    jobs.transaction(backup("j", "one", "target-one", **SLOW))
    running = jobs.wait("j", "running")
    assert running["current-progress"] < SIZE_BYTES
    jobs.execute("job-cancel", id="j")
    assert jobs.wait("j", "concluded")["error"] == "Operation canceled"


@pytest.mark.parametrize("verb", ["cancel", "finalize"])
def test_concluded_job_takes_no_verb_but_dismiss(jobs: Bench, verb: str) -> None:
    jobs.transaction(backup("j", "one", "target-one"))
    jobs.wait("j", "pending")
    jobs.execute("job-finalize", id="j")
    jobs.wait("j", "concluded")
    error = jobs.refused(f"job-{verb}", id="j")
    assert error.description == f"Job 'j' in state 'concluded' cannot accept command verb '{verb}'"
    assert "error" not in jobs.wait("j", "concluded")


@pytest.mark.parametrize("verb", ["finalize", "dismiss"])
def test_running_job_is_neither_finalised_nor_dismissed(jobs: Bench, verb: str) -> None:
    jobs.transaction(backup("j", "one", "target-one", **SLOW))
    jobs.wait("j", "running")
    error = jobs.refused(f"job-{verb}", id="j")
    assert error.description == f"Job 'j' in state 'running' cannot accept command verb '{verb}'"


def test_pending_job_is_not_dismissed(jobs: Bench) -> None:
    jobs.transaction(backup("j", "one", "target-one"))
    jobs.wait("j", "pending")
    assert "'pending' cannot accept command verb 'dismiss'" in jobs.refused("job-dismiss", id="j").description


@pytest.mark.parametrize("verb", ["cancel", "finalize", "dismiss"])
def test_unknown_job_is_an_error(jobs: Bench, verb: str) -> None:
    assert "not found" in jobs.refused(f"job-{verb}", id="no-such-job").description


# failure


def test_job_that_cannot_write_concludes_with_the_error_and_leaves_the_others(jobs: Bench) -> None:
    failing = jobs.failing_node("failing", errno.ENOSPC)
    jobs.transaction(backup("j1", "one", failing), backup("j2", "two", "target-two"))
    assert jobs.wait("j1", "concluded")["error"] == "No space left on device"
    assert jobs.told("j1", "concluded") == ["created", "running", "aborting", "concluded"]
    assert "error" not in jobs.wait("j2", "pending")


def test_event_tells_what_a_job_failed_at(jobs: Bench) -> None:
    jobs.transaction(backup("j", "one", jobs.failing_node("failing", errno.EIO)))
    jobs.wait("j", "concluded")
    assert jobs.failures("j") == [("write", "report")]


def test_id_and_target_are_free_again_after_a_failure(jobs: Bench) -> None:
    failing = jobs.failing_node("failing", errno.EIO)
    jobs.transaction(backup("j", "one", failing))
    assert jobs.wait("j", "concluded")["error"] == "Input/output error"
    jobs.execute("job-dismiss", id="j")
    jobs.execute("blockdev-del", node_name=failing)
    jobs.transaction(backup("j", "one", "target-one"))
    assert "error" not in jobs.wait("j", "pending")


def test_bitmap_of_a_failed_job_is_free(jobs: Bench) -> None:
    jobs.transaction(add_bitmap("one", "b"))
    jobs.write("one", 0, 4096)
    failing = jobs.failing_node("failing", errno.EIO)
    jobs.transaction(backup("j", "one", failing, sync="bitmap", bitmap="b", bitmap_mode="never"))
    jobs.wait("j", "concluded")
    bitmap = jobs.bitmap("one", "b")
    assert bitmap is not None
    assert (bitmap["busy"], bitmap["count"]) == (False, 64 * KIB)


def test_speed_of_a_running_job_is_told_and_changed(jobs: Bench) -> None:
    jobs.transaction(backup("j", "one", "target-one", **SLOW))
    jobs.wait("j", "running")
    assert speeds(jobs.monitor)["j"] == 64 * KIB
    assert set_speed(jobs.monitor, "j", 128 * KIB)
    assert speeds(jobs.monitor)["j"] == 128 * KIB
    assert set_speed(jobs.monitor, "j", None)
    assert speeds(jobs.monitor).get("j") is None
    jobs.wait("j", "pending")


def test_job_that_has_ended_takes_no_speed(jobs: Bench) -> None:
    assert jobs.refused("block-job-set-speed", device="j", speed=1).error_class == "DeviceNotActive"
    jobs.transaction(backup("j", "one", "target-one"))
    jobs.wait("j", "pending")
    assert not set_speed(jobs.monitor, "j", MIB)
    jobs.execute("job-finalize", id="j")
    jobs.wait("j", "concluded")
    assert not set_speed(jobs.monitor, "j", MIB)
    assert not set_speed(jobs.monitor, "somebody-elses", MIB)


def test_speed_that_is_none_is_refused(jobs: Bench) -> None:
    jobs.transaction(backup("j", "one", "target-one", **SLOW))
    jobs.wait("j", "running")
    with pytest.raises(QmpError, match="speed"):
        set_speed(jobs.monitor, "j", -1)


def test_requests_of_the_guest_are_counted_by_device(jobs: Bench) -> None:
    """Not those of jobs and monitors; the firmware of a real QEMU has read a sector or none."""
    counted = latency_throttle.counters(jobs.monitor)
    assert list(counted) == [QDEV]
    assert (counted[QDEV].operations > 0) == (counted[QDEV].time_ns > 0)
    jobs.write(DISK, 0, MIB)
    assert latency_throttle.counters(jobs.monitor)[QDEV].operations - counted[QDEV].operations <= 1
