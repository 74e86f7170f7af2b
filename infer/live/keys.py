"""Who may come in: the operator's tokens, short-lived ones for sessions, and how often each may ask."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable


class Denied(Exception):
    """Not let in. status: 401 without a valid token, 403 with one for something else."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class Keys:
    """Tokens of the door and of the sessions.

    A session's token names the session and its end and is signed, so that nothing has to be kept of it; the secret is
    the process's own, so no token outlives it.

    Args:
      tokens: whoever holds one may open sessions.
      ttl_s: how long a session's token lasts.
      now: seconds of the wall clock.
    """

    def __init__(self, tokens: list[str], *, ttl_s: float, now: Callable[[], float] = time.time):
        self._tokens, self._ttl_s, self._now = [token.encode() for token in tokens], ttl_s, now
        self._secret = secrets.token_bytes(32)

    def owner(self, token: str | None) -> str:
        """A name for the holder of a door token that does not tell it. Raises Denied."""
        given = (token or "").encode()
        held = [one for one in self._tokens if hmac.compare_digest(one, given)]
        if not held:
            raise Denied(401, "token: missing, wrong or expired")
        return hashlib.sha256(held[0]).hexdigest()[:12]

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()

    def issue(self, session: str) -> tuple[str, float]:
        """A session's token, and when it ends (seconds of the wall clock)."""
        ends_s = self._now() + self._ttl_s
        text = f"{session}.{int(ends_s)}"
        return f"{text}.{self._sign(text)}", ends_s

    def visitor(self, cookie: str | None) -> str:
        """The holder of a page's cookie, from `issue("page-" + owner)`. Raises Denied."""
        name = (cookie or "").partition(".")[0]
        if not name.startswith("page-"):
            raise Denied(401, "token: missing, wrong or expired")
        self.check(cookie, name)
        return name.removeprefix("page-")

    def check(self, token: str | None, session: str) -> None:
        """Raises Denied unless this is a token of that session that lasts."""
        name, _, rest = (token or "").partition(".")
        ends, _, signature = rest.partition(".")
        genuine = hmac.compare_digest(self._sign(f"{name}.{ends}").encode(), signature.encode())
        if not genuine or self._now() >= float(ends):
            raise Denied(401, "token: missing, wrong or expired")
        if name != session:
            raise Denied(403, "token: of another session")


class Bucket:
    """So many a second on average, and so many at once.

    Args:
      rate: a second.
      burst: at once.
    """

    def __init__(self, rate: float, burst: float):
        self._rate, self._burst = rate, burst
        self._left, self._last_s = burst, None

    def wait_s(self, amount: float, now_s: float) -> float:
        """Takes an amount and returns 0, or takes nothing and returns the seconds until it is there."""
        passed, self._last_s = now_s - (self._last_s or now_s), now_s
        self._left = min(self._burst, self._left + passed * self._rate)
        if self._left >= amount:
            self._left -= amount
            return 0.0
        return (amount - self._left) / self._rate


class Buckets:
    """A bucket for each owner."""

    def __init__(self, rate: float, burst: float):
        self._rate, self._burst, self._of = rate, burst, {}

    def wait_s(self, owner: str, amount: float, now_s: float) -> float:
        """As `Bucket.wait_s`."""
        return self._of.setdefault(owner, Bucket(self._rate, self._burst)).wait_s(amount, now_s)
