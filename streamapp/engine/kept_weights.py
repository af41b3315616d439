"""What a child process has loaded, so that the next one gets the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from streamapp.engine.wire import Call


class KeptWeights:
    """The calls that loaded what is loaded, checkpoints before their adapters."""

    def __init__(self) -> None:
        self._models: dict[str, Call] = {}
        self._loras: dict[tuple[str, str], Call] = {}

    def __iter__(self) -> Iterator[Call]:
        yield from [*self._models.values(), *self._loras.values()]

    def add(self, call: Call) -> None:
        """A ``load`` or ``load_lora`` that went well."""
        if call.method == "load":
            self._models[call.args[0]] = call
        else:
            name, _, model = call.args
            self._loras[name, model] = call

    def drop(self, call: Call) -> None:
        """An ``unload``, which takes the checkpoint's adapters with it, or ``unload_lora``."""
        name = call.args[0]
        place = 1 if call.method == "unload" else 0
        if call.method == "unload":
            self._models.pop(name, None)
        self._loras = {key: loaded for key, loaded in self._loras.items() if key[place] != name}


def absolute(path: str | Path) -> str:
    """A path that is the same in another process."""
    return str(Path(path).absolute())
