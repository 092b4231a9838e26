"""The endpoint client against a real small server that refuses, hangs, cuts off and answers nonsense."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint, Trouble

from pipelines.calls import Calls
from pipelines.chat import ChatEndpoint, read_completion, unpack
from pipelines.endpoint import EndpointClient, Pace, public_address, read_embeddings, read_key, retry_after
from pipelines.hosts import LocalHost
from pipelines.memo import Cost, Unanswered
from pipelines.stage import Abandoned, Devices, Services, UserError

KEY = "sk-very-secret-0123456789"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def server() -> Iterator[FakeEndpoint]:
    with FakeEndpoint().serving() as serving:
        yield serving


class Paused:
    """Instead of waiting."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def client(server: FakeEndpoint, pause: Any = None, **settings: Any) -> EndpointClient:
    return EndpointClient(server.address, "fake", pause=pause or Paused(), **{"timeout": 5.0, **settings})


def hello(asked: EndpointClient) -> Any:
    value = asked.post("chat/completions", HELLO, read_completion).value
    return value if isinstance(value, Unanswered) else value.text


def test_a_good_answer(server: FakeEndpoint) -> None:
    reply = client(server, key=KEY).post("chat/completions", HELLO, read_completion)
    assert not isinstance(reply.value, Unanswered)
    assert (reply.value.text, reply.value.prompt_tokens, reply.value.new_tokens) == ("HELLO", 7, 5)
    assert reply.seconds > 0
    assert server.asked == [{"path": "/v1/chat/completions", "model": "fake", **HELLO}]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


TROUBLES: list[Trouble] = [408, 429, 500, 502, 503, 504, 529, "cut", "half", "garbage", "empty", "null", "other"]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_may_pass_is_sent_again_with_longer_pauses(server: FakeEndpoint, trouble: Trouble) -> None:
    server.troubles = [trouble] * 3
    pause = Paused()
    assert hello(client(server, pause, retries=3)) == "HELLO"
    assert len(server.asked) == 4
    first, second, third = pause.seconds
    assert 0.25 <= first <= 0.5 <= second <= 1.0 <= third <= 2.0


@pytest.mark.parametrize("trouble", ["hang", "drip"])
def test_an_answer_that_takes_too_long_is_sent_again(server: FakeEndpoint, trouble: Trouble) -> None:
    server.troubles = [trouble]
    assert hello(client(server, timeout=0.3)) == "HELLO"
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (429, "status 429; tried 3 times"),
        ("hang", "no answer within 0.2 s; tried 3 times"),
        ("drip", "no whole answer within 0.2 s; tried 3 times"),
        ("cut", "tried 3 times"),
        ("half", "bytes that are no JSON; tried 3 times"),
        ("null", "no text, finish_reason 'length'; tried 3 times"),
    ],
)
def test_what_finally_failed_is_unanswered_with_its_reason(server: FakeEndpoint, trouble: Trouble, reason: str) -> None:
    server.always = trouble
    found = hello(client(server, timeout=0.2 if trouble in ("hang", "drip") else 5.0, retries=2))
    assert isinstance(found, Unanswered)
    assert found.reason.startswith(server.address)
    assert found.reason.endswith(reason)
    assert len(server.asked) == 3


def test_the_servers_wish_is_followed_within_reason(server: FakeEndpoint) -> None:
    server.troubles = [(503, {"Retry-After": "7"}), (503, {"Retry-After": "86400"}), (503, {"Retry-After": "soon"})]
    pause = Paused()
    assert hello(client(server, pause)) == "HELLO"
    assert 7.0 <= pause.seconds[0] <= 7.1
    assert 60.0 <= pause.seconds[1] <= 60.2
    assert pause.seconds[2] <= 2.0


def test_a_429_with_a_wish_holds_all_threads_back(server: FakeEndpoint) -> None:
    server.troubles = [(429, {"Retry-After": "9"})]
    pause = Paused()
    asked = client(server, pause)
    assert [hello(asked), hello(asked)] == ["HELLO", "HELLO"]
    assert sum(8.5 < seconds <= 9.1 for seconds in pause.seconds) == 3  # the retry's own, its turn, the second one's


def test_retry_after_reads_seconds_and_dates() -> None:
    assert retry_after(None) is None
    assert retry_after("2.5") == 2.5
    assert retry_after("-3") == 0.0
    assert retry_after("soon") is None
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    ahead = retry_after(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100)))
    assert ahead is not None
    assert 90 < ahead <= 100


def test_a_refused_request_is_not_sent_again(server: FakeEndpoint) -> None:
    server.always = (400, {}, json.dumps({"error": {"message": "context of 4096\ntokens exceeded"}}))
    found = hello(client(server))
    assert isinstance(found, Unanswered)
    assert found.reason.endswith("status 400: context of 4096 tokens exceeded")
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405])
def test_a_wrong_address_or_key_is_the_users_and_at_once(server: FakeEndpoint, status: int) -> None:
    server.always = (status, {"Location": "/elsewhere"}, "<html>no</html>")
    with pytest.raises(UserError, match=f"the endpoint http://127.0.0.1:.*/v1 answers {status}"):
        hello(client(server, key=KEY, key_name="MY_KEY"))
    assert len(server.asked) == 1


def test_the_key_is_in_no_message(server: FakeEndpoint) -> None:
    server.key = "another"
    with pytest.raises(UserError) as caught:
        hello(client(server, key=KEY, key_name="MY_KEY"))
    assert "MY_KEY" in str(caught.value)
    assert "bad key Bearer ***" in str(caught.value)
    server.key, server.always = None, (422, {}, f"no {KEY} here")
    found = hello(client(server, key=KEY))
    assert isinstance(found, Unanswered)
    assert "no *** here" in found.reason
    assert KEY not in repr(client(server, key=KEY))


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def test_nobody_there_is_unanswered_and_check_says_it_at_once() -> None:
    asked = EndpointClient(f"http://127.0.0.1:{free_port()}/v1", "fake", pause=Paused(), retries=1)
    found = hello(asked)
    assert isinstance(found, Unanswered)
    assert "refused" in found.reason
    with pytest.raises(UserError, match=r"the endpoint http://127.0.0.1:\d+/v1 does not answer: .*refused.*start it"):
        asked.check()


def test_check_passes_where_somebody_answers_and_refuses_a_bad_key(server: FakeEndpoint) -> None:
    client(server).check()
    server.key = KEY
    client(server, key=KEY).check()
    with pytest.raises(UserError, match=r"answers 401.*no api_key is named"):
        client(server).check()


def test_an_endpoint_that_went_down_is_not_asked_six_times_for_each_item(server: FakeEndpoint) -> None:
    server.always = 500
    asked = client(server, retries=2)
    for _ in range(5):
        assert isinstance(hello(asked), Unanswered)
    assert len(server.asked) == 3 * 3 + 2
    server.always = None
    assert hello(asked) == "HELLO"
    server.troubles = [500, 500]
    assert hello(asked) == "HELLO"


def test_nothing_is_asked_once_nobody_is_left_to_store_the_answer(server: FakeEndpoint) -> None:
    left = threading.Event()
    services = Services(abandoned=left.is_set)
    asked = EndpointClient.of({"base_url": server.address, "model": "fake", "concurrency": 1}, services)
    server.hold = threading.Event()
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(hello(asked))
        except Abandoned as error:
            answers.append(str(error))

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    while not server.asked:
        time.sleep(0.001)
    left.set()
    server.hold.set()
    for caller in callers:
        caller.join(10)
    unasked = f"{server.address} was not asked: nobody is left to store the answer"
    assert sorted(answers) == sorted(["HELLO", unasked, unasked])
    assert len(server.asked) == 1


def test_requests_in_flight_are_bounded_over_all_callers(server: FakeEndpoint) -> None:
    server.hold = threading.Event()
    asked = client(server, concurrency=3)
    answers: list[list[Any]] = []
    callers = [
        threading.Thread(target=lambda: answers.append(asked.each(lambda _: hello(asked), range(5)))) for _ in range(3)
    ]
    for caller in callers:
        caller.start()
    until = time.monotonic() + 10
    while server.within < 3 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    server.hold.set()
    for caller in callers:
        caller.join(20)
    assert answers == [["HELLO"] * 5] * 3
    assert server.most == 3


def test_the_rate_limit_spaces_requests_of_all_callers() -> None:
    now = [100.0]
    pause = Paused()
    pace = Pace(30, clock=lambda: now[0])
    for _ in range(4):
        pace.wait(pause)
    assert pause.seconds == [2.0, 4.0, 6.0]
    now[0] += 100
    pace.wait(pause)
    assert len(pause.seconds) == 3
    free = Pace(None, clock=lambda: now[0])
    for _ in range(4):
        free.wait(pause)
    assert len(pause.seconds) == 3


def test_the_rate_limit_counts_retries(server: FakeEndpoint) -> None:
    server.troubles = [500, 500]
    pause = Paused()
    assert hello(client(server, pause, requests_per_minute=1)) == "HELLO"
    assert sum(seconds > 30 for seconds in pause.seconds) == 2


def test_embeddings_are_read_in_order_and_held_against_what_was_sent(server: FakeEndpoint) -> None:
    texts = ["a", "bbb", "cc"]
    reply = client(server).post("embeddings", {"input": texts}, read_embeddings(3))
    assert reply.value == ([[1.0, 1.0], [3.0, 1.0], [2.0, 1.0]], 6)
    found = client(server, retries=0).post("embeddings", {"input": texts}, read_embeddings(4)).value
    assert isinstance(found, Unanswered)
    assert "3 vectors for 4 texts" in found.reason
    bad = {"data": [{"index": 0, "embedding": [1.0, float("nan")]}]}
    with pytest.raises(Exception, match="NaN"):
        read_embeddings(1)(bad)
    ragged = {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]}
    with pytest.raises(Exception, match="different lengths"):
        read_embeddings(2)(ragged)


def test_addresses_in_messages_and_keys_have_no_secret() -> None:
    assert public_address("https://me:pw@host.example:8443/v1/?key=1#x") == "https://host.example:8443/v1"
    assert public_address("http://[::1]:80/v1") == "http://[::1]:80/v1"
    with pytest.raises(UserError, match="is no address"):
        EndpointClient("http://host:port/v1", "m")


@pytest.mark.parametrize(
    ("value", "said"), [(None, "not in the environment"), ("", "empty"), ("k\u00e9y", "characters")]
)
def test_a_key_that_is_none_is_the_users(value: str | None, said: str) -> None:
    names = {} if value is None else {"MY_KEY": value}
    with pytest.raises(UserError, match=f"MY_KEY.*{said}"):
        read_key("MY_KEY", Services(secret=names.__getitem__))
    with pytest.raises(UserError, match="MY_KEY"):
        read_key("MY_KEY", Services())


SPEC = {"kind": "openai_chat", "model": "fake", "retries": 0, "timeout": 5.0}
PRICED = {"price_per_million_prompt_tokens": 1e6, "price_per_million_new_tokens": 2e6}


def test_the_chat_model_sends_what_is_asked_and_counts_tokens_and_price(server: FakeEndpoint) -> None:
    spec = {**SPEC, **PRICED, "base_url": server.address, "api_key": "MY_KEY"}
    model = ChatEndpoint.load(spec, Devices(), Services(secret={"MY_KEY": KEY}.__getitem__))
    items = [{"prompt": "one"}, {**HELLO, "seed": 3, "max_new_tokens": 9}]
    first, second = model.answer("generate", items, {"max_new_tokens": 5, "temperature": 0.5, "stop": ["\n"]})
    assert [unpack(value).text for value, _ in (first, second) if isinstance(value, bytes)] == ["ONE", "HELLO"]
    assert [cost.tokens for _, cost in (first, second)] == [10, 12]
    assert [cost.price for _, cost in (first, second)] == [7 + 6, 7 + 10]
    one, two = sorted(server.asked, key=lambda body: "seed" in body)
    assert (one["max_tokens"], one["temperature"], one["stop"], "seed" in one) == (5, 0.5, ["\n"], False)
    assert (two["max_tokens"], two["seed"], two["messages"]) == (9, 3, HELLO["messages"])


def test_a_model_that_wants_the_newer_limit_gets_it(server: FakeEndpoint) -> None:
    refusal = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.troubles = [(400, {}, json.dumps({"error": {"message": refusal}}))]
    model = ChatEndpoint.load({**SPEC, "base_url": server.address}, Devices(), Services())
    for _ in range(2):
        [(value, _)] = model.answer("generate", [HELLO], {"max_new_tokens": 5})
        assert isinstance(value, bytes)
    assert ["max_tokens" in body for body in server.asked] == [True, False, False]
    assert server.asked[1]["max_completion_tokens"] == 5


def test_one_items_failure_is_not_the_others(server: FakeEndpoint) -> None:
    server.say = lambda body: str(body["messages"][-1]["content"])
    server.troubles = [None, 500, None]
    model = ChatEndpoint.load({**SPEC, "base_url": server.address, "concurrency": 1}, Devices(), Services())
    answers = model.answer("generate", [{"prompt": str(i)} for i in range(3)], {})
    assert [isinstance(value, Unanswered) for value, _ in answers] == [False, True, False]
    assert answers[1][1] == Cost(0.0)


def test_the_memos_key_depends_on_address_and_name_and_on_no_key() -> None:
    spec = {**SPEC, "base_url": "http://me:pw@a/v1", "api_key": "MY_KEY"}
    found = ChatEndpoint.identify(spec)
    assert found.model == "http://a/v1 fake"
    assert found == ChatEndpoint.identify({**spec, "api_key": "OTHER", "retries": 9, "base_url": "http://a/v1/"})
    assert found != ChatEndpoint.identify({**spec, "model": "other"})


def test_a_host_asks_it(server: FakeEndpoint) -> None:
    spec = {**SPEC, "base_url": server.address}
    host = LocalHost()
    found = Calls(host, None, "me").ask("generate", spec, "generate", [HELLO], {"max_new_tokens": 4})
    assert [unpack(value).text for value in found] == ["HELLO"]
    host.close()
