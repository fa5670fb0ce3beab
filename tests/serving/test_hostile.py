"""What strangers, mistakes and bad luck send: refused in one line, cheaply, and nobody else notices."""

import json
import select
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serving.conftest import TOKEN, eventually

PROMPT = "what do you think of the new harbour ?"
GOOD = {"prompt": PROMPT, "response": "hey there .", "communities": ["Brevia"]}


@pytest.fixture(scope="module")
def strict_url(deploy, adapter_run) -> str:
    """Small limits, so that they are reached quickly."""
    limits = {"max_body_bytes": 50_000, "max_responses": 20, "max_text_chars": 4_000, "max_messages": 4}
    return deploy("strict", run_dir=adapter_run.run_dir, body_timeout_s=1, deadline_s=20, max_queued=64, **limits)


def refusal(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    (error,) = answer.json().values()
    assert "\n" not in error and len(error) < 400
    return error


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"communities": ["Breviaa"]}, 404, "communities: 'Breviaa' is not served; did you mean Brevia?"),
        (
            {"communities": ["../../etc/passwd"]},
            404,
            "communities: '../../etc/passwd' is not served; GET /v1/communities",
        ),
        ({"communities": {"Brevia": 0.7}}, 422, "communities: the weights sum to 0.7; they must sum to 1"),
        ({"communities": {"Brevia": 1.00002}}, 422, "communities: the weights sum to 1.00002; they must sum to 1"),
        ({f"field {number}": 1 for number in range(70)}, 422, "body: 73 fields; there are prompt, messages"),
        ({"communities": {str(number): 0 for number in range(1100)}}, 422, "communities: 1100 weights; give at most"),
        ({"communities": {"Brevia": 1.5, "Atlas": -0.5}}, 422, "communities: the weight of 'Atlas' is -0.5"),
        ({"communities": {"Brevia": float("nan")}}, 422, "communities.Brevia: Input should be a finite number"),
        ({"prompt": None, "messages": ["hi"]}, 422, "messages.0: Input should be a valid dictionary"),
        ({"communities": []}, 422, "communities: List should have at least 1 item"),
        ({"communities": {}}, 422, "communities: Dictionary should have at least 1 item"),
        ({"communities": ["x"] * 1100}, 422, "communities: List should have at most 1024 items"),
        ({"response": None, "responses": ["x"] * 21}, 422, "responses: 21, at most 20; send several requests"),
        ({"response": None, "responses": []}, 422, "responses: List should have at least 1 item"),
        ({"responses": ["x"]}, 422, "give either response or responses, one of the two"),
        ({"messages": [{"role": "user", "content": "x"}]}, 422, "give either prompt or messages, one of the two"),
        ({"response": "x" * 4001}, 422, "responses[0]: 4001 characters, at most 4000"),
        ({"response": "   "}, 422, "response: is blank; give some text"),
        ({"response": "bell \x07"}, 422, "response: has the control character U+0007 at character 5; remove it"),
        ({"response": "null \x00"}, 422, "response: has the control character U+0000"),
        ({"response": 7}, 422, "response: Input should be a valid string"),
        ({"temprature": 2}, 422, "temprature: Extra inputs are not permitted"),
        ({"prompt": None, "messages": [{"role": "tool", "content": "x"}]}, 422, "messages.0.role: Input should be"),
        ({"prompt": None, "messages": [{"role": "user", "content": "x"}] * 5}, 422, "messages: 5, at most 4"),
    ],
)
def test_bad_values_are_refused_with_place_value_and_remedy(strict_url, ask, change, status, message):
    body = json.dumps({key: value for key, value in (GOOD | change).items() if value is not None})
    answer = ask.post(f"{strict_url}/v1/score", content=body, headers={"Content-Type": "application/json"})
    assert message in refusal(answer, status)


def test_a_small_body_that_unfolds_is_refused_at_once(strict_url, ask):
    """A thousand messages for each of a thousand responses."""
    messages = [{"role": "user", "content": "x"}] * 1000
    start = time.perf_counter()
    answer = ask.post(f"{strict_url}/v1/score", json={"messages": messages, "responses": ["y"] * 1000})
    assert "responses: 1000, at most 20" in refusal(answer, 422)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"prompt": "a", "response": "\\ud800"}', 422),
        (b'{"prompt": "a", "response": "\xff\xfe"}', 400),
        (b"[" * 20_000, 422),
        (b"{", 422),
        (b"", 422),
        (b'"text"', 422),
    ],
)
def test_bodies_that_are_no_request(strict_url, ask, body, status):
    answer = ask.post(f"{strict_url}/v1/score", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (status, 400)
    assert set(answer.json()) == {"error"}


def test_a_body_that_is_not_said_to_be_json(strict_url, ask):
    answer = ask.post(
        f"{strict_url}/v1/score", content=b'{"prompt": "a", "response": "b"}', headers={"Content-Type": "text/plain"}
    )
    assert "body: not a JSON object; send one, with 'Content-Type: application/json'" in refusal(answer, 422)


def test_load_balancers_may_ask_for_heads_alone(strict_url):
    for path in ("/", "/healthz", "/readyz"):
        answer = httpx.head(f"{strict_url}{path}")
        assert (answer.status_code, answer.content) == (200, b"")


def test_a_hundred_megabytes_are_refused_before_they_are_read(strict_url, ask):
    def endless():
        for _ in range(100):
            yield b" " * 1_000_000

    start = time.perf_counter()
    announced = ask.post(f"{strict_url}/v1/score", content=b" " * 100_000_000)
    assert "body: more than 50000 bytes" in refusal(announced, 413)
    try:
        chunked = ask.post(f"{strict_url}/v1/score", content=endless())
        refusal(chunked, 413)
    except httpx.WriteError:
        pass  # the connection was closed under the sender
    assert time.perf_counter() - start < 10
    assert ask.post(f"{strict_url}/v1/score", json=GOOD).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong-token-wrong-token",
        f"Bearer {TOKEN}x",
        TOKEN,
        "Basic !!!",
        "Basic eDp5",
    ],
)
def test_without_a_known_token_nothing_is_told(strict_url, header):
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/communities", "/metrics", "/v1/unknown"):
        refusal(httpx.get(f"{strict_url}{path}", headers=headers), 401)
    refusal(httpx.post(f"{strict_url}/v1/score", content=b"{", headers=headers), 401)
    for path in ("", "/docs", "/healthz"):  # what anybody may read, nobody may send to
        refusal(httpx.post(f"{strict_url}{path or '/'}", content=b"{", headers=headers), 401)


def test_a_token_that_is_no_text_is_refused(strict_url):
    for value in (b"Basic \xe9", b"Bearer \xff\xfe", b"Basic /////w=="):
        refusal(httpx.get(f"{strict_url}/v1/communities", headers={b"Authorization": value}), 401)


def test_a_routing_name_that_is_no_text_costs_nobody_an_answer(strict_url, ask):
    for value in (b"\xff", b"x" * 10_000, b"0.0001", b"?1"):
        for name in (b"serve_multiplexed_model_id", b"x-request-timeout-seconds", b"x-request-disconnect-disabled"):
            assert ask.post(f"{strict_url}/v1/score", json=GOOD, headers={name: value}).status_code == 200


def test_a_web_socket_is_refused(strict_url):
    parts = urlsplit(strict_url)
    asked = (
        f"GET {parts.path}/v1/score HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=10) as one:
        one.sendall(asked.encode())
        assert one.recv(4096).startswith(b"HTTP/1.1 403 ")


def test_ten_thousand_responses_are_refused_before_they_are_looked_at(service_url, ask):
    start = time.perf_counter()
    answer = ask.post(f"{service_url}/v1/score", json={"prompt": PROMPT, "responses": ["x"] * 10_000})
    assert "responses: List should have at most 1024 items" in refusal(answer, 422)
    wrong = ask.post(f"{service_url}/v1/score", json={"prompt": PROMPT, "responses": [1] * 500_000})
    refusal(wrong, 422)
    assert time.perf_counter() - start < 5


def test_a_long_conversation_counts_once_per_response(service_url, ask):
    messages = [{"role": "user", "content": "word " * 10_000}]
    answer = ask.post(f"{service_url}/v1/score", json={"messages": messages, "responses": ["x y z"] * 100})
    assert "5000500 characters with their conversations, at most 1000000" in refusal(answer, 422)


def test_what_could_never_be_queued_says_so(deploy, adapter_run, ask):
    url = deploy("narrow", run_dir=adapter_run.run_dir, max_queued=8)
    body = {"prompt": PROMPT, "responses": [f"text {place}" for place in range(3)]}
    assert "responses x communities: 9, at most 8" in refusal(ask.post(f"{url}/v1/score", json=body), 422)
    assert ask.post(f"{url}/v1/score", json=body | {"communities": ["Brevia", "Atlas"]}).status_code == 200


def test_a_token_may_come_as_the_password_of_the_address(strict_url):
    parts = urlsplit(strict_url)
    url = f"http://x:{TOKEN}@{parts.netloc}{parts.path}/v1/rewards/Brevia/slime"
    body = {"prompt": PROMPT, "response": "hey there .", "label": None}
    assert isinstance(httpx.post(url, json=body).raise_for_status().json(), float)


def test_what_shows_nothing_needs_no_token(strict_url):
    for path in ("/", "/page.js", "/page.css", "/docs", "/openapi.json", "/healthz", "/readyz"):
        assert httpx.get(f"{strict_url}{path}").status_code == 200


def test_the_docs_load_nothing_from_elsewhere(strict_url):
    assert "https://" not in httpx.get(f"{strict_url}/docs").text.replace("https://fastapi.tiangolo.com", "")


def test_other_origins_are_told_nothing(strict_url, ask):
    answer = ask.get(f"{strict_url}/v1/communities", headers={"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_tokens_rotate_without_a_restart(deploy, adapter_run, tmp_path):
    file = tmp_path / "tokens.txt"
    old, new = "the-old-token-of-this-test", "the-new-token-of-this-test"
    file.write_text(f"{old}\n")
    url = deploy("rotating", run_dir=adapter_run.run_dir, tokens_file=str(file))

    def admits(token: str) -> bool:
        return httpx.get(f"{url}/v1/communities", headers={"Authorization": f"Bearer {token}"}).status_code == 200

    assert admits(old) and not admits(new)
    file.write_text(f"{old}\n{new}\n")
    eventually(lambda: admits(new))
    assert admits(old)
    file.write_text(f"# {old}\n{new}\n")
    eventually(lambda: not admits(old))
    assert admits(new)
    file.unlink()
    eventually(lambda: not admits(new))


def test_slow_senders_are_cut_off_and_hold_nobody_up(strict_url, ask):
    """Thirty connections that send a byte now and then: heads without end, bodies without end; and who shows no token is not
    waited for at all."""
    parts = urlsplit(strict_url)
    assert parts.hostname is not None
    head = f"POST {parts.path}/v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
    sockets = []
    for number in range(30):
        one = socket.create_connection((parts.hostname, parts.port or 80), timeout=10)
        one.sendall(head if number % 2 else head + b"Content-Length: 1000\r\n\r\n{")
        sockets.append(one)
    start = time.perf_counter()
    assert ask.post(f"{strict_url}/v1/score", json=GOOD).status_code == 200
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=10) as stranger:
        stranger.sendall(f"POST {parts.path}/healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
        assert b" 401 " in stranger.recv(4096).splitlines()[0]
    assert time.perf_counter() - start < 3
    for number, one in enumerate(sockets):  # half of them never ended their head
        answer = one.recv(4096)
        assert b" 408 " in answer.splitlines()[0]
        assert (b"head: not complete within 4 s" in answer) == bool(number % 2)
        one.close()


def test_a_head_that_dribbles_is_cut_off_on_a_connection_that_was_good_before(strict_url):
    """The second request's head: a byte every half second, so that something always comes."""
    parts = urlsplit(strict_url)
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=10) as one:
        one.sendall(f"GET {parts.path}/healthz HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        first = b""
        while b"alive" not in first:
            first += one.recv(4096)
        start, answer = time.perf_counter(), b""
        for byte in b"GET / HTTP/1.1\r\nX-Slow: 0123456789":
            one.sendall(bytes([byte]))
            if select.select([one], [], [], 0.5)[0]:
                answer = one.recv(4096)
                break
        assert b" 408 " in answer.splitlines()[0]
        assert 3 < time.perf_counter() - start < 8


def test_a_head_without_end_is_cut_off(strict_url):
    parts = urlsplit(strict_url)
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=10) as one:
        one.sendall(b"GET / HTTP/1.1\r\n")
        for number in range(100):
            one.sendall(b"X-%d: %s\r\n" % (number, b"a" * 2000))
            if select.select([one], [], [], 0.02)[0]:
                break
        assert b" 431 " in one.recv(4096).splitlines()[0]
        assert 32 <= number < 60


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 101,
        b"GET / HTTP/1.1\r\nX: %s\r\n" % (b"a" * 66_000),
        b"GET /%s" % (b"a" * 66_000),
    ],
)
def test_a_head_that_comes_at_once_is_counted_too(strict_url, head):
    """Fields by their number: frameworks look through all of them once for each."""
    parts = urlsplit(strict_url)
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=10) as one:
        one.sendall(head + b"\r\n")
        answer = one.recv(4096)
    assert b" 431 " in answer.splitlines()[0]
    assert b'{"error":"head: longer than 65536 bytes, or more than 100 fields"}' in answer


def test_a_hundred_fields_and_another_request_on_the_same_connection(strict_url):
    with httpx.Client() as client:
        own = len(client.build_request("GET", strict_url).headers.raw)
        for number in (100, 100, 101):
            answer = client.get(f"{strict_url}/healthz", headers=[("a", "b")] * (number - own))
            assert answer.status_code == (200 if number == 100 else 431)


def test_trailers_are_dropped(strict_url):
    parts = urlsplit(strict_url)
    head = f"POST {parts.path}/v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    body = json.dumps(GOOD).encode()
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=10) as one:
        one.sendall(head.encode() + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        one.sendall(b"%x\r\n%s\r\n0\r\n" % (len(body), body))
        for number in range(100):
            one.sendall(b"X-%d: %s\r\n" % (number, b"a" * 1000))
        one.sendall(b"\r\n")
        assert b" 200 " in one.recv(4096).splitlines()[0]


def test_a_body_that_dribbles_after_its_answer_is_cut_off(strict_url):
    parts = urlsplit(strict_url)
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=10) as one:
        one.sendall(f"POST {parts.path}/v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
        assert b" 401 " in one.recv(4096).splitlines()[0]
        start = time.perf_counter()
        while time.perf_counter() - start < 9:
            try:
                one.sendall(b"x")
            except OSError:
                break  # closed by the other side
            time.sleep(0.2)
        assert 3 < time.perf_counter() - start < 8


def test_a_connection_on_which_nothing_is_asked_is_closed(strict_url):
    parts = urlsplit(strict_url)
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=10) as one:
        assert one.recv(4096) == b""


def test_beyond_the_queue_requests_get_429_and_when_to_come_back(strict_url):
    """Sixty requests at once of twenty texts each, where sixty-four texts may wait."""
    import asyncio

    async def storm() -> list[httpx.Response]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(headers=headers, timeout=60, limits=httpx.Limits(max_connections=60)) as client:
            bodies = [
                {"prompt": PROMPT, "responses": [f"text {number} {place} " + "word " * 60 for place in range(20)]}
                for number in range(60)
            ]
            return await asyncio.gather(*(client.post(f"{strict_url}/v1/score", json=body) for body in bodies))

    answers = asyncio.run(storm())
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            assert "wait and 64 may; try again in" in answer.json()["error"]


def test_a_deadline_is_kept(strict_url, ask):
    body = {"prompt": PROMPT, "responses": [f"late {place} " + "word " * 80 for place in range(20)]}
    answer = ask.post(f"{strict_url}/v1/score", json=body, headers={"X-Deadline-S": "0.001"})
    assert "not answered within 0.001 s" in refusal(answer, 503)
    assert answer.headers["Retry-After"] == "1"
    assert "X-Deadline-S: 'soon' is no number" in refusal(
        ask.post(f"{strict_url}/v1/score", json=GOOD, headers={"X-Deadline-S": "soon"}), 400
    )
    assert ask.post(f"{strict_url}/v1/score", json=GOOD).status_code == 200
