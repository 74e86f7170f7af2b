"""Tokens and rates."""

import pytest

from infer.live.keys import Bucket, Buckets, Denied, Keys

DOOR = "d" * 20


def status(check, *given) -> int:
    try:
        check(*given)
    except Denied as error:
        return error.status
    return 200


def test_a_door_token_opens_and_its_holder_is_named_without_it():
    keys = Keys([DOOR, "e" * 20], ttl_s=10.0)
    names = {keys.owner(DOOR), keys.owner("e" * 20)}
    assert len(names) == 2 and not any(DOOR in name for name in names)
    assert [status(keys.owner, given) for given in (None, "", "wrong", DOOR + "x", "é")] == [401] * 5


def test_a_sessions_token_is_its_own_and_ends():
    time = [1000.0]
    keys, others = (Keys([DOOR], ttl_s=10.0, now=lambda: time[0]) for _ in range(2))
    token, ends_s = keys.issue("one")
    assert ends_s == 1010.0 and status(keys.check, token, "one") == 200
    assert status(keys.check, token, "two") == 403
    name, ends, signature = token.split(".")
    longer = f"{name}.{int(ends) + 100}.{signature}"
    forged = [longer, f"two.{ends}.{signature}", token[:-1], name, "", None, DOOR, "..", "one.nan.x", "é.é.é"]
    assert {status(keys.check, given, "one") for given in forged} == {401}
    assert status(others.check, token, "one") == 401
    time[0] = 1010.0
    assert status(keys.check, token, "one") == 401


def test_a_page_knows_its_visitor():
    keys = Keys([DOOR], ttl_s=10.0)
    cookie, _ = keys.issue("page-" + keys.owner(DOOR))
    assert keys.visitor(cookie) == keys.owner(DOOR)
    assert [status(keys.visitor, given) for given in (None, "page-x.1.2", keys.issue("one")[0])] == [401] * 3


def test_a_bucket_gives_its_rate_and_no_more():
    bucket = Bucket(rate=10.0, burst=5.0)
    assert [bucket.wait_s(1, 0.0) > 0 for _ in range(6)] == [False] * 5 + [True]
    given = sum(bucket.wait_s(1, step / 100) == 0.0 for step in range(1, 1001))
    assert given == pytest.approx(100, abs=1)


def test_everyone_has_a_bucket_of_their_own():
    buckets = Buckets(rate=1.0, burst=1.0)
    assert [buckets.wait_s(who, 1, 0.0) > 0 for who in ("a", "a", "b")] == [False, True, False]
