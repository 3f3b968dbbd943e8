"""Questions to an OpenAI-compatible endpoint: patient with what passes, plain about the rest.

Asked again: a time-out, a connection that fails, HTTP 408, 429 and 5xx, a reply that is not whole.
The pause doubles each time, is shortened at random so that workers part, and is at least what
Retry-After says. Any other status is the user's to mend and stops. The key is sent in the
Authorization header alone: redirects are not followed, and it is cut out of every text that comes
back.
"""

import http.client
import json
import random
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from queue import Empty, SimpleQueue
from threading import Event, Thread
from urllib.parse import urlsplit

from tqdm import tqdm

from data.chat import Message

ATTEMPTS = 8
FIRST_PAUSE = 1.0  # seconds; doubled at each attempt
LONGEST_PAUSE = 60.0  # seconds, of our own
LONGEST_WAIT = 600.0  # seconds, of Retry-After; one that asks for more ends the run
REPLY_BYTES = 2**24  # of a reply, at most
SHOWN = 300  # characters of a reply in an error message


@dataclass(frozen=True)
class Endpoint:
    url: str  # up to /v1
    name: str  # of its model
    temperature: float | None  # None leaves it to the endpoint
    max_tokens: int | None  # of a reply; None leaves it to the endpoint
    timeout: float  # seconds without a byte
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Reply:
    text: str
    model: str  # as the endpoint names it
    finish_reason: str | None


class Stopped(Exception):
    """Another question has failed for good: this one is not asked any more."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following it would carry the key to another place."""

    def redirect_request(self, *_: object) -> None:
        return None


OPENER = urllib.request.build_opener(NoRedirects)


@dataclass(frozen=True)
class Failure:
    """Why an attempt gave no reply, and the least number of seconds until the next."""

    reason: str
    wait: float = 0.0


def check_url(url: str) -> None:
    """ValueError, which does not show a url that may hold a password."""
    plain = url.isascii() and url.isprintable() and " " not in url
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").encode("idna"), parts.port  # both raise where they are bad
    except ValueError:
        plain = False
    if not plain or parts.scheme not in ("http", "https") or not host:
        raise ValueError("--judge_url expects http://HOST:PORT/v1 or https://HOST/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "--judge_url expects no user, password or query in it; a key goes into the environment "
            "variable that --judge_key_variable names"
        )


def check_key(key: str, variable: str) -> str:
    """The key without the white space around it; a ValueError does not show it."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{variable} expects a key of printable ASCII characters")
    return key


def ask_many(
    endpoint: Endpoint,
    questions: Sequence[Sequence[Message]],
    own: Sequence[int],
    workers: int,
    show: bool = True,
) -> Iterator[tuple[int, Reply]]:
    """(index, reply) of each of `own`, as they come to several threads; show: with a bar.

    Where one question fails for good no other is begun; those under way still give their replies,
    then its error is raised.
    """
    todo, done, stop = SimpleQueue(), SimpleQueue(), Event()
    for index in own:
        todo.put(index)
    running, error = min(workers, len(own)), None
    for _ in range(running):
        work = Thread(target=ask_some, args=(endpoint, questions, todo, done, stop), daemon=True)
        work.start()  # a daemon: Ctrl-C does not wait for its reply
    with tqdm(total=len(own), desc="judgements", disable=not (own and show)) as bar:
        try:
            while running:
                index, result = done.get()
                if isinstance(result, Reply):
                    bar.update()
                    yield index, result
                elif isinstance(result, Failure):
                    bar.set_postfix_str(f"asked again: {result.reason[:60]}")
                elif isinstance(result, Exception):
                    error = error or result
                else:
                    running -= 1
        finally:
            stop.set()
    if error is not None:
        raise error


def ask_some(
    endpoint: Endpoint,
    questions: Sequence[Sequence[Message]],
    todo: SimpleQueue,
    done: SimpleQueue,
    stop: Event,
) -> None:
    """One worker: (index, Reply) into `done` for indices of `todo`, then (None, None).

    Failures on the way, and the error that ends it, go there too, with None for an index.
    """
    try:
        while not stop.is_set():
            index, note = todo.get_nowait(), lambda failure: done.put((None, failure))
            done.put((index, ask_endpoint(endpoint, questions[index], stop, note)))
    except (Empty, Stopped):
        pass
    except Exception as error:  # raised in the thread that waits for us
        stop.set()
        done.put((None, error))
    done.put((None, None))


def ask_endpoint(
    endpoint: Endpoint,
    messages: Sequence[Message],
    stop: Event,
    on_failure: Callable[[Failure], object],
) -> Reply:
    """The reply to a dialogue, asked for up to ATTEMPTS times.

    stop: when it is set, a pause ends with `Stopped`; on_failure: called for each attempt without a
    reply. Raises ValueError for a status that asking again does not mend, ConnectionError where all
    attempts have failed.
    """
    for attempt in range(ATTEMPTS):
        result = try_once(endpoint, messages)
        if isinstance(result, Reply):
            return result
        on_failure(result)
        if result.wait > LONGEST_WAIT:
            raise ConnectionError(
                f"--judge_url {endpoint.url}: {result.reason}; come back in {result.wait:.0f} s"
            )
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1)
        if attempt < ATTEMPTS - 1 and stop.wait(max(pause, result.wait)):
            raise Stopped
    raise ConnectionError(
        f"--judge_url {endpoint.url}: no reply in {ATTEMPTS} attempts, the last: {result.reason}"
    )


def try_once(endpoint: Endpoint, messages: Sequence[Message]) -> Reply | Failure:
    try:
        with OPENER.open(request(endpoint, messages), timeout=endpoint.timeout) as response:
            body = response.read(REPLY_BYTES + 1)
    except urllib.error.HTTPError as error:
        return refused(endpoint, error)
    except (OSError, http.client.HTTPException) as error:  # a time-out is an OSError
        reason = getattr(error, "reason", None) or error
        return Failure(redact(f"{type(error).__name__}: {reason}", endpoint))
    try:
        return parse_reply(body, endpoint)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return Failure(f"expected a chat completion, got {excerpt(body, endpoint)}")


def request(endpoint: Endpoint, messages: Sequence[Message]) -> urllib.request.Request:
    fields = {"model": endpoint.name, "messages": list(messages)}
    if endpoint.temperature is not None:
        fields["temperature"] = endpoint.temperature
    if endpoint.max_tokens is not None:
        fields["max_tokens"] = endpoint.max_tokens
    headers = {"Content-Type": "application/json", "User-Agent": "eval.judge"}
    if endpoint.key is not None:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    url = endpoint.url.rstrip("/") + "/chat/completions"
    return urllib.request.Request(url, json.dumps(fields).encode(), headers)


def parse_reply(body: bytes, endpoint: Endpoint) -> Reply:
    """Raises what Python does for what is no chat completion."""
    fields = json.loads(body)
    choice = fields["choices"][0]
    text, model = choice["message"].get("content"), fields.get("model")
    if not isinstance(text, str | None) or not isinstance(model, str | None):
        raise TypeError("expected texts")
    text = (text or "").encode(errors="replace").decode()  # null: nothing said, a verdict unknown
    reason = choice.get("finish_reason")
    reason = None if reason is None else redact(str(reason), endpoint)
    return Reply(redact(text, endpoint), redact(model or endpoint.name, endpoint), reason)


def refused(endpoint: Endpoint, error: urllib.error.HTTPError) -> Failure:
    """ValueError unless asking again may help."""
    try:
        body = error.read(REPLY_BYTES)
    except (OSError, http.client.HTTPException):
        body = b""
    reason = f"HTTP {error.code}: {excerpt(body, endpoint)}"
    if error.code in (408, 429) or error.code >= 500:
        return Failure(reason, retry_after(error.headers.get("Retry-After")))
    place = redact(error.headers.get("Location") or "", endpoint)
    hints = {401: "; is the key right?", 403: "; is the key right?", 404: "; are --judge_url and "
             "--judge_name right?"}  # fmt: skip
    hint = f"; it redirects to {place}" if 300 <= error.code < 400 else hints.get(error.code, "")
    raise ValueError(f"--judge_url {endpoint.url}: {reason}{hint}")


def retry_after(header: str | None) -> float:
    """Seconds to wait, from a number of seconds or a date; 0 where there is neither."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        pass
    try:
        return max(
            0.0, (parsedate_to_datetime(header) - datetime.now(timezone.utc)).total_seconds()
        )
    except (ValueError, TypeError):
        return 0.0


def excerpt(body: bytes, endpoint: Endpoint) -> str:
    """The beginning of a reply on one line; the key goes before anything is cut."""
    text = " ".join(redact(body.decode(errors="replace"), endpoint).split())
    return text if len(text) <= SHOWN else text[:SHOWN] + " ..."


def redact(text: str, endpoint: Endpoint) -> str:
    return text if endpoint.key is None else text.replace(endpoint.key, "[key]")
