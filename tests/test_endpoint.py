"""eval/endpoint.py against a scripted server on loopback: what is sent, what is asked again.

Pauses are recorded, not waited for.
python -m pytest tests/test_endpoint.py
"""

import json
import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from eval import endpoint as module
from eval.endpoint import (
    ATTEMPTS,
    Endpoint,
    Failure,
    Reply,
    Stopped,
    ask_endpoint,
    ask_many,
    check_key,
    check_url,
    retry_after,
    try_once,
)
from tests.judge_server import MODEL, Answer, completion, serve

KEY = "sk-secret-0123456789"
QUESTION = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Which?"}]


class Pauses:
    """In the place of the event that ends pauses: it notes them."""

    def __init__(self, stopped: bool = False) -> None:
        self.seconds, self.stopped = [], stopped

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return self.stopped


@pytest.fixture(autouse=True)
def plain(monkeypatch) -> None:
    """No proxy on the way, and pauses at their longest."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)


def at(url: str, **changes) -> Endpoint:
    return replace(Endpoint(url, "judge-x", 0.0, 77, 10.0, KEY), **changes)


def ask(endpoint: Endpoint) -> tuple[Reply, list[Failure], list[float]]:
    """The reply, the failures before it, and the pauses."""
    pauses, failures = Pauses(), []
    reply = ask_endpoint(endpoint, QUESTION, pauses, failures.append)
    return reply, failures, pauses.seconds


def after(*answers: Answer, text: str = "at last"):
    """A script: these answers, then a text."""
    return lambda _, attempt: answers[attempt] if attempt < len(answers) else text


# ------------------------------------------------------------------------------------------------
# what goes there and back


def test_a_question_and_its_reply():
    with serve(lambda *_: "It is [[A>B]] é") as server:
        reply, failures, pauses = ask(at(server.url))
        ask(at(server.url + "/", temperature=None, max_tokens=None, key=None))
    assert reply == Reply("It is [[A>B]] é", MODEL, "stop")
    assert failures == pauses == []
    (path, headers, fields), (other_path, other_headers, fewer) = server.requests
    assert path == other_path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}" and "Authorization" not in other_headers
    assert headers["Content-Type"] == "application/json"
    assert fewer == {"model": "judge-x", "messages": QUESTION}
    assert fields == fewer | {"temperature": 0.0, "max_tokens": 77}


def test_nothing_said_is_an_empty_text():
    """What a model leaves that has spent all its tokens on thoughts, or refuses."""
    with serve(lambda *_: completion(None, "length")) as server:
        assert ask(at(server.url))[0] == Reply("", MODEL, "length")


def test_half_a_surrogate_pair_can_be_written_down():
    with serve(lambda *_: "x\ud800") as server:
        assert ask(at(server.url))[0].text == "x?"


def test_the_key_is_cut_out_of_what_comes_back():
    with serve(lambda *_: f"You sent {KEY}!") as server:
        assert ask(at(server.url))[0].text == "You sent [key]!"
    assert KEY not in repr(at("http://x/v1"))
    choice = {"message": {"content": "x"}, "finish_reason": f"no {KEY}"}
    body = json.dumps({"model": f"for {KEY}", "choices": [choice]}).encode()
    with serve(lambda *_: Answer(body)) as server:
        assert ask(at(server.url))[0] == Reply("x", "for [key]", "no [key]")


def test_the_key_is_cut_out_of_what_the_library_says(monkeypatch):
    def fail(*_, **__):
        raise OSError(f"no route for {KEY}")

    monkeypatch.setattr(module.OPENER, "open", fail)
    assert try_once(at("http://x/v1"), QUESTION) == Failure("OSError: no route for [key]")


def test_a_judge_that_does_not_say_its_name_has_the_one_it_was_asked_by():
    body = b'{"choices": [{"message": {"content": "x"}}]}'
    with serve(lambda *_: Answer(body)) as server:
        assert ask(at(server.url))[0] == Reply("x", "judge-x", None)


# ------------------------------------------------------------------------------------------------
# asked again


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(b"slow down", 429), "HTTP 429: slow down"),
        (Answer(b"", 500), "HTTP 500: "),
        (Answer(b"<html>\n busy </html>", 503), "HTTP 503: <html> busy </html>"),
        (Answer(b"", 408), "HTTP 408: "),
        (Answer(b"{"), "expected a chat completion, got {"),
        (Answer(b"[" * 100_000), "expected a chat completion, got [[["),
        (Answer(b"\xff\xfe"), "expected a chat completion, got \ufffd\ufffd"),
        (Answer(b"[]"), "expected a chat completion, got []"),
        (Answer(b'{"choices": []}'), "expected a chat completion, got"),
        (Answer(b'{"choices": [{"message": null}]}'), "expected a chat completion, got"),
        (Answer(b'{"choices": [{"message": {"content": 3}}]}'), "expected a chat completion"),
        (Answer(b'{"choices"', headers={"Content-Length": "99"}), "expected a chat completion"),
        (Answer(b"9\r\n{", headers={"Transfer-Encoding": "chunked"}), "IncompleteRead: "),
    ],
)
def test_what_passes_is_asked_again(answer, reason):
    with serve(after(answer)) as server:
        reply, failures, pauses = ask(at(server.url))
    assert reply.text == "at last" and len(server.requests) == 2
    assert len(failures) == 1 and failures[0].reason.startswith(reason)
    assert pauses == [1.0]


def test_a_time_out_is_asked_again():
    held = threading.Event()

    def script(_, attempt: int) -> str:
        if attempt == 0:
            held.wait(10)
        return "at last"

    with serve(script) as server:
        reply, failures, _ = ask(at(server.url, timeout=0.2))
        held.set()
    assert reply.text == "at last" and "timed out" in failures[0].reason


def test_pauses_double_up_to_a_minute_and_then_it_gives_up():
    with serve(lambda *_: Answer(b"busy", 500)) as server:
        pauses, failures = Pauses(), []
        with pytest.raises(ConnectionError, match=r"no reply in 8 attempts, .* HTTP 500: busy"):
            ask_endpoint(at(server.url), QUESTION, pauses, failures.append)
    assert len(server.requests) == len(failures) == ATTEMPTS
    assert pauses.seconds == [1, 2, 4, 8, 16, 32, 60]


def test_nobody_there():
    with serve(lambda *_: "") as server:
        url = server.url
    with pytest.raises(ConnectionError, match=r"no reply in 8 attempts, .* Connection refused"):
        ask(at(url))


def test_retry_after_is_the_least_pause():
    answers = [Answer(b"", 429, {"Retry-After": seconds}) for seconds in ("7", "0.5", "junk")]
    with serve(after(*answers)) as server:
        assert ask(at(server.url))[2] == [7, 2, 4]


def test_a_retry_after_of_hours_ends_it_at_once():
    with serve(lambda *_: Answer(b"quota", 429, {"Retry-After": "7200"})) as server:
        with pytest.raises(ConnectionError, match=r"HTTP 429: quota; come back in 7200 s"):
            ask(at(server.url))
    assert len(server.requests) == 1


def test_a_retry_after_of_ten_minutes_is_waited_for():
    with serve(after(Answer(b"", 429, {"Retry-After": "600"}))) as server:
        assert ask(at(server.url))[2] == [600]


def test_retry_after_may_be_a_date():
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=90), usegmt=True)
    assert 60 < retry_after(date) <= 90
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    assert [retry_after(text) for text in (past, "-3", "nan", "", None, "x")] == [0] * 6


def test_a_pause_ends_where_another_question_has_failed():
    with serve(lambda *_: Answer(b"", 500)) as server:
        with pytest.raises(Stopped):
            ask_endpoint(at(server.url), QUESTION, Pauses(stopped=True), lambda _: None)
    assert len(server.requests) == 1


# ------------------------------------------------------------------------------------------------
# not asked again


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(b"no such key", 401), "HTTP 401: no such key; is the key right"),
        (Answer(b"not yours", 403), "HTTP 403: not yours; is the key right"),
        (Answer(b"no model", 404), "HTTP 404: no model; are --judge_url and --judge_name right"),
        (Answer(b"bad temperature", 400), "HTTP 400: bad temperature$"),
    ],
)
def test_a_refusal_stops(answer, message):
    with serve(lambda *_: answer) as server:
        with pytest.raises(ValueError, match=f"--judge_url {server.url}: {message}"):
            ask(at(server.url))
    assert len(server.requests) == 1


def test_no_part_of_the_key_is_shown_in_a_refusal():
    """The excerpt of 300 characters would end within it."""
    body = ("x" * 290 + KEY + "y" * 50).encode()
    with serve(lambda *_: Answer(body, 400)) as server:
        with pytest.raises(ValueError, match=r"x\[key\]yyyyy \.\.\.$") as caught:
            ask(at(server.url))
    assert KEY[:4] not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status):
    """The request goes to the first server alone; the other would get the key."""
    with serve(lambda *_: "") as other:
        target = Answer(b"", status, {"Location": other.url + "/chat/completions"})
        with serve(lambda *_: target) as server:
            with pytest.raises(ValueError, match=f"HTTP {status}: ; it redirects to {other.url}"):
                ask(at(server.url))
    assert not other.requests


def test_a_redirect_does_not_show_the_key():
    with serve(lambda *_: Answer(b"", 302, {"Location": f"/login?key={KEY}"})) as server:
        with pytest.raises(ValueError, match=r"it redirects to /login\?key=\[key\]$"):
            ask(at(server.url))


@pytest.mark.parametrize(
    "url",
    [
        "api.openai.com/v1", "ftp://host/v1", "http:///v1", "http://ho st/v1", "http://hôst/v1",
        "http://user:secret@host/v1", "http://secret@host/v1", "http://host/v1?key=secret",
        "http://host/v1#secret", "http://127.0.0.1:secret/v1", "http://host:70000/v1",
        "http://secret..host/v1", "http://[::1/v1", f"http://{'a' * 64}.b/v1",
    ],
)  # fmt: skip
def test_bad_addresses_are_not_repeated(url):
    with pytest.raises(ValueError, match="--judge_url expects") as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "https://a.b./v1", "http://[::1]:8/v1"]
)
def test_good_addresses(url):
    check_url(url)


def test_keys():
    assert check_key(f" {KEY}\n", "K") == KEY
    for key in ("", " ", "secret\nsecret", "secret secret", "sécret"):
        with pytest.raises(ValueError, match=r"^K expects a key of printable") as caught:
            check_key(key, "K")
        assert "cret" not in str(caught.value)


# ------------------------------------------------------------------------------------------------
# many questions


def questions_of(count: int) -> list[list[dict]]:
    return [[{"role": "user", "content": str(i)}] for i in range(count)]


def test_many_questions_by_several_workers():
    """Three requests at a time: each waits for two others, and the last two are let go."""
    together, lock, most, now = threading.Barrier(3), threading.Lock(), [0], [0]

    def script(messages: list[dict], _) -> str:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        if int(messages[0]["content"]) < 9:
            together.wait(10)
        with lock:
            now[0] -= 1
        return messages[0]["content"]

    with serve(script) as server:
        own = [*range(9), 10, 11]
        got = dict(ask_many(at(server.url), questions_of(12), own, 3, show=False))
    assert {i: reply.text for i, reply in got.items()} == {i: str(i) for i in own}
    assert most[0] == 3


def test_no_question_no_request():
    with serve(lambda *_: "") as server:
        assert list(ask_many(at(server.url), questions_of(3), [], 4)) == []
    assert not server.requests


def test_of_several_failures_the_first_is_told(monkeypatch):
    def fail(endpoint, questions, todo, done, stop) -> None:
        for result in (ValueError("first"), ValueError("second"), None):
            done.put((None, result))

    monkeypatch.setattr(module, "ask_some", fail)
    with pytest.raises(ValueError, match="first"):
        list(ask_many(at("http://x/v1"), questions_of(2), [0, 1], 1, show=False))


def test_a_failure_waits_for_what_is_under_way_and_begins_no_more(monkeypatch):
    """Question 1 fails while 0 is open: 0 still gives its reply, 2 to 9 are not asked."""
    begun, stopped = threading.Event(), threading.Event()

    class Stop(threading.Event):
        def set(self) -> None:
            super().set()
            stopped.set()

    def script(messages: list[dict], _) -> str | Answer:
        if messages[0]["content"] == "1":
            begun.wait(10)
            return Answer(b"no", 400)
        begun.set()
        stopped.wait(10)
        return "late"

    monkeypatch.setattr(module, "Event", Stop)
    with serve(script) as server:
        got = []
        with pytest.raises(ValueError, match="HTTP 400: no"):
            got.extend(ask_many(at(server.url), questions_of(10), range(10), 2, show=False))
    assert [(i, reply.text) for i, reply in got] == [(0, "late")]
    assert server.asked == {"0": 1, "1": 1}
