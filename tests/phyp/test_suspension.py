"""Suspending and resuming a partition, and terminating one at a partner's request (papr-vio 3.3, 3.8)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest
from tests.phyp.conftest import PAGE, Rig

from powervio.papr.codes import ReturnCode
from powervio.papr.crq import TransportEvent, event_element
from powervio.papr.vioctl import Vioctl
from powervio.phyp.policy import Policy
from powervio.phyp.suspension import SuspendAborted
from powervio.vio.slots import CrqSlots


def events(rig: Rig, *, server: bool = True) -> list[TransportEvent]:
    slots = CrqSlots((rig.server if server else rig.client).memory[:PAGE])
    return [TransportEvent(high >> 48 & 0xFF) for high, _ in iter(slots.next, None)]


def ask_for_notice(rig: Rig, msec: int = 5000) -> None:
    assert rig.s.vioctl(rig.s_ua, Vioctl.ENABLE_PREPARE_FOR_SUSPEND, msec)[0] == 0


PREPARE = TransportEvent.PREPARE_FOR_SUSPEND
SUSPENDED = TransportEvent.PARTNER_SUSPENDED
RESUMED = TransportEvent.CLIENT_RESUMED


def test_server_that_asked_gets_prepare_then_suspended_then_resumed(linked: Rig) -> None:
    ask_for_notice(linked)
    linked.hypervisor.prepare_suspend(linked.client)
    assert linked.client_end.enabled
    assert linked.s.vioctl(linked.s_ua, Vioctl.READY_FOR_SUSPEND) == (0,)
    linked.hypervisor.suspend(linked.client)
    linked.hypervisor.resume(linked.client)
    assert events(linked) == [PREPARE, SUSPENDED, RESUMED]
    assert events(linked, server=False) == [SUSPENDED]


def test_server_that_did_not_ask_hears_of_the_suspension_only(linked: Rig) -> None:
    linked.hypervisor.suspend(linked.client)
    linked.hypervisor.resume(linked.client)
    assert events(linked) == [SUSPENDED]


def test_suspend_waits_for_ready_from_another_thread(linked: Rig) -> None:
    ask_for_notice(linked)
    done = threading.Thread(target=linked.hypervisor.suspend, args=(linked.client,))
    done.start()
    time.sleep(0.05)
    assert done.is_alive()
    assert linked.client_end.enabled
    linked.s.vioctl(linked.s_ua, Vioctl.READY_FOR_SUSPEND)
    done.join(20)
    assert not linked.client_end.enabled


def test_suspend_with_a_server_that_is_not_ready_in_time_is_aborted_and_told(linked: Rig) -> None:
    ask_for_notice(linked, 20)
    with pytest.raises(SuspendAborted, match="not ready for a suspension in time"):
        linked.hypervisor.suspend(linked.client)
    assert linked.client_end.enabled
    assert events(linked) == [PREPARE, RESUMED]
    ask_for_notice(linked, 0)


@pytest.mark.parametrize("end", ["free", "terminate"])
def test_server_that_goes_away_is_not_waited_for(linked: Rig, end: str) -> None:
    ask_for_notice(linked)
    linked.hypervisor.prepare_suspend(linked.client)
    if end == "free":
        linked.s.free_crq(linked.s_ua)
    else:
        linked.hypervisor.terminate(linked.server)
    linked.hypervisor.suspend(linked.client)
    linked.hypervisor.resume(linked.client)


def test_suspended_partition_takes_no_interrupt_until_it_is_resumed(linked: Rig) -> None:
    linked.c.vio_signal(linked.c_ua, 1)
    linked.hypervisor.suspend(linked.client)
    with pytest.raises(BlockingIOError):
        _line(linked)
    linked.hypervisor.resume(linked.client)
    assert _line(linked) == 1
    assert linked.c.xirr() & 0xFF_FFFF == linked.client_end.interrupt


def _line(rig: Rig) -> int:
    return os.eventfd_read(rig.c.interrupt_fd)


def test_enable_crq_busy_for_a_while_then_succeeds(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(Policy(enable_crq_delays=2))
    rig.connect()
    rig.hypervisor.suspend(rig.client)
    rig.hypervisor.resume(rig.client)
    codes = [rig.c.enable_crq(rig.c_ua) for _ in range(3)]
    assert codes == [ReturnCode.H_LONG_BUSY_ORDER_10_MSEC] * 2 + [ReturnCode.H_SUCCESS]
    rig.hypervisor.close()


def test_terminate_at_a_partner_s_request_tells_that_partner_ff04(linked: Rig) -> None:
    linked.hypervisor.terminate(linked.client, by=linked.server)
    assert events(linked) == [TransportEvent.PARTNER_TERMINATED]


def test_terminate_at_another_s_request_tells_ff01(linked: Rig) -> None:
    other = linked.hypervisor.create_partition("other", 16 * PAGE)
    linked.hypervisor.terminate(linked.client, by=other)
    assert events(linked) == [TransportEvent.PARTNER_FAILED]
    assert event_element(TransportEvent.PARTNER_TERMINATED) == 0xFF04 << 48
