"""The register-shaped entry: any token and any registers give a return code, the same one as the typed methods."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.port import HcallPort
from powervio.phyp.registry import TABLE, function_sets, hcall
from powervio.vio.slots import CrqSlots

if TYPE_CHECKING:
    from tests.phyp.conftest import Rig

pytestmark = pytest.mark.dual

PAGE = 4096
MESSAGE = 0x80 << 56

# Numbers that mean something to one hcall or another: sizes, limits, LIOBNs, unit addresses, a source, a message.
SIZES = (0, 1, 2, 3, 8, 16, 48, 72, 512, PAGE, 2 * PAGE, 15 * PAGE, 16 * PAGE, 32 * PAGE, PAGE | 3)
LIMITS = (1 << 31, 1 << 32, 1 << 63, 2**64 - PAGE, 2**64 - 1)
NAMES = (0x1000_0000, 0x1000_0001, 0x1000_0002, 0x3000_0002, 0x1000, 0xFF00_1000, MESSAGE)
registers = st.one_of(st.sampled_from((*SIZES, *LIMITS, *NAMES)), st.integers(0, 2**64 - 1))
numbers = st.one_of(registers, st.integers(-(2**70), 2**70))


@pytest.mark.parametrize("token", [0, 1, 0x24, 0xF000, -4, 2**64])
def test_hcall_unknown_token_is_function(rig: Rig, token: int) -> None:
    assert rig.c.hcall(token, 1, 2, 3) == (ReturnCode.H_FUNCTION,)


def test_hcall_missing_registers_are_zero(rig: Rig) -> None:
    assert rig.c.hcall(Hcall.H_PUT_TCE) == (ReturnCode.H_PARAMETER,)
    assert rig.c.hcall(Hcall.H_PUT_TCE, rig.window) == (ReturnCode.H_SUCCESS,)


def test_hcall_further_registers_are_ignored(rig: Rig) -> None:
    assert rig.c.hcall(Hcall.H_PUT_TCE, rig.window, 0, PAGE | 3, *range(20)) == (ReturnCode.H_SUCCESS,)
    assert rig.c.hcall(Hcall.H_GET_TCE, rig.window, 0) == (ReturnCode.H_SUCCESS, PAGE | 3)


def test_hcall_wide_registers_are_cut_to_64_bits(rig: Rig) -> None:
    assert rig.c.hcall(Hcall.H_PUT_TCE, rig.window + (1 << 64), 1 << 64, PAGE | 3 | 1 << 64) == (ReturnCode.H_SUCCESS,)
    assert rig.c.get_tce(rig.window, 0) == (ReturnCode.H_SUCCESS, PAGE | 3)


def test_hcall_negative_copy_length_is_parameter(linked: Rig) -> None:
    assert linked.s.hcall(Hcall.H_COPY_RDMA, -1, linked.remote, 0, linked.local, 0) == (ReturnCode.H_PARAMETER,)


@given(token=st.sampled_from(sorted(TABLE)), values=st.lists(numbers, max_size=11))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hcall_any_registers_give_a_return_code(linked: Rig, token: int, values: list[int]) -> None:
    result = linked.s.hcall(token, *values)
    assert result[0] in ReturnCode.__members__.values()
    assert all(0 <= register < 1 << 64 for register in result[1:])
    assert len(result) <= 10


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_typed_methods_any_arguments_give_the_codes_of_the_registers(
    new_rig: Callable[[], Rig], data: st.DataObject
) -> None:
    one, two = new_rig(), new_rig()
    try:
        for rig in (one, two):
            rig.connect()
            rig.s.vio_signal(rig.s_ua, 1)
        for _ in range(data.draw(st.integers(1, 8))):
            name, count = data.draw(st.sampled_from(TYPED))
            arguments = data.draw(st.lists(registers, min_size=count, max_size=count))
            typed = getattr(one.s, name)(*arguments)
            assert typed == getattr(HcallPort, name)(two.s, *arguments)
        assert bytes(one.server.memory) == bytes(two.server.memory)
        assert bytes(one.client.memory) == bytes(two.client.memory)
        assert one.server_end.ledger.snapshot() == two.server_end.ledger.snapshot()
        assert one.server.ledger.snapshot() == two.server.ledger.snapshot()
    finally:
        one.hypervisor.close()
        two.hypervisor.close()


TYPED = [
    ("get_tce", 2),
    ("put_tce", 3),
    ("stuff_tce", 4),
    ("put_tce_indirect", 4),
    ("reg_crq", 3),
    ("free_crq", 1),
    ("send_crq", 3),
    ("enable_crq", 1),
    ("vio_signal", 2),
    ("copy_rdma", 5),
    ("read_rdma", 3),
    ("xirr", 0),
    ("eoi", 1),
    ("cppr", 1),
]


@given(values=st.lists(numbers, min_size=5, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_typed_methods_numbers_beyond_64_bits_do_not_raise(linked: Rig, values: list[int]) -> None:
    for name, count in TYPED:
        getattr(linked.s, name)(*values[:count])
    linked.s.put_tce(linked.local, values[0], values[1])
    linked.s.stuff_tce(linked.local, values[0], values[1], values[2])
    linked.s.copy_rdma(values[0], linked.remote, values[1], linked.local, values[2])
    linked.s.read_rdma(linked.remote, values[0], values[1])
    linked.s.write_rdma(linked.remote, values[0], b"x")
    linked.s.send_crq(linked.s_ua, values[0], values[1])


def test_registry_second_implementation_of_a_token_is_refused() -> None:
    with pytest.raises(RuntimeError, match="H_PUT_TCE has an implementation already"):
        hcall(Hcall.H_PUT_TCE, function_set="hcall-tce", registers=3)(lambda partition: 0)


def test_registry_names_the_function_sets_for_the_device_tree() -> None:
    assert set(function_sets()) >= {
        "hcall-tce",
        "hcall-multi-tce",
        "hcall-crq",
        "hcall-rdma",
        "hcall-interrupt",
        "hcall-vio",
        "hcall-suspend",
    }


def test_two_threads_sending_and_draining_lose_nothing(linked: Rig) -> None:
    count = 3000
    received: list[int] = []

    def receive() -> None:
        slots = CrqSlots(linked.server.memory[:PAGE])
        while len(received) < count:
            element = slots.next()
            if element is not None:
                received.append(element[1])

    thread = threading.Thread(target=receive)
    thread.start()
    number = 0
    while number < count:
        code = linked.c.send_crq(linked.c_ua, MESSAGE, number)
        assert code in (ReturnCode.H_SUCCESS, ReturnCode.H_DROPPED)
        number += code == ReturnCode.H_SUCCESS
    thread.join(60)
    assert received == list(range(count))
