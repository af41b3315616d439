"""CLIP text encoders with weighted prompts of any length and learned words, and the cache of what they gave."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from streamapp.engine.adapters import Adapter, Combination
from streamapp.engine.embeddings import Embedding, Embeddings
from streamapp.engine.errors import EngineError
from streamapp.engine.mixing import Mixer
from streamapp.engine.prompts import MAX_WINDOWS, Window, windows

CACHE_BYTES = 64 * 1024**2
#: Windows of one encoder pass.
AT_ONCE = 32
#: Means below this share of the values' size are noise: nothing can be scaled back to them.
NO_MEAN = 1e-4


@dataclass(frozen=True)
class Wanted:
    """What decides an encoding, beside the encoder; ``clip_skip`` in A1111's count (1: the last layer)."""

    text: str
    clip_skip: int
    adapters: Combination
    #: Digests of the embeddings that the text names.
    embeddings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Conditioning:
    """A prompt as a denoiser takes it: ``text`` ``(tokens, width)``, ``pooled`` ``(width,)`` where a family has it."""

    text: torch.Tensor
    pooled: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        return sum(t.numel() * t.element_size() for t in (self.text, self.pooled) if t is not None)

    def zeros(self) -> Conditioning:
        """One of the same form that says nothing."""
        return Conditioning(torch.zeros_like(self.text), None if self.pooled is None else torch.zeros_like(self.pooled))


class ClipEncoder:
    """One tokenizer and its text encoder.

    Args:
        part: the component's name, by which adapters address it.
        layer: the hidden state that is taken where clip_skip asks for no earlier one: 1 the last, 2 the one before.
        norm: whether the encoder's last normalisation is applied to it.
    """

    def __init__(self, part: str, tokenizer: Any, model: Any, *, layer: int = 1, norm: bool = True) -> None:
        self.part = part
        self.model = model
        self.mixer = Mixer(part, model)
        self._tokenizer = tokenizer
        self._layer = layer
        self._norm = norm
        self._embeddings = Embeddings("", {})
        self._comma = tokenizer.get_vocab().get(",</w>")

    def hear(self, embeddings: Embeddings) -> None:
        """Let prompts name these."""
        self._embeddings = embeddings
        embeddings.longest = min(embeddings.longest, self._size)

    @property
    def _size(self) -> int:
        """Tokens of a window, without begin and end."""
        return int(self._tokenizer.model_max_length) - 2

    def windows(self, text: str) -> tuple[Window, ...]:
        """The prompt in this encoder's windows.

        Raises:
            EngineError: ``invalid_job`` for a prompt that is longer than can be drawn.
        """

        def tokenize(words: str) -> Sequence[int | tuple[int, ...]]:
            found: list[int | tuple[int, ...]] = []
            for piece in self._embeddings.pieces(words):
                if isinstance(piece, Embedding):
                    found.append(piece.tokens)
                else:
                    found += self._tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
            return found

        found = windows(text, tokenize, self._size, self._comma)
        if len(found) > MAX_WINDOWS:
            count = sum(len(window.tokens) for window in found)
            message = f"the prompt has {count} tokens in {len(found)} windows of {self._size};"
            message = f"{message} at most {MAX_WINDOWS} are drawn"
            raise EngineError("invalid_job", message, field="prompt")
        return found

    def check_skip(self, clip_skip: int) -> None:
        """Refuse to skip more layers than there are (``invalid_job``)."""
        most = int(self.model.config.num_hidden_layers)
        if not 1 <= clip_skip <= most:
            message = f"clip_skip is {clip_skip}, this checkpoint's text encoder takes 1 to {most}"
            raise EngineError("invalid_job", message, field="clip_skip")

    def encode(
        self, texts: Sequence[str], clip_skip: int, adapters: Combination, resident: Mapping[str, Adapter]
    ) -> list[Conditioning]:
        """Encode prompts; each has a multiple of the window's length in tokens (77 for CLIP)."""
        cut = [self.windows(text) for text in texts]
        every = [window for each in cut for window in each]
        passes = [every[start : start + AT_ONCE] for start in range(0, len(every), AT_ONCE)]
        encoded = [self._pass(some, clip_skip, adapters, resident) for some in passes]
        hidden = torch.cat([states for states, _ in encoded])
        pooled = torch.cat([p for _, p in encoded if p is not None]) if encoded[0][1] is not None else None
        results, first = [], 0
        for each in cut:
            rows = hidden[first : first + len(each)].flatten(0, 1)
            results.append(Conditioning(rows, None if pooled is None else pooled[first]))
            first += len(each)
        return results

    def _pass(
        self, some: Sequence[Window], clip_skip: int, adapters: Combination, resident: Mapping[str, Adapter]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states of windows, weighted, and their pooled vectors where the encoder projects."""
        device = self.model.device
        self.mixer.use([adapters] * len(some), resident)
        ids = torch.tensor([self._padded(window) for window in some], device=device)
        with self._embedded(ids):
            output = self.model(ids.clamp(min=0), output_hidden_states=True)
        self.mixer.use((), {})
        states = output.hidden_states[-max(self._layer, clip_skip)]
        if self._norm:
            states = self.model.text_model.final_layer_norm(states)
        rows = [_emphasis(state, window) for state, window in zip(states, some, strict=True)]
        return torch.stack(rows), getattr(output, "text_embeds", None)

    @contextmanager
    def _embedded(self, ids: torch.Tensor) -> Iterator[None]:
        """Meanwhile the vectors of embeddings stand in the places of their tokens, which are negative."""
        places = ids < 0
        if not places.any():
            yield
            return
        rows = torch.stack(self._embeddings.rows(self.part, ids[places].tolist()))

        def placed(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
            del module, given
            return output.masked_scatter(places[..., None], rows)

        hook = self.model.get_input_embeddings().register_forward_hook(placed)
        try:
            yield
        finally:
            hook.remove()

    def _padded(self, window: Window) -> list[int]:
        tokenizer = self._tokenizer
        ids = [tokenizer.bos_token_id, *window.tokens, tokenizer.eos_token_id]
        return ids + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids))


def _emphasis(state: torch.Tensor, window: Window) -> torch.Tensor:
    """Tokens times their weights, scaled so that the window's mean stays what it was (as A1111's ``Original``)."""
    if all(weight == 1.0 for weight in window.weights):
        return state
    factors = torch.ones(state.shape[0], 1, device=state.device, dtype=state.dtype)
    factors[1 : 1 + len(window.weights), 0] = torch.tensor(window.weights, device=state.device, dtype=state.dtype)
    weighted = state * factors
    before, after, size = state.mean(), weighted.mean(), state.abs().mean() * NO_MEAN
    if before.abs() < size or after.abs() < size:
        return weighted
    return weighted * (before / after)


class Encodings:
    """Encoded prompts within a budget of bytes, the least recently used go first."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._kept: OrderedDict[Wanted, Conditioning] = OrderedDict()
        self._bytes = 0

    def get(
        self,
        wanted: set[Wanted],
        encode: Callable[[Sequence[str], int, Combination], Sequence[Conditioning]],
    ) -> dict[Wanted, Conditioning]:
        """All that is wanted; ``encode`` is called for what is missing, once per combination and clip_skip."""
        found = {key: self._kept[key] for key in wanted if key in self._kept}
        for key in found:
            self._kept.move_to_end(key)
        missing: dict[tuple[int, Combination], list[Wanted]] = {}
        for key in sorted(wanted - found.keys(), key=lambda key: key.text):
            missing.setdefault((key.clip_skip, key.adapters), []).append(key)
        for (skip, adapters), keys in missing.items():
            for key, encoding in zip(keys, encode([key.text for key in keys], skip, adapters), strict=True):
                found[key] = self._kept[key] = encoding
                self._bytes += encoding.bytes
        while self._bytes > self._limit:
            self._bytes -= self._kept.popitem(last=False)[1].bytes
        return found

    def forget(self, adapter: str) -> None:
        """Drop what was encoded with an adapter."""
        for key in [key for key in self._kept if any(name == adapter for name, _ in key.adapters)]:
            self._bytes -= self._kept.pop(key).bytes

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()
        self._bytes = 0
