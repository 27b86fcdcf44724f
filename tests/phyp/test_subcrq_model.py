"""Sub-CRQs against a plain model: what arrives where, in which order, and with which return code, whatever comes
between (papr-vio 5)."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, rule
from tests.phyp.conftest import PAGE, Rig, make_rig

from powervio.papr.codes import ReturnCode
from powervio.vio.slots import CrqSlots

pytestmark = [pytest.mark.dual, pytest.mark.timeout(900)]

SLOTS = PAGE // 32
FIRST_PAGE, PAGES = 4, 8
SIDES = st.sampled_from([0, 1])


class Queue:
    """What a Sub-CRQ is to the model: a bounded queue of its owner's, known by its cookie while it lives."""

    def __init__(self, side: int, cookie: int, page: int, slots: CrqSlots) -> None:
        self.side = side
        self.cookie = cookie
        self.page = page
        self.slots = slots
        self.elements: deque[int] = deque()
        self.alive = True


class SubCrqMachine(RuleBasedStateMachine):
    """Side 0 is the server, side 1 the client."""

    queues = Bundle("queues")

    @initialize()
    def start(self) -> None:
        self.rig: Rig = make_rig()
        self.rig.connect()
        self.ports = (self.rig.s, self.rig.c)
        self.addresses = (self.rig.s_ua, self.rig.c_ua)
        self.partitions = (self.rig.server, self.rig.client)
        self.registered = [True, True]
        self.enabled = [True, True]
        self.alive: tuple[dict[int, Queue], dict[int, Queue]] = ({}, {})
        self.seen: set[int] = set()
        self.number = 0

    def teardown(self) -> None:
        self.rig.hypervisor.close()

    def open(self) -> bool:
        return all(self.registered) and all(self.enabled)

    @rule(target=queues, side=SIDES)
    def register(self, side: int) -> object:
        used = {queue.page for queue in self.alive[side].values()}
        free = [page for page in range(FIRST_PAGE, FIRST_PAGE + PAGES) if page not in used]
        if not free:
            return multiple()
        memory = self.partitions[side].memory[free[0] * PAGE : (free[0] + 1) * PAGE]
        memory[:] = b"\x80" * PAGE  # the hypervisor has to clear it
        code, cookie, _ = self.ports[side].reg_sub_crq(self.addresses[side], free[0] * PAGE, PAGE)
        assert code == (ReturnCode.H_SUCCESS if all(self.registered) else ReturnCode.H_CLOSED)
        assert cookie not in self.seen
        self.seen.add(cookie)
        queue = Queue(side, cookie, free[0], CrqSlots(memory, 32))
        self.alive[side][cookie] = queue
        return queue

    @rule(queue=queues)
    def send(self, queue: Queue) -> None:
        sender = 1 - queue.side
        self.number += 1
        word = 0x80 << 56 | self.number
        code = self.ports[sender].send_sub_crq(self.addresses[sender], queue.cookie, word, 0, 0, self.number)
        assert code == self.expected(queue, 1)
        if code == 0:
            queue.elements.append(word)

    @rule(queue=queues, count=st.integers(1, 16))
    def send_many(self, queue: Queue, count: int) -> None:
        sender = 1 - queue.side
        memory = self.partitions[sender].memory
        words = [0x80 << 56 | self.number + 1 + n for n in range(count)]
        self.number += count
        for n, word in enumerate(words):
            memory[3 * PAGE + 32 * n : 3 * PAGE + 32 * n + 32] = word.to_bytes(8, "big") + bytes(24)
        code = self.ports[sender].send_sub_crq_indirect(self.addresses[sender], queue.cookie, 3 * PAGE, count)
        assert code == self.expected(queue, count)
        if code == 0:
            queue.elements.extend(words)

    def expected(self, queue: Queue, count: int) -> ReturnCode:
        if not queue.alive:
            return ReturnCode.H_PARAMETER
        if not self.open():
            return ReturnCode.H_CLOSED
        return ReturnCode.H_SUCCESS if len(queue.elements) + count <= SLOTS else ReturnCode.H_DROPPED

    @rule(queue=queues, limit=st.integers(1, 300))
    def take(self, queue: Queue, limit: int) -> None:
        for _ in range(limit):
            if not queue.alive or not queue.elements:
                break
            taken = queue.slots.next_wide()
            assert taken is not None
            assert taken[0] == queue.elements.popleft()
        if queue.alive and not queue.elements:
            assert queue.slots.next_wide() is None

    @rule(queue=consumes(queues))
    def free(self, queue: Queue) -> None:
        code = self.ports[queue.side].free_sub_crq(self.addresses[queue.side], queue.cookie)
        assert code == (ReturnCode.H_SUCCESS if queue.alive else ReturnCode.H_PARAMETER)
        self.forget(queue)

    def forget(self, queue: Queue) -> None:
        queue.alive = False
        self.alive[queue.side].pop(queue.cookie, None)

    @rule(side=SIDES)
    def free_or_register_the_crq(self, side: int) -> None:
        if self.registered[side]:
            assert self.ports[side].free_crq(self.addresses[side]) == 0
            for queue in list(self.alive[side].values()):
                self.forget(queue)
        else:
            assert self.ports[side].reg_crq(self.addresses[side], 0, PAGE) in (0, 2)
        self.registered[side] = self.enabled[side] = not self.registered[side]

    @rule(side=SIDES, enable=st.booleans())
    def suspend(self, side: int, enable: bool) -> None:
        self.rig.hypervisor.suspend(self.partitions[side])
        self.rig.hypervisor.resume(self.partitions[side])
        self.enabled[side] = False
        if enable:
            assert self.ports[side].enable_crq(self.addresses[side]) == 0
            self.enabled[side] = self.registered[side]


TestSubCrqs = SubCrqMachine.TestCase
TestSubCrqs.settings = settings(max_examples=60, stateful_step_count=60)
