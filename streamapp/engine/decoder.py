"""Decoding beside denoising: finished latents become pictures in a thread while the next batch is denoised.

The queue is bounded: while it is full no sample joins a batch, those that run go on. Pictures are decoded one at a
time, so a batch needs no more memory than one of its pictures; one that memory is short for is decoded in tiles.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamapp.engine.errors import EngineError
from streamapp.engine.events import Event
from streamapp.engine.families import Checkpoint
from streamapp.engine.lane import Lane
from streamapp.engine.memory import Memory, lost, ran_out, too_large
from streamapp.engine.sample import Sample

#: Finished samples that wait or are decoded, from which on no sample joins a batch.
WAITING = 32
#: Seconds without work after which the thread ends; the next picture starts one again.
IDLE_S = 5.0


@dataclass(eq=False, slots=True)
class _Work:
    """One picture to be made; ``wanted`` until somebody takes its sample back."""

    checkpoint: Checkpoint
    sample: Sample
    mark: Any
    wanted: bool = True


class Decoder:
    """Makes pictures of finished samples.

    Args:
        memory: that pictures are decoded in.
        lane: of the device.
        limit: samples that may wait until :attr:`full`; 0: no thread, every picture is made when it is put.
    """

    def __init__(self, memory: Memory, lane: Lane, clock: Callable[[], float], limit: int = WAITING) -> None:
        self._memory = memory
        self._lane = lane
        self._clock = clock
        self._limit = limit
        self._changed = threading.Condition()
        self._queued: deque[_Work] = deque()
        self._current: _Work | None = None
        self._done: list[Event] = []
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        #: Called by the thread after each picture.
        self.wake: Callable[[], None] = lambda: None
        #: When the picture that is decoded now was begun; None: none is.
        self.began: float | None = None

    def __bool__(self) -> bool:
        """Whether anything is left to decode or to tell."""
        return bool(self.samples or self._done or self._failure)

    @property
    def samples(self) -> list[Sample]:
        """Samples whose picture is not made yet."""
        with self._changed:
            current = [self._current] if self._current is not None and self._current.wanted else []
            return [work.sample for work in (*current, *self._queued)]

    @property
    def full(self) -> bool:
        """Whether no more samples should come to their end for now."""
        return 0 < self._limit <= len(self.samples)

    @property
    def told(self) -> bool:
        """Whether :meth:`finished` has something to say."""
        return bool(self._done or self._failure)

    def put(self, checkpoint: Checkpoint, sample: Sample) -> None:
        """Have a finished sample's picture made; it keeps only what that takes."""
        sample.memory = sample.noise = sample.cond = sample.uncond = sample.input = None
        work = _Work(checkpoint, sample, None)
        if not self._limit or sample.job.output == "latent":
            self._done.append(self._made(work))
            return
        if sample.latents is not None:
            sample.latents = sample.latents.clone()  # a view of its last batch's buffer
        work.mark = self._lane.mark()
        with self._changed:
            self._queued.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine-decode", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def finished(self) -> list[Event]:
        """What came of the samples since.

        Raises:
            BaseException: what ended the device while a picture was decoded.
        """
        with self._changed:
            failure, self._failure = self._failure, None
            done, self._done = self._done, []
        if failure is not None:
            raise failure
        return done

    def wait(self) -> None:
        """Until a picture is made, or none is left to make."""
        with self._changed:
            self._changed.wait_for(lambda: self.told or not self.samples)

    def wait_all(self) -> bool:
        """Until all pictures are made; whether there were any."""
        with self._changed:
            return bool(self.samples) and self._changed.wait_for(lambda: not self._queued and self._current is None)

    def take(self, wanted: Callable[[Sample], bool], *, begun: bool = True) -> list[Sample]:
        """Take samples out; with ``begun`` also the one that is decoded, whose picture is dropped then."""
        with self._changed:
            current = [self._current] if begun and self._current is not None and self._current.wanted else []
            taken = [work for work in (*current, *self._queued) if wanted(work.sample)]
            for work in taken:
                work.wanted = False
            self._queued = deque(work for work in self._queued if work.wanted)
            self._changed.notify_all()
        return [work.sample for work in taken]

    def close(self) -> None:
        """Drop what waits; returns when the picture that is decoded is made."""
        self.take(lambda _: True)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._thread is None)
            self._closed, self._done, self._failure = False, [], None

    # The thread.
    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queued or self._closed, IDLE_S)
                if not self._queued:
                    self._thread = None
                    self._changed.notify_all()
                    return
                work = self._current = self._queued.popleft()
                self.began = self._clock()
            failure, event = None, None
            try:
                with self._lane.entered(work.mark):
                    event = self._made(work)
            except Exception as error:  # noqa: BLE001 (whatever it is belongs to the thread that asks for pictures)
                failure = error
            with self._changed:
                self._current = self.began = None
                self._failure = self._failure or failure
                if event is not None and work.wanted:
                    self._done.append(event)
                self._changed.notify_all()
            self.wake()

    def _made(self, work: _Work) -> Event:
        """A sample's picture, or why there is none."""
        sample, began = work.sample, self._clock()
        try:
            picture = self._picture(work.checkpoint, sample)
        except EngineError as error:
            picture = error
        except Exception as error:
            # A picture that cannot be made is its own loss; a device that is lost is everybody's.
            if lost(error):
                raise
            picture = EngineError("decode_failed", f"the picture could not be decoded: {error}")
        sample.spent("decode", self._clock() - began)
        if isinstance(picture, EngineError):
            return Event(sample.job_id, sample.index, "failed", picture)
        if hasattr(picture, "info"):
            picture.info["seconds"] = dict(sample.seconds)
        return Event(sample.job_id, sample.index, "image", picture)

    def _picture(self, checkpoint: Checkpoint, sample: Sample) -> Any:
        for tiled in (False, True):
            try:
                return checkpoint.decode([sample], tiled)[0]
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
            # Only here: the error's traceback held what the work had taken.
            self._memory.free()
        return too_large(sample.job)
