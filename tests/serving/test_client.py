"""The client and the reward function against a server that misbehaves as told."""

import asyncio
import json
import pickle
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scpo_ray.client import MODEL_HEADER, TOKEN_VARIABLE, AsyncClient, Client, reward_function
from scpo_ray.errors import ScpoError, ServiceError

DROP = "drop"
HANG_S = 3.0


class Server(ThreadingHTTPServer):
    """Answers in the order of `replies`, the last one for ever: (status, headers, body), what makes one of a body, or DROP."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.replies = []
        self.received = []
        self.lock = threading.Lock()

    def take(self, path, headers, body):
        with self.lock:
            self.received.append((path, headers, body))
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return reply(body) if callable(reply) else reply

    @property
    def bodies(self):
        return [body for _, _, body in self.received]

    @property
    def headers(self):
        return [headers for _, headers, _ in self.received]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.server.take(self.path, dict(self.headers), json.loads(raw) if raw else None)
        if reply is DROP:
            self.close_connection = True
            return
        status, headers, body = reply
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def lengths(body):
    """A service whose reward is the response's length."""
    raw = [float(len(text)) for text in body.get("responses") or [body["response"]]]
    view = {"community": body["communities"][0], "scores": raw, "raw": raw, "truncated": [False] * len(raw)}
    answer = {"run": "r", "scale": body["scale"], "communities": [view], "steered": None}
    return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


def busy(status=503, **headers):
    return status, headers, json.dumps({"error": "4,096 responses wait; ask again later"}).encode()


def ask_in_turn(url, arguments, **settings):
    with Client(url, **settings) as client:
        return client.score(**arguments)


def ask_in_a_loop(url, arguments, **settings):
    async def ask():
        async with AsyncClient(url, **settings) as client:
            return await client.score(**arguments)

    return asyncio.run(ask())


@pytest.fixture(params=[ask_in_turn, ask_in_a_loop])
def ask(request):
    return request.param


TEA = {"prompt": "Tea?", "responses": ["Yes.", "Never!"], "communities": "Chile"}


def test_a_busy_service_is_asked_again_after_the_time_that_it_names(server, ask):
    server.replies = [busy(429, **{"Retry-After": "1"}), lengths]
    started = time.monotonic()
    answer = ask(server.url, TEA)
    assert 1.0 <= time.monotonic() - started < 2.5
    assert answer.communities[0].scores == [4.0, 6.0]
    expected = {"prompt": "Tea?", "responses": ["Yes.", "Never!"], "communities": ["Chile"], "scale": "calibrated"}
    assert server.bodies == [expected, expected]


def test_a_dropped_connection_is_made_again(server, ask):
    server.replies = [DROP, DROP, lengths]
    assert ask(server.url, TEA).communities[0].scores == [4.0, 6.0]
    assert len(server.received) == 3


def test_a_service_that_stays_busy_is_asked_as_often_as_allowed_and_less_and_less_often(server, ask):
    server.replies = [busy()]
    started = time.monotonic()
    with pytest.raises(ServiceError, match=r"HTTP 503 \(4,096 responses wait.*at attempt 4 of 4.*raise max_retries"):
        ask(server.url, TEA, max_retries=3)
    assert len(server.received) == 4
    assert (0.25 + 0.5 + 1) / 2 <= time.monotonic() - started < 0.25 + 0.5 + 1 + 1


def test_nobody_waits_for_a_time_beyond_the_limit(server, ask):
    server.replies = [busy(**{"Retry-After": "3600"})]
    started = time.monotonic()
    with pytest.raises(ServiceError, match=r"attempt 1 of 6, after 0\.\d s of 5 s"):
        ask(server.url, TEA, timeout_s=5)
    assert time.monotonic() - started < 1
    assert len(server.received) == 1


def test_the_limit_on_time_holds_for_all_attempts_together(server, ask):
    server.replies = [busy()]
    started = time.monotonic()
    with pytest.raises(ServiceError, match="of 1001"):
        ask(server.url, TEA, max_retries=1000, timeout_s=1.0)
    assert time.monotonic() - started < 1.5
    assert 2 <= len(server.received) <= 4


def test_a_service_that_says_nothing_is_left_when_the_time_is_over(server, ask):
    def hang(_):
        time.sleep(HANG_S)
        return DROP

    server.replies = [hang]
    started = time.monotonic()
    with pytest.raises(ServiceError, match="ReadTimeout"):
        ask(server.url, TEA, timeout_s=0.5)
    assert time.monotonic() - started < HANG_S / 2


def test_nobody_listens(ask):
    with pytest.raises(ServiceError, match=r"ConnectError .* at attempt 2 of 2.*check that the service runs there"):
        ask("http://127.0.0.1:1", TEA, max_retries=1)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 415, 422])
def test_a_refusal_is_told_in_the_services_words_and_not_repeated(server, ask, status):
    server.replies = [(status, {}, b'{"error": "communities: Atlantis is not served; ask /v1/communities"}')]
    with pytest.raises(ServiceError) as caught:
        ask(server.url, TEA)
    assert str(caught.value) == (
        f"{server.url}/v1/score: HTTP {status}: communities: Atlantis is not served; ask /v1/communities"
    )
    assert len(server.received) == 1


@pytest.mark.parametrize("status", [200, 404, 502])
@pytest.mark.parametrize("body", [b"<html>\n<b>It works!</b></html>", b"", b'{"detail": "Not Found"}', b"\xff\xfe"])
def test_somebody_elses_answer_is_told_from_the_services(server, ask, status, body):
    server.replies = [(status, {"Content-Type": "text/html"}, body)]
    with pytest.raises(ServiceError, match=f"HTTP {status} with .*no reward service.*check the address") as caught:
        ask(server.url, TEA)
    assert "\n" not in str(caught.value)
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("communities", "routed"),
    [
        ("Chile", "Chile"),
        (["United Kingdom"], "United Kingdom"),
        ({"Chile": 1.0}, "Chile"),
        (["Chile", "Kenya"], None),
        ({"Chile": 0.5, "Kenya": 0.5}, None),
        (["Côte d'Ivoire"], None),
        (["日本"], None),
        (["Chile\r\nX-Role: admin"], None),
        ("all", None),
    ],
)
def test_one_community_is_routed_to_where_its_model_is(server, ask, communities, routed):
    server.replies = [(404, {}, b'{"error": "enough"}')]
    with pytest.raises(ServiceError, match="enough"):
        ask(server.url, TEA | {"communities": communities})
    assert server.headers[0].get(MODEL_HEADER) == routed
    assert "X-Role" not in server.headers[0]
    assert server.bodies[0]["communities"] == ([communities] if communities == "Chile" else communities)


def test_the_token_is_the_arguments_else_the_environments(server, ask, monkeypatch):
    server.replies = [lengths]
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    ask(server.url, TEA)
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-environment")
    ask(server.url, TEA)
    ask(server.url + "/", TEA, token="from-the-argument")
    assert [headers.get("Authorization") for headers in server.headers] == [
        None,
        "Bearer from-the-environment",
        "Bearer from-the-argument",
    ]
    assert {path for path, _, _ in server.received} == {"/v1/score"}


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "ключ"])
def test_a_token_that_no_header_carries_is_refused_and_kept_secret(token):
    with pytest.raises(ServiceError, match="give it as it stands in the service's tokens_file") as caught:
        Client("http://localhost:8000", token=token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://", "", "http://[::1"])
def test_an_address_that_is_none(url):
    with pytest.raises(ServiceError, match="give the service's"):
        Client(url)


@pytest.mark.parametrize("limits", [{"max_retries": -1}, {"timeout_s": 0}, {"timeout_s": float("nan")}])
def test_limits_that_leave_no_time(limits):
    with pytest.raises(ServiceError, match="give 0 or more retries and more than 0 s"):
        reward_function("http://localhost:8000", "Chile", **limits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": ["Yes.", " "]}, "responses.1: is blank; give some text"),
        ({"response": "Yes."}, "ScoreRequest: give either response or responses, one of the two"),
        ({"communities": {"Chile": 0.5}}, "communities: the weights sum to 0.5; they must sum to 1"),
        ({"respones": ["Yes."]}, "respones: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_request_is_refused_before_it_is_sent(server, ask, change, message):
    with pytest.raises(ServiceError) as caught:
        ask(server.url, TEA | change)
    assert str(caught.value) == message
    assert server.received == []


def test_an_error_goes_to_another_process_whole():
    error = pickle.loads(pickle.dumps(ServiceError("a: b; c")))
    assert isinstance(error, ScpoError)
    assert str(error) == "a: b; c"


def test_the_client_needs_no_engine():
    program = (
        "import sys\n"
        "for name in ('torch', 'ray', 'transformers', 'fastapi', 'trl'): sys.modules[name] = None\n"
        "from scpo_ray.client import reward_function\n"
        "print(reward_function('http://localhost:8000', 'Chile')(prompts=['Tea?'], completions=['']))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[-3.0]", done.stderr


def test_a_reward_function_asks_once_per_prompt_and_keeps_the_order(server):
    server.replies = [lengths]
    reward = reward_function(server.url, "Chile", token="t", scale="raw")
    prompts = ["Tea?", "Coffee?", "Tea?", "Tea?", "Coffee?"]
    completions = ["a", "bb", "ccc", "dddd</s>", "e\x07eeee"]
    found = reward(prompts=prompts, completions=completions, completion_ids=[[1]] * 5, answer=["x"] * 5, log_extra=None)
    assert found == [1.0, 2.0, 3.0, 4.0, 5.0]
    asked = {body["messages"][0]["content"]: body for body in server.bodies}
    assert len(server.bodies) == 2
    assert asked["Tea?"]["messages"] == [{"role": "user", "content": "Tea?"}]
    assert asked["Tea?"]["responses"] == ["a", "ccc", "dddd"]
    assert asked["Coffee?"]["responses"] == ["bb", "eeeee"]
    assert {(body["scale"], *body["communities"]) for body in server.bodies} == {("raw", "Chile")}
    assert {headers[MODEL_HEADER] for headers in server.headers} == {"Chile"}


def test_conversations_are_asked_about_as_conversations(server):
    server.replies = [lengths]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tea?"}]
    turns = [{"role": "assistant", "content": "Hm."}, {"role": "user", "content": "Well?"}]
    last = {"role": "assistant", "content": "Yes."}
    silent = {"role": "assistant", "content": None, "tool_calls": []}
    found = reward_function(server.url, "Chile", empty_reward=-9.0)(
        prompts=[prompt] * 4, completions=[[last], [*turns, last], [], [silent]]
    )
    assert found == [4.0, 4.0, -9.0, -9.0]
    asked = sorted((body["messages"] for body in server.bodies), key=len)
    assert asked == [prompt, prompt + turns]


def test_empty_completions_have_a_reward_that_nobody_is_asked_for(server):
    reward = reward_function(server.url, "Chile")
    assert reward(prompts=["Tea?"] * 4, completions=["", " \n", "</s>", "\x00"]) == [-3.0] * 4
    assert server.received == []


def test_many_completions_of_a_prompt_go_in_several_requests(server):
    server.replies = [lengths]
    completions = ["x" * length for length in range(1, 8)]
    found = reward_function(server.url, "Chile", max_responses=3)(prompts=["Tea?"] * 7, completions=completions)
    assert found == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert sorted(len(body["responses"]) for body in server.bodies) == [1, 3, 3]


def test_long_conversations_go_in_smaller_requests(server):
    server.replies = [lengths]
    prompt = [{"role": "user", "content": "\x07" + "long " * 40_000}]
    found = reward_function(server.url, "Chile")(prompts=[prompt] * 5, completions=["x" * n for n in range(1, 6)])
    assert found == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert sorted(len(body["responses"]) for body in server.bodies) == [1, 2, 2]  # 500,000 characters each at most
    assert all(body["messages"][0]["content"].startswith("long ") for body in server.bodies)


def test_a_service_that_loses_a_response_is_not_believed(server):
    server.replies = [lambda body: lengths(body | {"responses": body["responses"][1:]})]
    with pytest.raises(ServiceError, match="not one score for each of 3 responses"):
        reward_function(server.url, "Chile")(prompts=["Tea?"] * 3, completions=["a", "b", "c"])


def test_a_picture_has_no_reward(server):
    picture = [{"role": "assistant", "content": [{"type": "image"}]}]
    with pytest.raises(ServiceError, match=r"content is list.*only texts have rewards"):
        reward_function(server.url, "Chile")(prompts=["Tea?"], completions=[picture])


def test_a_reward_function_travels_and_keeps_its_name_and_its_secret(server):
    server.replies = [lengths]
    reward = pickle.loads(pickle.dumps(reward_function(server.url, "United Kingdom", token="hush-hush")))
    assert reward.__name__ == "reward_United Kingdom"
    assert "hush-hush" not in repr(reward)
    assert reward(prompts=["Tea?"], completions=["abc"]) == [3.0]
    assert server.headers[0]["Authorization"] == "Bearer hush-hush"
