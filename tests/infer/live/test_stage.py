"""The stage's turns on a clock of the test's own."""

import numpy as np

from infer.live.line import Line
from infer.live.stage import SLACK_S, SPARE_S, Part, Stage
from tests.infer.live.house import FORM, Hall, voice


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def staged(seats: int = 1, draw_s: float = 0.1, beat_s: float = 0.0) -> tuple[Clock, Hall, Stage, list[Part]]:
    clock, hall = Clock(), Hall(seats, draw_s)
    stage = Stage(hall, beat_s=beat_s, now=clock)
    parts = [stage.join(40, Line(audio_hz=16000, live_s=0.96, speech_s=60.0), FORM, ahead=2) for _ in range(seats)]
    return clock, hall, stage, parts


def run(clock: Clock, stage: Stage, until_s: float, step=lambda now_s: None) -> None:
    while clock.now_s < until_s:
        step(clock.now_s)
        stage.turn(clock.now_s)
        clock.now_s += 0.01


def test_frames_that_nobody_shows_stop_their_seat():
    clock, _, stage, (part, other) = staged(2)
    for one in (part, other):
        one.line.say(voice(20.0))
    shown = 0

    def show(now_s: float) -> None:
        nonlocal shown
        while shown < now_s * 25 and other.reel:
            other.reel.popleft()
            shown += 1

    run(clock, stage, 8.0, show)
    assert len(part.reel) <= 2 * FORM.block_frames and part.under_way == 0
    assert shown >= 8 * 25 - 6


def test_a_seat_that_nobody_looks_at_rests():
    clock, _, stage, (part,) = staged()
    part.playing = False
    part.line.say(voice(5.0))
    run(clock, stage, 2.0)
    assert not part.reel and part.blocks == 0


def test_after_an_interruption_nothing_stale_comes_home():
    clock, _, stage, (part,) = staged(draw_s=0.3)
    part.line.say(voice(5.0))
    run(clock, stage, 0.5)
    for _ in range(FORM.block_frames):
        part.reel.popleft()
    run(clock, stage, 0.6)  # one block at home, one under way
    assert part.reel and part.under_way
    part.line.clear()
    part.cut()
    assert not part.reel
    run(clock, stage, 2.0)
    assert part.reel and all(framed.frame.max() == 40 for framed in part.reel)


def test_calls_enter_together_where_a_turn_costs_the_same_for_all():
    clock, hall, stage, parts = staged(3, beat_s=0.24)
    entered = hall.entered
    for part in parts:
        part.line.say(voice(10.0))
    run(clock, stage, 3.0, lambda now_s: [part.reel.popleft() for part in parts if part.reel])
    times = sorted(set(entered))
    assert len(times) > 4 and np.diff(times).min() >= 0.24 - 1e-9


def test_a_job_runs_between_two_turns_and_its_error_is_the_askers():
    _, hall, stage, (part,) = staged()
    fine, bad = stage.ask(stage.leave, part), stage.ask(lambda: 1 / 0)
    stage.turn(0.0)
    assert fine.result() is None and not hall.guests
    assert isinstance(bad.exception(), ZeroDivisionError)


def test_the_speed_of_drawing_is_learnt():
    clock, _, stage, (part,) = staged(draw_s=0.1)
    run(clock, stage, 10.0, lambda now_s: part.reel.popleft() if part.reel else None)
    assert abs(part.draw_s - 0.1) < 0.03


def test_after_an_overload_a_talker_is_back_at_the_live_edge():
    clock, hall, stage, (part,) = staged(draw_s=0.1)
    behind: list[tuple[float, float]] = []
    due_s = 0.0

    def step(now_s: float) -> None:
        nonlocal due_s
        part.line.talk(voice(0.01), now_s, keep=FORM.block_samples)
        hall.draw_s = 0.96 if 5.0 <= now_s < 15.0 else 0.1
        if now_s >= due_s and part.reel:
            behind.append((now_s, now_s - part.reel.popleft().heard_s))
            due_s = max(due_s, now_s - 0.04) + 0.04

    run(clock, stage, 40.0, step)

    def worst(start_s: float, end_s: float) -> float:
        return max(wait_s for now_s, wait_s in behind if start_s <= now_s < end_s)

    needed = hall.draw_s + FORM.block_s + SLACK_S + SPARE_S + 1 / FORM.fps
    assert worst(8.0, 15.0) > needed + 0.2 and worst(20.0, 40.0) <= needed
    run(clock, stage, 60.0, step)
    dropped = part.line.dropped
    run(clock, stage, 90.0, step)
    assert part.line.dropped == dropped  # not over and over
