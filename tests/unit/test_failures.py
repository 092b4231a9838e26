"""Failures: what an exception stands for, and what follows."""

import pytest

from pipelines.stage import Diverged, OutOfMemory, UserError
from sweeps.failures import Failure, classify, halved, remedy
from sweeps.spec import OnFailure


class OutOfMemoryError(RuntimeError):
    """Named as torch's and Ray's are."""


class ActorDiedError(Exception):
    """Named as Ray's is."""


class ObjectStoreFullError(Exception):
    """Named as Ray's is."""


class OutOfDiskError(Exception):
    """Named as Ray's is."""


class RayTaskError(Exception):
    """Named as Ray's is, which begins with the process and holds what the task raised."""

    def __init__(self, cause):
        super().__init__("\x1b[36mray::LeaseTrainable.train()\x1b[39m (pid=7)\nwhat was raised")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UserError("train.jsonl line 3: no prompt"), "user", "train.jsonl line 3: no prompt"),
        (Diverged("loss is nan at 7"), "nan", "loss is nan at 7"),
        (OutOfMemory("micro batch 4"), "oom", "OutOfMemory: micro batch 4"),
        (OutOfMemoryError("CUDA"), "oom", "OutOfMemoryError: CUDA"),
        (MemoryError(), "oom", "MemoryError"),
        (RuntimeError("CUDA out of memory. Tried 2 GiB"), "oom", "RuntimeError: CUDA out of memory. Tried 2 GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "oom", None),
        (OSError(12, "Cannot allocate memory"), "oom", "OSError: [Errno 12] Cannot allocate memory"),
        (ActorDiedError("Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: ..."), "oom", None),
        (ActorDiedError("gone"), "node", "ActorDiedError: gone"),
        (ObjectStoreFullError("no room for 3 MB"), "node", "ObjectStoreFullError: no room for 3 MB"),
        (
            OutOfDiskError("8574", b"7"),
            "node",
            "OutOfDiskError: the object store of a node is full, and so is the disk that it spills to",
        ),
        (RayTaskError(ObjectStoreFullError("no room")), "node", "ObjectStoreFullError: no room"),
        (RayTaskError(RuntimeError("odd")), "unknown", "RuntimeError: odd"),
        (RayTaskError(None), "unknown", None),
        (ModuleNotFoundError("No module named 'x'"), "user", None),
        (TypeError("f() takes 0"), "user", None),
        (ValueError("odd\nsecond line"), "unknown", "ValueError: odd"),
        (RuntimeError(""), "unknown", "RuntimeError"),
    ],
)
def test_an_exception_is_classified(error, kind, message):
    failure = classify(error)
    assert failure.kind == kind
    assert message is None or failure.message == message
    assert type(error).__name__ in failure.traceback


def test_the_same_error_with_other_numbers_is_the_same():
    first, second = Failure("nan", "loss is nan at step 17"), Failure("nan", "loss is nan at step 18.5")
    assert first.signature == second.signature != Failure("nan", "accuracy is nan at step 17").signature
    assert Failure("oom", "at 0x7f3a").signature == Failure("oom", "at 0x12").signature
    assert Failure("oom", "x").signature != Failure("node", "x").signature


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ({"micro_batch_size": 4}, {"micro_batch_size": 2, "gradient_accumulation_steps": 2}),
        (
            {"micro_batch_size": 8, "gradient_accumulation_steps": 2},
            {"micro_batch_size": 4, "gradient_accumulation_steps": 4},
        ),
        (
            {"micro_batch_size": 3, "gradient_accumulation_steps": 2},
            {"micro_batch_size": 1, "gradient_accumulation_steps": 6},
        ),
        ({"micro_batch_size": 1, "gradient_accumulation_steps": 8}, None),
        ({"kwargs": {}}, None),
    ],
)
def test_halving_keeps_the_rows_of_a_step(config, changes):
    assert halved(config) == changes


def test_out_of_memory_goes_again_smaller_until_one():
    policy = OnFailure()
    answer = remedy(Failure("oom", ""), policy, [], {"micro_batch_size": 2})
    assert (answer.retry, answer.changes) == (True, {"micro_batch_size": 1, "gradient_accumulation_steps": 2})
    assert not remedy(Failure("oom", ""), policy, [], {"micro_batch_size": 1}).retry
    assert not remedy(Failure("oom", ""), OnFailure(oom="stop"), [], {"micro_batch_size": 8}).retry


def test_each_kind_has_its_budget():
    policy, before = OnFailure(max_restarts=2), Failure("node", "")
    for kind in ("user", "nan"):
        assert not remedy(Failure(kind, ""), policy, [], {}).retry
    for kind in ("node", "stall"):
        assert remedy(Failure(kind, ""), policy, [before], {}).retry
        assert not remedy(Failure(kind, ""), policy, [before, before], {}).retry
        assert not remedy(Failure(kind, ""), OnFailure(node="stop"), [], {}).retry
    assert remedy(Failure("unknown", ""), policy, [before], {}).retry
    assert not remedy(Failure("unknown", ""), policy, [Failure("unknown", "")], {}).retry
    assert not remedy(Failure("unknown", ""), OnFailure(max_restarts=0), [], {}).retry


def test_what_one_kind_used_up_is_not_taken_from_another():
    policy, micro = OnFailure(max_restarts=2), {"micro_batch_size": 8}
    lost = [Failure("node", ""), Failure("stall", "")]
    assert not remedy(Failure("node", ""), policy, lost, micro).retry, "lost workers and stalls share theirs"
    assert remedy(Failure("oom", ""), policy, lost, micro).retry
    assert remedy(Failure("unknown", ""), policy, lost, micro).retry
    small = [Failure("oom", "")] * 2
    assert not remedy(Failure("oom", ""), policy, small, micro).retry
    assert remedy(Failure("node", ""), policy, [*small, Failure("unknown", ""), lost[0]], micro).retry
