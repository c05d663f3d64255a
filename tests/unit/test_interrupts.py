import signal
import threading

import pytest
from ray.tune.tune import _setup_signal_catching

from avb_service.distributed.interrupts import interruptible


@pytest.fixture
def handler():
    """Python's own, as in a foreground process: what is there before a block, and has to be there after."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_tune_has_answered_ends_the_block_all_the_same(handler):
    """Tune returns from `fit` as if it had come to the end, as it has where the interrupt followed the last trial."""
    with pytest.raises(KeyboardInterrupt):
        with interruptible():
            answered = _setup_signal_catching()
            signal.raise_signal(signal.SIGINT)
            assert answered.is_set()
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_is_not_a_clean_exit(handler):
    with pytest.raises(KeyboardInterrupt):
        with interruptible():
            signal.signal(signal.SIGINT, lambda *_: exit(0))  # as Ray Train does
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_after_the_block_is_nobody_elses(handler):
    with interruptible():
        answered = _setup_signal_catching()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not answered.is_set()


def test_what_is_raised_without_an_interrupt_is_left_alone(handler):
    with pytest.raises(ZeroDivisionError):
        with interruptible():
            1 / 0  # noqa: B018
    assert signal.getsignal(signal.SIGINT) is handler


def test_threads_have_no_signals_to_wait_for():
    done = []

    def work() -> None:
        with interruptible():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
