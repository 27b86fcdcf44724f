"""The life of a ring: the table, rule by rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.transport.vhost_user.ring_state import TRANSITIONS, Event, Phase, after


def test_every_event_has_every_phase() -> None:
    assert set(TRANSITIONS) == set(Event)
    assert all(set(row) == set(Phase) for row in TRANSITIONS.values())


def run(*events: Event, phase: Phase = Phase.STOPPED_DISABLED) -> Phase:
    for event in events:
        phase = after(phase, event)
    return phase


def test_rule_1_get_vring_base_stops_and_does_not_disable() -> None:
    assert run(Event.ENABLE, Event.KICK, Event.GET_VRING_BASE) is Phase.STOPPED_ENABLED
    assert run(Event.ENABLE, Event.KICK, Event.GET_VRING_BASE, Event.KICK) is Phase.RUNNING


def test_rule_1_qemu_since_7_2_disables_before_it_stops() -> None:
    stopped = run(Event.ENABLE, Event.KICK, Event.DISABLE, Event.GET_VRING_BASE)
    assert stopped is Phase.STOPPED_DISABLED
    assert run(Event.SET_VRING_KICK, Event.KICK, Event.ENABLE, phase=stopped) is Phase.RUNNING


def test_rule_2_set_features_with_protocol_features_changes_nothing() -> None:
    assert all(after(phase, Event.SET_FEATURES) is phase for phase in Phase)


def test_rule_2_without_protocol_features_rings_are_enabled() -> None:
    assert run(Event.SET_FEATURES_PLAIN, Event.SET_VRING_KICK, Event.KICK) is Phase.RUNNING


def test_rule_3_set_vring_kick_changes_nothing_unless_there_will_be_no_kicks() -> None:
    assert all(after(phase, Event.SET_VRING_KICK) is phase for phase in Phase)
    assert run(Event.ENABLE, Event.SET_VRING_POLL) is Phase.RUNNING


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("event", list(Event))
def test_rule_4_only_three_events_disable(phase: Phase, event: Event) -> None:
    disabling = event in (Event.DISABLE, Event.RESET_DEVICE, Event.DISCONNECT)
    assert after(phase, event).enabled or not phase.enabled or disabling


def test_rule_5_resets_stop() -> None:
    assert run(Event.ENABLE, Event.KICK, Event.STATUS_RESET) is Phase.STOPPED_ENABLED
    assert run(Event.ENABLE, Event.KICK, Event.RESET_DEVICE) is Phase.STOPPED_DISABLED


@given(st.lists(st.sampled_from(list(Event))))
def test_started_and_enabled_are_independent(events: list[Event]) -> None:
    started = enabled = False
    phase = Phase.STOPPED_DISABLED
    for event in events:
        phase = after(phase, event)
        if event in (Event.KICK, Event.SET_VRING_POLL):
            started = True
        elif event in (Event.GET_VRING_BASE, Event.STATUS_RESET, Event.RESET_DEVICE, Event.DISCONNECT):
            started = False
        if event in (Event.ENABLE, Event.SET_FEATURES_PLAIN):
            enabled = True
        elif event in (Event.DISABLE, Event.RESET_DEVICE, Event.DISCONNECT):
            enabled = False
        assert (phase.started, phase.enabled) == (started, enabled)
