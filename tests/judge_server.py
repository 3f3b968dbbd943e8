"""A scripted judge on loopback: an OpenAI-compatible endpoint that does what a test tells it to.

    with serve(lambda messages, attempt: "[[A>B]]") as server: ...  # ask server.url

The script gets the messages of a request and how often this question has been asked before; it
gives back a text (a whole reply), or an `Answer` with another status, headers or body.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "scripted-judge-1"  # what it calls itself, whatever it was asked for


@dataclass(frozen=True)
class Answer:
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Script = Callable[[list[dict], int], "str | Answer"]


@dataclass
class Server:
    url: str
    requests: list[tuple[str, dict[str, str], dict]] = field(default_factory=list)
    answered: Counter = field(default_factory=Counter)  # user messages with a whole reply
    asked: Counter = field(default_factory=Counter)  # user messages


def completion(text: str | None, finish_reason: str = "stop") -> Answer:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return Answer(json.dumps({"model": MODEL, "choices": [choice]}).encode())


@contextmanager
def serve(script: Script) -> Iterator[Server]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = fields["messages"][-1]["content"]
            with lock:
                attempt = server.asked[question]
                server.asked[question] += 1
                server.requests.append((self.path, dict(self.headers), fields))
            answer = script(fields["messages"], attempt)
            said = isinstance(answer, str)
            answer = completion(answer) if said else answer
            try:
                self.send_response(answer.status)
                headers = {"Content-Length": str(len(answer.body))} | answer.headers
                if "Transfer-Encoding" in headers:
                    del headers["Content-Length"]
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)
                self.wfile.flush()
            except OSError:  # whoever asked is gone
                return
            if said:
                with lock:
                    server.answered[question] += 1

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
        http.daemon_threads, http.block_on_close = True, False
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            http.shutdown()
