"""Signals put off: noted, shared by nested contexts, obeyed in the end if nobody asked."""

import signal

import pytest

from ctrlnet.storage.interruption import SIGNALS, Interruption


@pytest.fixture(autouse=True)
def python_handles_signals():
    """A shell in the background lets its children ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_handlers_come_back(number):
    before = [signal.getsignal(n) for n in SIGNALS]
    with Interruption() as interruption:
        assert not interruption.came
        signal.raise_signal(number)
        assert interruption.came
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_what_an_inner_context_noted_the_outer_one_knows():
    with Interruption() as outer:
        with Interruption() as inner:
            signal.raise_signal(signal.SIGINT)
        assert inner is outer and outer.came
    with Interruption() as another:
        assert not another.came


def test_a_signal_that_nobody_asked_about_is_obeyed_in_the_end():
    with pytest.raises(KeyboardInterrupt):
        with Interruption():
            signal.raise_signal(signal.SIGINT)


def test_another_exception_passes_and_is_not_replaced():
    with pytest.raises(ValueError, match="mine"):
        with Interruption():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("mine")


def test_a_second_signal_ends_at_once():
    with pytest.raises(KeyboardInterrupt):
        with Interruption():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
