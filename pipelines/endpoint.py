"""An OpenAI-compatible endpoint over HTTP: chat completions and embeddings, with retries, a rate limit and a bound.

One `EndpointClient` in the host serves all trials, so its rate limit and its bound of requests in flight hold for all of
them together. What goes wrong on the way (429, 5xx, a time-out, an answer that ends half-way or is no JSON) is sent again
after a pause; what finally failed is `Unanswered`, and what no retry can mend (a refused key, a wrong address) is the
user's.

The key is read by its name when the client is made, goes into the request's header, and nowhere else.

Example:
    >>> client = EndpointClient.of({"base_url": "http://127.0.0.1:8000/v1", "model": "m"}, Services())
    >>> client.post("chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}, chat_answer)
"""

from __future__ import annotations

import email.utils
import json
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx

from pipelines.memo import Unanswered
from pipelines.stage import Abandoned, Services, UserError

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
"""A server that asks for a longer pause is asked again after this one."""
CONNECT_SECONDS = 10.0
LARGEST_ANSWER_BYTES = 256 * 1024**2
TIRED_AFTER = 3
"""After so many requests in a row that failed with all their retries, each is tried once until one succeeds."""
USERS = {301, 302, 303, 307, 308, 401, 403, 404, 405}
"""What no retry mends and no other prompt either: the address, the key or the model's name is wrong."""

T = TypeVar("T")


class Broken(Exception):
    """An answer that is not what was asked for; the request is sent again."""


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What came of a request.

    Attributes:
        value: what was read, or why there is nothing.
        seconds: of the last request alone, without pauses and waiting for one's turn.
    """

    value: T | Unanswered
    seconds: float


class _Retry(Exception):
    """Why a request is sent again, and how long the server wants us to wait."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = seconds


class EndpointClient:
    """One endpoint. Any number of threads may share it.

    Args:
        base_url: address up to and with `/v1`.
        model: the model's name there.
        key: sent as a bearer token.
        key_name: what the sweep file calls the key, for messages.
        timeout: seconds that one request may take, from the first byte sent to the last one read.
        retries: times a request is sent again.
        requests_per_minute: of all threads together, retries included; None for no limit.
        concurrency: requests in flight at once.
        abandoned: whether nobody is left to store an answer, which may have to be paid for.
        pause: waits so many seconds; for tests.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str | None = None,
        key_name: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        requests_per_minute: float | None = None,
        concurrency: int = 8,
        abandoned: Callable[[], bool] | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.model = model
        try:
            self.address = public_address(base_url)
            httpx.URL(base_url)
        except (ValueError, httpx.InvalidURL) as error:
            raise UserError(f"base_url: {base_url!r} is no address: {error}") from None
        self._url = base_url.rstrip("/")
        self._key, self._key_name = key, key_name
        self._timeout = timeout
        self._retries = retries
        self._abandoned = abandoned
        self._pause = pause
        self._pace = Pace(requests_per_minute)
        self._concurrency = concurrency
        self._room = threading.BoundedSemaphore(concurrency)
        self._failed_in_a_row = 0
        self._random = random.Random()
        headers = {"User-Agent": "stockpot"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # A proxy from the environment can't reach this machine's own loopback.
        ours = (urlsplit(base_url).hostname or "") in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=concurrency),
            trust_env=not ours,
        )

    @classmethod
    def of(cls, spec: Mapping[str, Any], services: Services) -> EndpointClient:
        """The client of a model spec with the fields of `pipelines.rag.models.Endpoint`.

        Raises:
            UserError: when the key it names is not in the environment.
        """
        name = spec.get("api_key")
        settings = {
            field: spec[field]
            for field in ("timeout", "retries", "requests_per_minute", "concurrency")
            if field in spec
        }
        key, abandoned = read_key(name, services), services.abandoned
        return cls(spec["base_url"], spec["model"], key=key, key_name=name, abandoned=abandoned, **settings)

    def post(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> Reply[T]:
        """Send `body` (the model's name is added) and read the JSON that comes back.

        Args:
            path: below the base address: `chat/completions`, `embeddings`.
            body: JSON.
            read: what is made of the answer; `Broken`, KeyError, TypeError, IndexError and ValueError mean that it is
                not what was asked for.

        Raises:
            UserError: when the address, the key or the model's name is wrong.
            Abandoned: when nobody is left to store the answer; nothing was sent.
        """
        tries = 1 if self._failed_in_a_row >= TIRED_AFTER else 1 + self._retries
        sent = {"model": self.model, **body}
        reason, seconds = "", 0.0
        for attempt in range(tries):
            wanted: float | None = None
            try:
                answer, seconds = self._send(path, sent)
                found = read(answer)
            except (Broken, KeyError, TypeError, IndexError, ValueError) as error:
                reason = f"the answer is not what was asked for: {self._clean(error)}"
            except _Retry as error:
                reason, wanted = str(error), error.seconds
            except _Refused as error:
                return Reply(Unanswered(f"{self.address}: {error}"), seconds)
            else:
                self._failed_in_a_row = 0
                return Reply(found, seconds)
            if attempt + 1 < tries:
                self._wait(attempt, wanted)
        self._failed_in_a_row += 1
        times = "once" if tries == 1 else f"{tries} times"
        return Reply(Unanswered(f"{self.address}: {reason}; tried {times}"), seconds)

    def each(self, ask: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        """`ask` of every item, as many at once as may be in flight; results in order."""
        if len(items) < 2:
            return [ask(item) for item in items]
        with ThreadPoolExecutor(min(len(items), self._concurrency), thread_name_prefix="requests") as pool:
            return list(pool.map(ask, items))

    def check(self) -> None:
        """Ask for the list of models, once: whether somebody answers, and takes the key.

        Raises:
            UserError: when nobody does, or the key is refused. A server without such a list is fine.
        """
        try:
            answer = self._http.get(f"{self._url}/models", timeout=min(CONNECT_SECONDS, self._timeout))
        except httpx.HTTPError as error:
            raise UserError(
                f"the endpoint {self.address} does not answer: {self._clean(error)}; start it, or mend base_url"
            ) from None
        if answer.status_code in (401, 403):
            raise UserError(self._refused(answer.status_code, answer.text))

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _send(self, path: str, body: Mapping[str, Any]) -> tuple[Any, float]:
        """One request within the rate limit and the bound: its JSON, and the seconds it took."""
        with self._room:
            self._pace.wait(self._pause)
            if self._abandoned is not None and self._abandoned():
                raise Abandoned(f"{self.address} was not asked: nobody is left to store the answer")
            started = time.monotonic()
            try:
                with self._http.stream("POST", f"{self._url}/{path}", json=dict(body)) as answer:
                    content = bytearray()
                    for part in answer.iter_bytes():
                        content += part
                        if time.monotonic() - started > self._timeout:
                            raise _Retry(f"no whole answer within {self._timeout:g} s")
                        if len(content) > LARGEST_ANSWER_BYTES:
                            raise _Refused(f"an answer of more than {LARGEST_ANSWER_BYTES // 1024**2} MB")
            except httpx.TimeoutException:
                raise _Retry(f"no answer within {self._timeout:g} s") from None
            except httpx.HTTPError as error:
                raise _Retry(self._clean(error)) from None
            seconds = time.monotonic() - started
        return self._judged(answer, bytes(content)), seconds

    def _judged(self, answer: httpx.Response, content: bytes) -> Any:
        """The JSON of a good answer; what else came is sorted into retry, refusal and the user's mistakes."""
        status = answer.status_code
        if status in USERS:
            raise UserError(self._refused(status, content.decode(errors="replace")))
        if status == 429 or status == 408 or status >= 500:
            seconds = retry_after(answer.headers.get("retry-after"))
            if status == 429 and seconds:
                self._pace.rest(min(seconds, LONGEST_PAUSE_SECONDS))
            raise _Retry(f"status {status}", seconds)
        if status >= 400:
            raise _Refused(f"status {status}: {self._said(content.decode(errors='replace'))}")
        try:
            return json.loads(content)
        except ValueError:
            raise Broken(f"{len(content)} bytes that are no JSON") from None

    def _wait(self, attempt: int, wanted: float | None) -> None:
        """Pause before the next try: as long as the server wants, else twice as long each time, with jitter."""
        longest = min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)
        own = longest * (0.5 + self._random.random() / 2)
        self._pause(own if wanted is None else min(max(wanted, 0.0), LONGEST_PAUSE_SECONDS) + own / 10)

    def _refused(self, status: int, text: str) -> str:
        said = self._said(text)
        where = f"the endpoint {self.address} answers {status}" + (f" ({said})" if said else "")
        if status in (401, 403):
            named = f"the key that api_key names, {self._key_name}," if self._key_name else "no api_key is named: a key"
            return f"{where}; {named} is needed and must be valid"
        if status < 400:
            return f"{where}; give the address it leads to as base_url"
        return f"{where}; is base_url right (it ends in /v1 as a rule), and does the model {self.model!r} exist there?"

    def _said(self, text: str) -> str:
        """The message in a server's error, on one line."""
        try:
            found = json.loads(text)
            found = found.get("error", found) if isinstance(found, dict) else found
            found = found.get("message", found) if isinstance(found, dict) else found
        except ValueError:
            found = text
        return self._clean(found)

    def _clean(self, said: object) -> str:
        """A text on one line, short, and without the key."""
        text = str(said) or type(said).__name__
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:200]


class _Refused(Exception):
    """The server does not take this very request; another one may be fine."""


class Pace:
    """Requests at even intervals, over all threads.

    Args:
        per_minute: None for no limit.
        clock: monotonic seconds.
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self, pause: Callable[[float], None]) -> None:
        """Wait for one's turn."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._interval if self._interval else self._next
        if turn > now:
            pause(turn - now)

    def rest(self, seconds: float) -> None:
        """Nobody's turn comes before so many seconds have passed: the server said so."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


def read_embeddings(count: int) -> Callable[[Any], tuple[list[list[float]], int]]:
    """Reads an answer of `embeddings`: the vectors in the order of the texts, and the tokens of all of them.

    Args:
        count: texts that were sent.
    """

    def read(answer: Any) -> tuple[list[list[float]], int]:
        rows = sorted(answer["data"], key=lambda row: int(row["index"]))
        vectors = [[float(number) for number in row["embedding"]] for row in rows]
        if [int(row["index"]) for row in rows] != list(range(count)):
            raise Broken(f"{len(rows)} vectors for {count} texts")
        if len({len(vector) for vector in vectors}) != 1 or not vectors[0]:
            raise Broken("vectors of different lengths")
        if not all(math.isfinite(number) for vector in vectors for number in vector):
            raise Broken("a vector with NaN")
        return vectors, int((answer.get("usage") or {}).get("total_tokens") or 0)

    return read


def read_key(name: str | None, services: Services) -> str | None:
    """The key behind a name; None where none is named.

    Raises:
        UserError: when it is not there.
    """
    if name is None:
        return None
    try:
        if services.secret is None:
            raise KeyError(name)
        key = services.secret(name)
    except KeyError:
        raise UserError(
            f"api_key: {name} is not in the environment of trials; add {name}: ${{{name}}} to env"
        ) from None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise UserError(f"api_key: what {name} holds can't be a key: it is empty, or has characters that none has")
    return key


def public_address(base_url: str) -> str:
    """An address without user, password, query and fragment: what may stand in messages and in the memo's keys."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme, f"{host}:{parts.port}" if parts.port else host, parts.path.rstrip("/"), "", ""))


def retry_after(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which has seconds or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
