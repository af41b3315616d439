"""A host's calls about weights, and what its child has loaded, so that the next one gets the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from streamapp.engine.tiers import Loaded
from streamapp.engine.wire import Call


class WeightCalls:
    """The engine's methods about weights, each carried out elsewhere; they return when that is done."""

    def _asked(self, method: str, *args: Any) -> Any:
        """What the engine's method of this name returned there; raises what it raised."""
        raise NotImplementedError

    def load(
        self,
        name: str,
        path: str | Path,
        family: str | None = None,
        variant: str | None = None,
        keep: Collection[str] = (),
    ) -> Loaded:
        """Load a checkpoint or a ControlNet; see :meth:`streamapp.engine.engine.Engine.load`."""
        loaded: Loaded = self._asked("load", name, absolute(path), family, variant, tuple(keep))
        return loaded

    def prefetch(self, path: str | Path, family: str | None = None, variant: str | None = None) -> None:
        """Read a checkpoint into RAM in the background."""
        self._asked("prefetch", absolute(path), family, variant)

    def prefetch_lora(self, path: str | Path) -> None:
        """Read a LoRA's file into RAM in the background."""
        self._asked("prefetch_lora", absolute(path))

    def unload(self, name: str) -> None:
        """Free a checkpoint, and the adapters and learned words loaded for it."""
        self._asked("unload", name)

    def load_lora(self, name: str, path: str | Path, model: str) -> Loaded:
        """Load an adapter."""
        loaded: Loaded = self._asked("load_lora", name, absolute(path), model)
        return loaded

    def unload_lora(self, name: str) -> None:
        """Forget an adapter."""
        self._asked("unload_lora", name)

    def load_embedding(self, name: str, path: str | Path, model: str) -> None:
        """Load a learned word."""
        self._asked("load_embedding", name, absolute(path), model)

    def unload_embedding(self, name: str) -> None:
        """Forget a learned word."""
        self._asked("unload_embedding", name)

    def encode_ahead(self, texts: Sequence[str], model: str, clip_skip: int = 1) -> None:
        """Encode prompts that jobs will have."""
        self._asked("encode_ahead", list(texts), model, clip_skip)


class KeptWeights:
    """The calls that loaded what is loaded, checkpoints before what is loaded for them."""

    def __init__(self) -> None:
        self._models: dict[str, Call] = {}
        self._added: dict[tuple[str, str, str], Call] = {}

    def __iter__(self) -> Iterator[Call]:
        yield from [*self._models.values(), *self._added.values()]

    def add(self, call: Call) -> None:
        """A ``load``, ``load_lora`` or ``load_embedding`` that went well."""
        if call.method == "load":
            self._models[call.args[0]] = call
        else:
            name, _, model = call.args
            self._added[call.method, name, model] = call

    def drop(self, call: Call) -> None:
        """An ``unload``, which takes what was loaded for the checkpoint with it, or one of another kind."""
        name = call.args[0]
        if call.method == "unload":
            self._models.pop(name, None)
            self._added = {key: loaded for key, loaded in self._added.items() if key[2] != name}
        else:
            gone = (call.method.removeprefix("un"), name)
            self._added = {key: loaded for key, loaded in self._added.items() if key[:2] != gone}


def absolute(path: str | Path) -> str:
    """A path that is the same in another process."""
    return str(Path(path).absolute())
