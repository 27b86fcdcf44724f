"""The device status machine: every rule of virtio 1.4, 2.1, 2.4, 3.1, 3.4 that can be seen in the byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.virtio.status import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    NEEDS_RESET,
    SUSPEND,
    StatusMachine,
    blaming_partner,
    names,
)

FOUND = ACKNOWLEDGE | DRIVER
AGREED = FOUND | FEATURES_OK
RUNNING = AGREED | DRIVER_OK
SUSPENDED = AGREED | SUSPEND


def at(*writes: int, legacy: bool = False, suspend: bool = True) -> StatusMachine:
    machine = StatusMachine(legacy)
    machine.suspend_negotiated = suspend
    for new in writes:
        machine.write(new)
    return machine


def wrong(machine: StatusMachine, new: int, words: str) -> None:
    before = machine.status
    with pytest.raises(LocalError, match=words):
        machine.write(new)
    assert machine.status == before


def test_bits_have_the_numbers_of_the_standard() -> None:
    # virtio 1.4, 2.1
    assert (ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, SUSPEND, NEEDS_RESET, FAILED) == (1, 2, 4, 8, 16, 64, 128)


def test_write_in_the_order_of_initialisation_runs_the_device() -> None:
    # virtio 1.4, 3.1.1
    machine = StatusMachine(legacy=False)
    seen: list[tuple[int, bool]] = []
    for new in (0, ACKNOWLEDGE, FOUND, AGREED, RUNNING):
        machine.write(new)
        seen.append((machine.status, machine.running))
    assert seen == [(0, False), (ACKNOWLEDGE, False), (FOUND, False), (AGREED, False), (RUNNING, True)]


def test_write_in_the_order_of_legacy_initialisation_runs_the_device() -> None:
    # virtio 1.4, 3.1.2
    machine = at(0, ACKNOWLEDGE, FOUND, FOUND | DRIVER_OK, legacy=True)
    assert machine.running
    assert machine.features_settled


def test_write_bits_that_may_come_together_is_good() -> None:
    assert at(AGREED).status == AGREED
    assert at(FOUND | DRIVER_OK, legacy=True).status == FOUND | DRIVER_OK


@pytest.mark.parametrize(
    ("before", "new", "words"),
    [
        ((), DRIVER, "DRIVER has to come after ACKNOWLEDGE"),
        ((), FEATURES_OK, "FEATURES_OK has to come after ACKNOWLEDGE DRIVER"),
        ((ACKNOWLEDGE,), ACKNOWLEDGE | FEATURES_OK, "FEATURES_OK has to come after DRIVER"),
        ((FOUND,), FOUND | DRIVER_OK, "DRIVER_OK has to come after FEATURES_OK"),
        ((FOUND,), RUNNING, "DRIVER_OK has to come after FEATURES_OK"),  # step 6: the driver has to look first
    ],
)
def test_write_out_of_order_is_refused(before: tuple[int, ...], new: int, words: str) -> None:
    # virtio 1.4, 3.1.1
    wrong(at(*before), new, words)


@pytest.mark.parametrize("new", [DRIVER, FOUND, FOUND | DRIVER_OK, AGREED, FEATURES_OK | DRIVER_OK])
def test_write_that_clears_a_bit_is_refused(new: int) -> None:
    # virtio 1.4, 2.1.1
    wrong(at(AGREED, RUNNING), new, "cannot be cleared but by a reset")


@pytest.mark.parametrize("new", [FOUND | 32, FOUND | 256, -1])
def test_write_undefined_bit_is_refused(new: int) -> None:
    wrong(at(FOUND), new, "is not defined")


@pytest.mark.parametrize("bit", [FEATURES_OK, SUSPEND])
def test_write_bit_that_legacy_does_not_have_is_refused(bit: int) -> None:
    wrong(at(FOUND, legacy=True), FOUND | bit, "is not defined here")


def test_write_needs_reset_is_refused_unless_the_device_set_it() -> None:
    # virtio 1.4, 2.1.2
    machine = at(AGREED, RUNNING)
    wrong(machine, RUNNING | NEEDS_RESET, "the device's to set")
    machine.need_reset()
    machine.write(RUNNING | NEEDS_RESET | FAILED)
    assert machine.status == RUNNING | NEEDS_RESET | FAILED


def test_write_that_was_made_before_needs_reset_was_seen_does_not_clear_it() -> None:
    machine = at(AGREED)
    assert not machine.need_reset()
    machine.write(RUNNING)
    assert machine.status == RUNNING | NEEDS_RESET
    assert not machine.running


def test_write_after_failed_is_refused_until_the_reset() -> None:
    # virtio 1.4, 2.1.1
    machine = at(FOUND, FOUND | FAILED)
    wrong(machine, AGREED | FAILED, "reset has to come after FAILED")
    machine.write(FOUND | FAILED)
    machine.write(0)
    machine.write(ACKNOWLEDGE)
    assert machine.status == ACKNOWLEDGE


def test_write_failed_stops_a_running_device() -> None:
    machine = at(AGREED, RUNNING, RUNNING | FAILED)
    assert not machine.running


@pytest.mark.parametrize("before", [(), (FOUND,), (AGREED, RUNNING), (AGREED, RUNNING, RUNNING | SUSPEND)])
def test_write_zero_resets_from_everywhere(before: tuple[int, ...]) -> None:
    # virtio 1.4, 2.4.1
    machine = at(*before)
    machine.need_reset()
    machine.write(0)
    assert (machine.status, machine.running, machine.suspend_negotiated) == (0, False, False)


def test_refuse_features_takes_the_bit_back() -> None:
    # virtio 1.4, 2.2.2
    machine = at(FOUND, AGREED)
    settled = [machine.features_settled]
    machine.refuse_features()
    settled.append(machine.features_settled)
    assert machine.status == FOUND
    assert settled == [True, False]
    wrong(machine, FOUND | DRIVER_OK, "DRIVER_OK has to come after FEATURES_OK")


@pytest.mark.parametrize("before", [(FOUND,), (AGREED, RUNNING), (AGREED, RUNNING, RUNNING | SUSPEND)])
def test_refuse_features_too_late_or_early_is_a_local_error(before: tuple[int, ...]) -> None:
    with pytest.raises(LocalError, match="no features to be refused"):
        at(*before).refuse_features()


def test_need_reset_after_driver_ok_is_to_be_notified_once() -> None:
    # virtio 1.4, 2.1.2
    machine = at(AGREED, RUNNING)
    assert machine.need_reset()
    assert not machine.need_reset()
    assert not machine.running
    assert not at(AGREED).need_reset()


# SUSPEND: virtio 1.4, 3.4


def test_suspend_takes_the_place_of_driver_ok_and_back() -> None:
    machine = at(AGREED, RUNNING, RUNNING | SUSPEND)
    assert machine.status == SUSPENDED
    assert not machine.running
    assert machine.features_settled
    machine.write(SUSPENDED | DRIVER_OK)
    assert machine.status == RUNNING
    assert machine.running


def test_resume_by_a_driver_that_leaves_suspend_out_is_good() -> None:
    assert at(AGREED, RUNNING, RUNNING | SUSPEND, RUNNING).status == RUNNING


def test_suspend_while_suspended_changes_nothing() -> None:
    assert at(AGREED, RUNNING, RUNNING | SUSPEND, SUSPENDED).status == SUSPENDED


def test_suspend_not_negotiated_is_ignored() -> None:
    assert at(AGREED, RUNNING, RUNNING | SUSPEND, suspend=False).status == RUNNING


@pytest.mark.parametrize(
    ("before", "new", "status"),
    [((FOUND,), AGREED | SUSPEND, AGREED), ((AGREED,), RUNNING | SUSPEND, RUNNING), ((), SUSPEND, 0)],
)
def test_suspend_before_the_device_is_initialised_is_ignored(before: tuple[int, ...], new: int, status: int) -> None:
    # virtio 1.4, 3.4.2
    assert at(*before, new).status == status


def test_clearing_suspend_without_driver_ok_is_refused() -> None:
    wrong(at(AGREED, RUNNING, RUNNING | SUSPEND), AGREED, "SUSPEND cannot be cleared")


# The driver's end


def test_read_new_status_has_taken_effect() -> None:
    machine = at(ACKNOWLEDGE)
    assert machine.read(ACKNOWLEDGE)


def test_read_features_ok_missing_was_refused() -> None:
    # virtio 1.4, 3.1.1, step 6
    machine = at(FOUND, AGREED)
    assert machine.read(FOUND)
    assert machine.status == FOUND


def test_read_old_status_while_a_reset_takes_time_is_not_yet() -> None:
    # virtio 1.4, 2.4.2
    machine = at(AGREED, RUNNING, 0)
    assert not machine.read(RUNNING)
    assert not machine.read(RUNNING | NEEDS_RESET)
    assert machine.read(0)


def test_read_old_status_while_suspending_is_not_yet() -> None:
    # virtio 1.4, 3.4.1
    machine = at(AGREED, RUNNING, RUNNING | SUSPEND)
    assert not machine.read(RUNNING)
    assert machine.read(SUSPENDED)
    machine.write(SUSPENDED | DRIVER_OK)
    assert not machine.read(SUSPENDED)
    assert machine.read(RUNNING)
    assert machine.running


def test_read_needs_reset_is_taken_over() -> None:
    machine = at(AGREED, RUNNING)
    assert machine.read(RUNNING | NEEDS_RESET)
    assert machine.status == RUNNING | NEEDS_RESET
    with pytest.raises(LocalError, match="was read"):
        machine.read(RUNNING)


@pytest.mark.parametrize("shown", [0, FOUND, AGREED | FAILED, RUNNING | 32, SUSPENDED])
def test_read_status_that_cannot_be_is_refused(shown: int) -> None:
    machine = at(AGREED, RUNNING)
    assert machine.read(RUNNING)
    with pytest.raises(LocalError, match="was read"):
        machine.read(shown)
    assert machine.status == RUNNING


def test_blaming_partner_makes_a_remote_error_of_it() -> None:
    with pytest.raises(RemoteError, match="has to come after") as caught, blaming_partner(Verdict.CLOSE):
        StatusMachine(legacy=False).write(DRIVER)
    assert caught.value.verdict is Verdict.CLOSE


def test_names_of_a_status_in_the_order_of_the_standard() -> None:
    assert names(RUNNING) == "ACKNOWLEDGE DRIVER FEATURES_OK DRIVER_OK"
    assert names(0) == "0"
    assert names(33) == "ACKNOWLEDGE 0x20"


@given(writes=st.lists(st.integers(0, 255), max_size=30), legacy=st.booleans(), suspend=st.booleans())
def test_any_writes_are_followed_or_refused_and_the_driver_sees_the_same(
    writes: list[int], legacy: bool, suspend: bool
) -> None:
    device, driver = StatusMachine(legacy), StatusMachine(legacy)
    for new in writes:
        device.suspend_negotiated = driver.suspend_negotiated = suspend
        try:
            driver.write(new)
        except LocalError:
            with pytest.raises(LocalError):
                device.write(new)
            continue
        device.write(new)
        assert driver.read(device.status)
        assert driver.status == device.status
        if legacy:
            assert not device.status & (FEATURES_OK | SUSPEND)
        assert not device.running or device.status & (FOUND | DRIVER_OK) == FOUND | DRIVER_OK
