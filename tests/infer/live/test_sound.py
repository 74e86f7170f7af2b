"""What a call hears, and the clock of what it sees."""

import numpy as np
import pytest

from infer.live.line import Line, Overfull
from infer.live.pace import Pace

BLOCK = 100


def line() -> Line:
    return Line(audio_hz=1000, live_s=0.25, speech_s=1.0)


def ones(size: int, level: float = 1.0) -> np.ndarray:
    return np.full(size, level, np.float32)


def test_a_talker_is_waited_for_and_silence_is_not():
    heard = line()
    assert heard.take(BLOCK, 0.0, must=False) is None
    np.testing.assert_array_equal(heard.take(BLOCK, 0.0, must=True), np.zeros(BLOCK))
    heard.talk(ones(60), 1.0, keep=BLOCK)
    assert heard.take(BLOCK, 1.0, must=True) is None  # the rest of the block is being said
    heard.talk(ones(60), 1.05, keep=BLOCK)
    np.testing.assert_array_equal(heard.take(BLOCK, 1.05, must=False), ones(BLOCK))
    ended = heard.take(BLOCK, 2.0, must=True)
    assert ended is not None and ended[:20].all() and not ended[20:].any()
    assert heard.silent == 180


def test_live_sound_that_waits_too_long_is_dropped_down_to_the_newest_block():
    heard = line()
    for second in range(10):
        heard.talk(ones(BLOCK, second), second / 10, keep=BLOCK)
    assert heard.waiting_s <= 0.25 and heard.dropped == 800
    np.testing.assert_array_equal(heard.take(BLOCK, 1.0, must=False), ones(BLOCK, 9))
    assert heard.waiting_s == 0.0 and heard.dropped == 900


def test_a_picture_that_is_needlessly_late_skips_live_sound_and_no_speech():
    heard = line()
    heard.talk(np.arange(90, dtype=np.float32), 0.0, keep=BLOCK)
    assert heard.take(BLOCK, 0.0, must=False, spare=30) is None and heard.dropped == 0  # it waits as it is
    heard.talk(np.arange(90, 100, dtype=np.float32), 0.1, keep=BLOCK)
    assert heard.take(BLOCK, 0.1, must=False, spare=30) is None and heard.dropped == 30
    heard.talk(np.arange(100, 130, dtype=np.float32), 0.2, keep=BLOCK)
    np.testing.assert_array_equal(heard.take(BLOCK, 0.2, must=False), np.arange(30, 130))
    heard.say(ones(BLOCK, 2))
    np.testing.assert_array_equal(heard.take(BLOCK, 0.3, must=False, spare=30), ones(BLOCK, 2))
    assert heard.dropped == 30


def test_speech_is_spoken_to_its_end_and_the_microphone_waits():
    heard = line()
    heard.talk(ones(50, 3), 0.0, keep=BLOCK)
    heard.say(ones(150, 2))
    heard.talk(ones(50, 3), 0.0, keep=BLOCK)
    np.testing.assert_array_equal(heard.take(BLOCK, 0.0, must=False), ones(BLOCK, 2))
    end = heard.take(BLOCK, 0.0, must=False)
    assert end is not None and (end[:50] == 2).all() and not end[50:].any()
    assert heard.take(BLOCK, 0.0, must=False) is None


def test_more_speech_than_may_wait_is_refused_and_an_interruption_forgets_all():
    heard = line()
    heard.say(ones(900))
    with pytest.raises(Overfull, match="1 s may wait"):
        heard.say(ones(101))
    heard.clear()
    assert heard.waiting_s == 0.0


def test_frames_go_out_at_their_time_and_a_late_one_moves_the_clock():
    pace, now = Pace(25, lead=4), 10.0
    for _ in range(5):  # the first four ahead of their time
        assert pace.wait_s(now) <= 1e-9
        pace.sent(now)
    assert pace.wait_s(now) == pytest.approx(0.04)
    now += 1.0  # the fifth was due in 0.2 s: late by 0.8
    pace.sent(now)
    assert pace.stalls == 1 and pace.stalled_s == pytest.approx(0.8)
    assert pace.ahead_s(now) == pytest.approx(0.04)
    pace.rest()
    pace.sent(now + 50.0)
    assert pace.stalls == 1  # the wait was meant


def test_the_media_clock_does_not_drift_in_ten_thousand_seconds():
    pace, now = Pace(25, lead=4), 0.0
    for _ in range(250_000):
        now = max(now, now + pace.wait_s(now))
        pace.sent(now)
    assert pace.stalls == 0 and abs(now - (250_000 - 5) / 25) < 1e-3
