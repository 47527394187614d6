"""Prompt embeddings remembered: which text encoder forwards are spared, and that no bit of a picture tells."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentwire import Adapter, Host
from latentwire.core import gates
from latentwire.core.adapters import LowRank, Weighted, added
from latentwire.core.events import Event, Image
from latentwire.core.gates import RememberingGate, install_gate, remove_gates
from latentwire.core.requests import Mode
from latentwire.core.run import Run

from . import small_models
from .conftest import running_host

MODES: tuple[Mode, ...] = ("exact", "reproducible", "fast")
FAMILIES = ("sd1", "sdxl", "sd3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random models."""
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        getattr(small_models, family)(folder / family)
    return folder


@pytest.fixture
def host(folder: Path) -> Iterator[Host]:
    """A host that has heard no prompt yet."""
    with running_host(models={family: {"path": folder / family} for family in FAMILIES}) as host:
        yield host


class Encoder:
    """The text encoder of a host's model, called from runs on its engine; counts the rows of each real forward."""

    def __init__(self, host: Host, model: str = "sd1") -> None:
        self._host = host
        self._lease = self._lease_of(model)
        self.module = self._lease.components["text_encoder"]
        self.tokenizer = self._lease.components["tokenizer"]
        self.forwards: list[int] = []
        first = self.module.embeddings
        self._hook = first.register_forward_hook(lambda _module, _args, output: self.forwards.append(len(output)))

    def _lease_of(self, model: str) -> Any:
        with self._host.store.leased(model) as lease:
            return lease

    @property
    def gate(self) -> Any:
        return self.module.forward.__wrapped_gate__

    def ids(self, prompt: str) -> torch.Tensor:
        found: torch.Tensor = self.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
        return found

    def plain(self, prompt: str, adapters: Sequence[Weighted] = ()) -> torch.Tensor:
        """What the module gives without a host, without being counted."""
        counted = len(self.forwards)
        with torch.inference_mode(), added("text_encoder", self.gate.layers, [(1, adapters)]):
            output: torch.Tensor = self.gate.forward(self.ids(prompt))[0]
        del self.forwards[counted:]
        return output

    def submit(self, prompt: str, mode: Mode, adapters: Sequence[Weighted] = ()) -> "Future[Any]":
        outcome: Future[Any] = Future()

        def done(result: Any, error: BaseException | None) -> None:
            outcome.set_exception(error) if error else outcome.set_result(result)

        self._host.engine.submit(Run(mode, lambda: self.module(self.ids(prompt))[0], done, adapters))
        return outcome

    def ask(self, prompt: str, mode: Mode, adapters: Sequence[Weighted] = ()) -> torch.Tensor:
        result: torch.Tensor = self.submit(prompt, mode, adapters).result()
        return result

    def ask_together(self, *prompts: str) -> list[torch.Tensor]:
        """In mode fast, in one forward."""
        go = threading.Event()
        self._host.engine.submit(Run("fast", go.wait, lambda *_: None))
        outcomes = [self.submit(prompt, "fast") for prompt in prompts]
        go.set()
        return [outcome.result() for outcome in outcomes]


@pytest.fixture
def encoder(host: Host) -> Encoder:
    return Encoder(host)


def adapter(encoder: Encoder, component: str = "text_encoder", seed: int = 0) -> Adapter:
    """Changes one layer of a component."""
    random = torch.Generator().manual_seed(seed)
    name, layer = next((n, part) for n, part in encoder.module.named_modules() if isinstance(part, torch.nn.Linear))
    down, up = torch.randn(2, layer.in_features, generator=random), torch.randn(layer.out_features, 2, generator=random)
    return Adapter({component: {name: LowRank(down, up, 1.0)}})


def latents_of(host: Host, **fields: Any) -> Any:
    """The final latents of one picture."""
    events: list[Event] = []
    asked = {"prompt": "red apple", "seed": 3, "num_inference_steps": 2, "output_type": "latent"}
    asyncio.run(host.dispatch("generate", asked | fields, "me", events.append))
    (latents,) = (event.latents for event in events if isinstance(event, Image))
    assert latents is not None
    return np.frombuffer(latents.data, latents.dtype).reshape(latents.shape)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_heard_before_costs_no_text_encoder_forward_and_changes_no_bit(
    host: Host, family: str, mode: Mode
) -> None:
    with host.store.leased(family) as lease:
        encoders = [part for name, part in lease.components.items() if name.startswith("text_encoder")]
    counted: list[str] = []
    for part in encoders:  # hooks of the module itself are called before its gate
        layer = next(layer for layer in part.modules() if isinstance(layer, torch.nn.Linear))
        layer.register_forward_hook(lambda *_: counted.append("forward"))
    first = latents_of(host, model=family, mode=mode, negative_prompt="a tiger")
    assert len(counted) >= 2 * len(encoders)
    again, other = (latents_of(host, model=family, mode=mode, negative_prompt=text) for text in ("a tiger", "a car"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    remembered = len(counted)
    assert np.array_equal(other, latents_of(host, model=family, mode=mode, negative_prompt="a car"))
    assert len(counted) == remembered


@pytest.mark.parametrize("mode", MODES)
def test_each_prompt_is_encoded_once_to_the_bits_of_the_module(encoder: Encoder, mode: Mode) -> None:
    for prompt in ("red apple", "tiger face", "red apple", "tiger face", "red apple"):
        assert torch.equal(encoder.ask(prompt, mode), encoder.plain(prompt))
    assert encoder.forwards == [1, 1]


def test_what_shared_a_forward_serves_only_runs_in_mode_fast(encoder: Encoder) -> None:
    prompts = ("red apple", "tiger face", "a car")
    together = encoder.ask_together(*prompts)
    assert encoder.forwards == [3]
    assert torch.equal(encoder.ask("tiger face", "fast"), together[1])
    assert encoder.forwards == [3]
    for mode in MODES[:2]:
        assert torch.equal(encoder.ask("tiger face", mode), encoder.plain("tiger face"))
    assert encoder.forwards == [3, 1]  # the second one was served by the first one's
    assert torch.equal(encoder.ask("tiger face", "fast"), encoder.plain("tiger face"))
    assert encoder.forwards == [3, 1]


def test_adapters_and_their_weights_are_part_of_what_is_asked(encoder: Encoder) -> None:
    one, two, elsewhere = adapter(encoder), adapter(encoder, seed=1), adapter(encoder, "unet", seed=2)
    sets: list[list[Weighted]] = [[], [(one, 1.0)], [(one, 0.5)], [(two, 1.0)], [(one, 1.0), (two, 1.0)]]
    results = []
    for _ in range(2):
        for adapters in sets:
            results.append(encoder.ask("red apple", "exact", adapters))
            assert torch.equal(results[-1], encoder.plain("red apple", adapters))
    assert len(encoder.forwards) == len(sets)
    assert not any(torch.equal(results[0], other) for other in results[1 : len(sets)])
    # one that changes another component changes nothing here
    assert torch.equal(encoder.ask("red apple", "exact", [(elsewhere, 1.0), (one, 0.5)]), results[2])
    assert len(encoder.forwards) == len(sets)


def test_options_are_part_of_what_is_asked_and_inputs_that_are_no_ids_are_not_remembered(
    host: Host, encoder: Encoder
) -> None:
    ids = encoder.ids("red apple")

    def run(**options: Any) -> Any:
        outcome: Future[Any] = Future()
        call = partial(encoder.module, ids, **options)
        host.engine.submit(Run("exact", call, lambda result, _: outcome.set_result(result)))
        return outcome.result()

    assert run().hidden_states is None
    for _ in range(2):
        assert len(run(output_hidden_states=True).hidden_states) == 4
    assert encoder.forwards == [1, 1]
    for _ in range(2):
        run(attention_mask=torch.ones(ids.shape))
    assert encoder.forwards == [1, 1, 1, 1]


def test_writing_into_what_was_given_changes_nothing_for_the_next(encoder: Encoder) -> None:
    for _ in range(3):
        given = encoder.ask("red apple", "exact")
        assert torch.equal(given, encoder.plain("red apple"))
        with torch.inference_mode():
            given.zero_()
    assert encoder.forwards == [1]


def test_the_latest_prompts_within_the_bound_are_remembered(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(host)
    monkeypatch.setattr(gates, "REMEMBERED_BYTES", 3 * encoder.plain("").nbytes)  # and some more for each, the pooled
    remove_gates([encoder.module])
    install_gate(encoder.module, "text_encoder")
    assert isinstance(encoder.gate, RememberingGate)
    for prompt in ("one", "two", "one", "three", "one", "two"):
        encoder.ask(prompt, "exact")
    assert len(encoder.forwards) == 4  # "two" was forgotten, "one" was not


def test_what_is_remembered_goes_with_the_module_and_keeps_no_adapter(host: Host, encoder: Encoder) -> None:
    mine = adapter(encoder)
    encoder.ask("red apple", "exact", [(mine, 1.0)])
    encoder.ask("red apple", "exact")
    gone = [weakref.ref(mine)]
    del mine
    gc.collect()
    assert gone[0]() is None
    before = encoder.ask("red apple", "exact")
    assert len(encoder.forwards) == 2
    gate = weakref.ref(encoder.gate)
    remove_gates([encoder.module])
    gc.collect()
    assert gate() is None
    host.store.shelf.put_away([key for key in host.store.shelf.contents() if key.model == "sd1"])
    again = Encoder(host)
    assert again.module is not encoder.module
    assert torch.equal(again.ask("red apple", "exact"), before)
    assert again.forwards == [1]
