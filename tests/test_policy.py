"""The scheduling policy over plain values: who begins, who goes next, who comes along."""

from typing import Any

import pytest
import torch
from torch import nn

from latentwire.core.batching import Batcher, BatchSpec
from latentwire.core.gates import Gate, Waiting
from latentwire.core.policy import PATIENCE, PREPARATIONS_IN_A_ROW, RANKS, Policy, times_to_begin
from latentwire.core.requests import Priority
from latentwire.core.run import Run


class Module(nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return sample


def gate(prepares: bool = False) -> Gate:
    """A gate whose calls may share forwards, as a denoiser's or a text encoder's."""
    made = Gate(Module())
    made.spec = BatchSpec(rows="sample", prepares=prepares, bucketed=True)
    made.batcher = Batcher(made.spec, made.forward)
    return made


DENOISER = gate()
ENCODER = gate(prepares=True)


def run(client: str, at: Gate = DENOISER, rows: int = 2, priority: Priority = "normal", mode: Any = "fast") -> Run:
    """A run that waits at a gate."""
    made = Run(mode, lambda: None, lambda *_: None, client=client, rank=RANKS[priority], rows=rows)
    made.waiting = Waiting(at, (torch.zeros(rows, 4, 16, 16),), {})
    return made


def clients(runs: list[Run]) -> list[str]:
    return [run.client for run in runs]


def turns(policy: Policy, runs: list[Run], count: int) -> list[list[str]]:
    """The clients of so many forwards; whoever was served comes back to its gate at once."""
    result = []
    for _ in range(count):
        chosen = policy.next_forward(runs)
        result.append(clients(chosen))
        runs = [run for run in runs if run not in chosen] + chosen
        for served in chosen:
            policy.arrived(served)
    return result


def test_all_who_may_share_a_forward_do() -> None:
    runs = [run("a"), run("b"), run("c")]
    assert clients(Policy(32, 8).next_forward(runs)) == ["a", "b", "c"]


def test_a_client_with_fifty_pictures_gets_no_more_turns_than_one_with_one() -> None:
    runs = [run("many") for _ in range(50)] + [run("one")]
    assert turns(Policy(2, 8), runs, 6) == [["many"], ["one"], ["many"], ["one"], ["many"], ["one"]]


def test_the_second_picture_of_a_client_comes_after_everybodys_first() -> None:
    runs = [run("many"), run("many"), run("many"), run("b"), run("c")]
    assert clients(Policy(8, 8).next_forward(runs)) == ["many", "b", "c", "many"]


def test_a_newcomer_is_in_the_next_forward_whatever_the_others_have_waiting() -> None:
    policy = Policy(8, 8)
    runs = [run(client) for client in "abcd" for _ in range(10)]
    turns(policy, runs, 7)
    assert policy.next_forward([*runs, run("new")])[0].client == "new"


def test_a_batch_stops_at_the_knee() -> None:
    runs = [run(client) for client in "abcdefgh"]
    assert len(Policy(6, 8).next_forward(runs)) == 3


def test_interactive_goes_first_and_alone_while_nothing_is_known_of_the_cost_of_company() -> None:
    policy = Policy(32, 8)
    assert clients(policy.next_forward([run("slow", priority="batch"), run("live", priority="interactive")])) == [
        "live"
    ]


def test_lower_ranks_come_along_while_that_costs_at_most_half() -> None:
    policy = Policy(32, 8)
    policy.seconds = lambda rows: 10.0 + rows
    runs = [run("slow", priority="batch") for _ in range(10)] + [run("live", priority="interactive")]
    chosen = policy.next_forward(runs)
    assert chosen[0].client == "live"
    assert sum(run.waiting.parts.rows for run in chosen if run.waiting and run.waiting.parts) == 8  # 18 is 1.5 * 12


def test_nobody_waits_for_ever() -> None:
    policy = Policy(32, 8)
    served = turns(policy, [run("slow", priority="batch"), run("live", priority="interactive")], 5 * PATIENCE)
    assert served.count(["live"]) > 3 * PATIENCE
    waits = [number for number, chosen in enumerate(served) if "slow" in chosen]
    assert waits
    assert waits[0] <= 2 * PATIENCE + 1


def test_preparations_go_first_but_only_so_many_in_a_row() -> None:
    policy = Policy(32, 8)
    ready = run("ready", mode="exact")
    runs = [ready, *(run(f"{number}", ENCODER, mode="exact") for number in range(30))]
    order = [clients(policy.next_forward(runs))[0] == "ready" for _ in range(2 * PREPARATIONS_IN_A_ROW + 2)]
    assert order == ([False] * PREPARATIONS_IN_A_ROW + [True]) * 2


def test_preparing_for_a_lower_rank_does_not_hold_up_a_higher_one() -> None:
    runs = [run("slow", ENCODER, priority="batch"), run("live", priority="interactive")]
    assert clients(Policy(32, 8).next_forward(runs)) == ["live"]


def test_modes_do_not_mix() -> None:
    policy = Policy(32, 8)
    runs = [run("a", mode="exact"), run("b", mode="exact"), run("c"), run("d"), run("e", mode="reproducible")]
    assert turns(policy, runs, 4) == [["a"], ["b"], ["c", "d"], ["e"]]


def test_so_many_begin_as_fill_the_largest_batch() -> None:
    policy = Policy(8, 8)
    queue = [run("many") for _ in range(10)]
    assert policy.to_begin(queue, []) == queue[:4]
    assert policy.to_begin(queue[4:], queue[:4]) == []
    assert policy.to_begin(queue[4:], queue[1:4]) == queue[4:5]
    assert Policy(8, 8, most_running=7).to_begin(queue, []) == queue[:7]


def test_everybodys_first_picture_begins_at_once() -> None:
    policy = Policy(8, 8)
    running = [run("many") for _ in range(4)]
    newcomer, live = run("new"), run("many", priority="interactive")
    assert policy.to_begin([run("many"), newcomer, run("new"), live], running) == [live, newcomer]


def test_a_paused_picture_makes_room_and_does_not_begin() -> None:
    policy = Policy(8, 8)
    running = [run("many") for _ in range(4)]
    waiting = run("many")
    running[0].pause(True)
    assert policy.to_begin([waiting], running) == [waiting]
    waiting.pause(True)
    assert policy.to_begin([waiting], []) == []


def test_pictures_without_guidance_fill_a_batch_too() -> None:
    queue = [run("many", rows=1) for _ in range(20)]
    assert Policy(8, 8).to_begin(queue, []) == queue[:8]


def test_the_queue_goes_by_rank_then_by_clients_in_turn() -> None:
    policy = Policy(2, 8)
    a, b, c = [run("a") for _ in range(3)], [run("b") for _ in range(2)], [run("c", priority="batch")]
    live = run("a", priority="interactive")
    order = policy.in_queue([*c, *a, *b, live], [])
    assert order == [live, a[0], b[0], a[1], b[1], a[2], c[0]]


@pytest.mark.parametrize(
    ("running", "queued", "most", "begins"),
    [
        ([10.0], [5.0], 1, [10.0]),
        ([10.0], [5.0, 5.0], 1, [10.0, 15.0]),
        ([10.0, 20.0], [10.0, 10.0, 10.0], 2, [20.0, 40.0, 40.0]),
        ([], [5.0], 1, [0.0]),
    ],
)
def test_estimates_of_the_time_to_begin(
    running: list[float], queued: list[float], most: int, begins: list[float]
) -> None:
    assert times_to_begin(running, queued, rows_per_second=1.0, most=most) == begins


def test_turns_of_clients_long_gone_are_forgotten() -> None:
    policy = Policy(2, 8)
    for number in range(3000):
        policy.next_forward([run(f"{number}")])
    assert len(policy._served) <= 1001
