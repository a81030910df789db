"""What a round makes of wrong, late, doubled and missing answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from federations import answers, bits, factors, federation, heterogeneous
from rankwise.federated import Bounds, Failure, FeDLRT, Reply, SimplifiedCorrection
from rankwise.federated.bounds import flaw_of, outliers
from rankwise.federated.mean import weighted_mean
from rankwise.nn.linear import LowRankLinear

PHASES = ["gradient", "correction", "train"]


@pytest.fixture
def scene(draw):
    """Makes the same server and clients each time that it is called."""
    problem, start = heterogeneous(draw), factors(draw, 10, 8, 3)

    def make(clients=4, method=None, **options):
        data = dict(list(problem.data.items())[:clients])
        method = method or FeDLRT(lr=0.05, steps=2, rtol=1e-8)
        return federation(LowRankLinear(start), method, data, **options)

    return make


def complete(server, clients, spoil=lambda phase, replies: replies):
    """A round in which `spoil` comes between clients and server."""
    round = server.open_round()
    while round.request is not None:
        round.receive(spoil(round.request.phase, answers(round, clients)))
    return server.close_round(round)


def test_a_request_stays_as_it_was_asked(scene):
    """A transport may send it again, or keep it for a late answer."""
    server, clients = scene()
    round = server.open_round()
    first, names = round.request, sorted(round.request.arrays)
    while round.request is not None:
        round.receive(answers(round, clients))
    assert sorted(first.arrays) == names == ["S", "U", "V"]


def without(server_and_clients, gone):
    """State after a round of a federation from which a client is gone in each phase."""
    server, clients = server_and_clients
    complete(server, clients, lambda phase, replies: [r for r in replies if r.client != gone])
    return bits(server.state)


def changed(reply, **arrays):
    return replace(reply, arrays=reply.arrays | arrays)


def with_entry(value):
    def spoil(reply):
        name = sorted(reply.arrays)[0]
        array = reply.arrays[name].clone()
        array[-1, -1] = value
        return changed(reply, **{name: array})

    return spoil


def first_as(make):
    return lambda reply: changed(
        reply, **{(n := sorted(reply.arrays)[0]): make(reply.arrays[n])}
    )  # fmt: skip


def renamed(reply):
    arrays = dict(reply.arrays)
    arrays["other"] = arrays.pop(sorted(arrays)[0])
    return replace(reply, arrays=arrays)


class Own(torch.Tensor):
    """May answer anything to any function of PyTorch."""


class Raising(dict):
    def __getitem__(self, name):
        raise RuntimeError("no")


WRONG = {
    "NaN": (with_entry(float("nan")), "NaN or infinite"),
    "inf": (with_entry(float("inf")), "NaN or infinite"),
    "huge": (with_entry(1e9), "norm 1e+09 is above the bound 1e+06"),
    "overflow": (with_entry(1e300), "above the bound"),
    "flat": (first_as(lambda t: t.flatten()), "must be"),
    "cut": (first_as(lambda t: t[:-1]), "must be"),
    "integers": (first_as(lambda t: t.long()), "torch.int64"),
    "complex": (first_as(lambda t: t.to(torch.complex128)), "torch.complex128"),
    "float32": (first_as(lambda t: t.float()), "torch.float32"),
    "a list": (first_as(lambda t: t.tolist()), "must be a plain tensor, got list"),
    "of a subclass": (first_as(lambda t: t.as_subclass(Own)), "plain tensor, got Own"),
    "nested": (first_as(lambda t: torch.nested.nested_tensor([t, t])), "plain tensor"),
    "sparse": (first_as(lambda t: t.to_sparse()), "dense"),
    "without content": (first_as(lambda t: t.to("meta")), "on the CPU"),
    "other name": (renamed, "is missing"),
    "one more": (lambda r: changed(r, more=torch.ones(1)), "'more' is unexpected"),
    "nothing": (lambda r: replace(r, arrays={}), "is missing"),
    "None": (lambda r: replace(r, arrays=None), "must be a dict"),
    "no samples": (lambda r: replace(r, samples=0), "claims 0 samples"),
    "less than none": (lambda r: replace(r, samples=-3), "claims -3 samples"),
    "absurdly many": (lambda r: replace(r, samples=10**12), "claims 1000000000000 samples"),
    "more than can be printed": (lambda r: replace(r, samples=10**5000), "claims a int"),
    "a number for a name": (
        lambda r: replace(r, arrays=r.arrays | {10**5000: torch.ones(1)}),
        "cannot be checked",
    ),
    "a dict that raises": (lambda r: replace(r, arrays=Raising(r.arrays)), "RuntimeError: no"),
    "half a sample": (lambda r: replace(r, samples=0.5), "claims 0.5 samples"),
    "a truth": (lambda r: replace(r, samples=True), "claims True samples"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_is_refused_and_the_round_goes_on_without_it(scene, kind, phase):
    spoil, reason = WRONG[kind]

    def between(now, replies):
        if now != phase:
            return [
                r
                for r in replies
                if r.client != "client 1" or PHASES.index(now) < PHASES.index(phase)
            ]
        return [spoil(r) if r.client == "client 1" else r for r in replies]

    server, clients = scene()
    record = complete(server, clients, between)
    (event,) = record.events
    assert event[:3] == ("client 1", phase, "refused")
    assert reason in event.reason
    assert record.answered == ("client 0", "client 2", "client 3")
    if phase == "gradient":
        assert bits(server.state) == without(scene(), gone="client 1")


def test_an_answer_far_above_the_others_is_refused(scene):
    server, clients = scene(bounds=Bounds(relative=50.0))
    large = lambda _, replies: [  # noqa: E731
        changed(r, K=1e4 * r.arrays["K"]) if r.client == "client 2" and "K" in r.arrays else r
        for r in replies
    ]
    record = complete(server, clients, large)
    (event,) = record.events
    assert event[:3] == ("client 2", "gradient", "refused")
    assert "times the median" in event.reason
    assert bits(server.state) == without(scene(), gone="client 2")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("says", [True, False])
def test_a_client_that_is_gone_is_not_asked_again_in_the_round(scene, phase, says):
    asked = []

    def between(now, replies):
        asked.append([r.client for r in replies])
        kept = [r for r in replies if r.client != "client 3" or now != phase]
        return kept + [Failure("client 3", "timed out")] * (says and now == phase)

    server, clients = scene()
    record = complete(server, clients, between)
    last = PHASES.index(phase)
    assert ["client 3" in names for names in asked] == [i <= last for i in range(3)]
    assert record.events == (("client 3", phase, "dropped", "timed out" if says else "no answer"),)
    assert record.participants == tuple(sorted(clients))
    assert record.answered == ("client 0", "client 1", "client 2")
    assert not record.void
    if phase == "gradient":
        assert bits(server.state) == without(scene(), gone="client 3")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("quorum, left", [(1, 0), (3, 2)])
def test_with_too_few_answers_a_round_is_void_and_changes_no_bit(scene, phase, quorum, left):
    server, clients = scene(quorum=quorum)
    before = bits(server.state)
    record = complete(server, clients, lambda now, r: r[:left] if now == phase else r)
    assert record.void
    assert record.answered == ()
    assert [e.kind for e in record.events] == ["dropped"] * (4 - left)
    assert bits(server.state) == before
    assert bits(server.model.factors()._asdict()) == before
    assert server.number == 1
    after = complete(server, clients)
    assert (after.void, after.number, after.events) == (False, 1, ())
    assert bits(server.state) != before


def test_the_order_in_which_answers_come_changes_no_bit(scene):
    def end(order):
        def between(now, replies):
            noise = [Failure("nobody", "?"), 17, Reply("client 0", 7, "train", 1, {})]
            return order([*replies, *noise])

        server, clients = scene()
        records = [complete(server, clients, between) for _ in range(3)]
        return bits(server.state), [r.events for r in records]

    ends = [end(order) for order in (list, reversed, lambda r: [*r[3:], *r[:3]])]
    assert ends[0] == ends[1] == ends[2]
    assert len(ends[0][1][0]) == 9


def test_late_answers_change_nothing_and_are_recorded(scene):
    kept = []

    def between(now, replies):
        late = list(kept)
        kept.extend(replies[:1])
        return [*late, *replies]

    server, clients = scene()
    punctual, others = scene()
    first, second = (complete(server, clients, between) for _ in range(2))
    for _ in range(2):
        complete(punctual, others)
    assert bits(server.state) == bits(punctual.state)
    assert {e.kind for e in (*first.events, *second.events)} == {"late"}
    assert [e[0::3] for e in first.events][0] == ("client 0", "answers 'gradient' of round 0")
    assert len(second.events) == 3 + 4 + 5
    assert second.up > first.up


def test_an_answer_counts_although_it_was_given_up(scene):
    server, clients = scene()
    failed = [Failure("client 2", "timed out")]
    record = complete(server, clients, lambda now, r: [*failed, *r] if now == "train" else r)
    reason = "answered after all, but was given up: timed out"
    assert record.events == (("client 2", "train", "late", reason),)
    plain, others = scene()
    complete(plain, others)
    assert bits(server.state) == bits(plain.state)


def test_copies_of_an_answer_count_once_and_contradictions_not_at_all(scene):
    server, clients = scene()
    assert complete(server, clients, lambda _, r: [*r, *r]).events == ()
    once, others = scene()
    complete(once, others)
    assert bits(server.state) == bits(once.state)

    def contradicts(now, replies):
        second = replies[1]
        return (
            [*replies, changed(second, K=2 * second.arrays["K"])] if now == "gradient" else replies
        )

    for order in (1, -1):
        server, clients = scene()
        record = complete(server, clients, lambda now, r, o=order: contradicts(now, r)[::o])
        assert record.events == (("client 1", "gradient", "refused", "sent answers that differ"),)
        assert bits(server.state) == without(scene(), gone="client 1")


def test_nobody_can_answer_what_was_not_asked_of_them(scene):
    server, clients = scene(participation=0.5)
    idle = next(name for name in clients if name not in server.open_round().participants)

    def between(now, replies):
        first = replies[0]
        extra = [
            replace(first, client="stranger"),
            replace(first, client=["a list"]),
            replace(first, client=idle),
            replace(first, round=5),
            replace(first, round="0"),
            replace(first, phase="vote"),
            replace(first, phase="train"),
            {"client": first.client},
            replace(first, phase=["gradient"]),
            replace(first, phase=np.array(["gradient", "train"])),
            replace(first, round=10**5000),
            replace(first, client=10**5000),
            Failure(idle, "sleeps"),
        ]
        return extra + replies if now == "gradient" else replies

    record = complete(server, clients, between)
    told = sorted(e.reason for e in record.events)
    assert {e.kind for e in record.events} == {"refused"}
    assert told == sorted([
        "no client of this server", "no client of this server", "was not asked", "was not asked",
        "no client of this server", "answers ['gradient'] of round 0",
        "answers array(['gradient', 'train'], dtype='<U8') of round 0",
        "answers 'gradient' of round a int (ValueError)",
        "answers 'gradient' of round 5", "answers 'gradient' of round '0'",
        "answers 'vote' of round 0", "answers 'train' of round 0",
        "a dict, neither Reply nor Failure",
    ])  # fmt: skip
    plain, others = scene(participation=0.5)
    complete(plain, others)
    assert bits(server.state) == bits(plain.state)


def test_what_a_client_says_is_kept_in_short(scene):
    server, clients = scene()

    def between(now, replies):
        if now != "gradient":
            return replies
        long = changed(replies[1], **{"x" * 10**6: torch.ones(1)})
        return [Failure("client 0", "y" * 10**6), long, Failure("client 3", 10**5000), replies[2]]

    record = complete(server, clients, between)
    assert [e.kind for e in record.events] == ["dropped", "refused", "dropped"]
    assert max(len(str(e)) for e in record.events) < 400


def test_a_client_cannot_change_its_weight_within_a_round(scene):
    server, clients = scene()
    more = lambda now, r: [replace(r[0], samples=999), *r[1:]] if now == "train" else r  # noqa: E731
    (event,) = complete(server, clients, more).events
    assert event == (
        "client 0",
        "train",
        "refused",
        "claims 999 samples, and 20 in an earlier phase",
    )


def test_bytes_are_those_of_the_arrays(scene):
    m, n, r, width, clients = 10, 8, 3, 8, 4
    server, others = scene()
    full = complete(server, others)
    # U, S, V; new directions; mean gradients of the core. Numbers of 8 bytes.
    down = (m + n) * r + r * r + (m + n) * r + 4 * r * r
    up = (m + n) * r + 4 * r * r + 4 * r * r
    assert (full.down, full.up) == (clients * width * down, clients * width * up)
    simplified = complete(*scene(method=FeDLRT(SimplifiedCorrection(), steps=1)))
    down, up = 2 * (m + n) * r + 2 * r * r, (m + n) * r + r * r + 4 * r * r
    assert (simplified.down, simplified.up) == (clients * width * down, clients * width * up)


def test_a_round_that_is_over_takes_nothing(scene):
    server, clients = scene()
    round = server.open_round()
    with pytest.raises(ValueError, match="still asks for 'gradient'"):
        server.close_round(round)
    while round.request is not None:
        round.receive(answers(round, clients))
    with pytest.raises(ValueError, match="is over"):
        round.receive([])
    server.close_round(round)
    with pytest.raises(ValueError, match="not the open one"):
        server.close_round(round)


def test_the_median_decides_what_is_far_only_where_there_is_one():
    assert outliers({"a": 1.0, "b": 1e9}, 10.0) == {}
    assert outliers({"a": 1.0, "b": 1e9}, 1.5) == {}
    assert outliers({"a": 0.0, "b": 0.0, "c": 5.0}, 10.0) == {}
    assert set(outliers({"a": 1.0, "b": 1.0, "c": 10.5}, 10.0)) == {"c"}
    assert outliers({}, 10.0) == {}


def test_means_of_float32_are_summed_in_float64():
    arrays = {str(i): {"a": torch.tensor([1.0 if i else 2.0**25])} for i in range(4)}
    mean = weighted_mean(arrays, dict.fromkeys(arrays, 1))["a"]
    assert mean.dtype == torch.float32
    assert mean.double() == torch.tensor((2.0**25 + 3) / 4).double()


def test_arrays_as_expected_have_no_flaw():
    assert flaw_of({"a": torch.ones(2)}, {"a": torch.empty(2, device="meta")}, 2.0) is None
    assert flaw_of({}, {}) is None


@pytest.mark.parametrize(
    "options", [{"norm": 0.0}, {"norm": "1"}, {"relative": 1.0}, {"samples": 0}, {"samples": 1.5}]
)
def test_bounds_that_bound_nothing_are_refused(options):
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        Bounds(**options)
