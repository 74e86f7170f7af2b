"""Flags of several processes that do not belong together are refused before anything starts."""

import re
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from infer import hosts


@pytest.fixture(scope="module", autouse=True)
def defined():
    if "coordinator" not in flags.FLAGS:
        hosts.define()
    flags.FLAGS(sys.argv[:1])


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"process": 1}, "--process: needs --coordinator=host:port"),
        ({"coordinator": "auto", "processes": 2}, "--processes: needs --coordinator=host:port"),
        ({"coordinator": "here"}, "--coordinator=here: must be host:port"),
        ({"coordinator": "here:port"}, "must be host:port"),
        ({"coordinator": "here:70000"}, "must be host:port"),
        ({"coordinator": "here:99", "process": 0}, "needs --processes=N and --process=I"),
        ({"coordinator": "here:99", "process": 2, "processes": 2}, "--process=2: must be below --processes=2"),
    ],
)
def test_flags_that_do_not_belong_together(told: dict, words: str):
    with flagsaver.flagsaver(**told), pytest.raises(ValueError, match=re.escape(words)):
        hosts.check()


@pytest.mark.parametrize(
    "told", [{}, {"coordinator": "auto"}, {"coordinator": "here:99", "process": 1, "processes": 2}]
)
def test_flags_that_do(told: dict):
    with flagsaver.flagsaver(**told):
        hosts.check()


def test_alone_nothing_is_joined():
    with flagsaver.flagsaver(coordinator=None), hosts.together():
        assert hosts.first()
