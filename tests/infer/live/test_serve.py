"""What the server refuses before it does any work."""

import types

import pytest

from avatar_jax.io.errors import InputError
from infer import serve


def asked(monkeypatch: pytest.MonkeyPatch, **flags) -> None:
    given = {"host": "127.0.0.1", "token": None, "tls_cert": None, "tls_key": None, **flags}
    monkeypatch.setattr(serve, "FLAGS", types.SimpleNamespace(**given))
    monkeypatch.delenv("AVATAR_TOKEN", raising=False)


def test_a_loopback_address_has_a_token_made_up(monkeypatch):
    for host in ("127.0.0.1", "::1", "localhost"):
        asked(monkeypatch, host=host)
        first, second = serve.check_tokens(), serve.check_tokens()
        assert len(first) == 1 and len(first[0]) >= 32 and first != second


def test_tokens_come_from_flags_and_the_environment(monkeypatch):
    asked(monkeypatch, host="0.0.0.0", token=["a" * 16])
    monkeypatch.setenv("AVATAR_TOKEN", "b" * 16)
    assert serve.check_tokens() == ["a" * 16, "b" * 16]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"host": "0.0.0.0"}, "others can reach it, so --token is needed"),
        ({"host": "::"}, "others can reach it, so --token is needed"),
        ({"host": "my.house"}, "is no address"),
        ({"token": ["short"]}, "shorter than 16 characters"),
    ],
)
def test_a_door_without_a_lock_is_refused(monkeypatch, flags: dict, reason: str):
    asked(monkeypatch, **flags)
    with pytest.raises(InputError, match=reason):
        serve.check_tokens()


def test_tls_takes_both_files_and_good_ones(monkeypatch, tmp_path):
    asked(monkeypatch)
    assert serve.check_tls() is None
    asked(monkeypatch, tls_cert="a.pem")
    with pytest.raises(InputError, match="go together"):
        serve.check_tls()
    (tmp_path / "a.pem").write_text("no certificate")
    asked(monkeypatch, tls_cert=str(tmp_path / "a.pem"), tls_key=str(tmp_path / "a.pem"))
    with pytest.raises(InputError, match="cannot be used"):
        serve.check_tls()
