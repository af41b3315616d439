"""Step-level continuous batching: ``step()`` is schedule, run, retire.

Samples join and leave between ticks; those of one key (checkpoint, latent shape) share a denoiser forward whatever
their step, step count, sampler, guidance and prompt. Keys take turns, so none starves. The idea of scheduling per
iteration is Orca's (Yu et al., OSDI 2022), with a denoising step in place of a token. What is done is decoded beside
the ticks that follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from streamapp.engine import parked
from streamapp.engine.admission import Admission
from streamapp.engine.caps import Caps
from streamapp.engine.decoder import WAITING, Decoder
from streamapp.engine.errors import EngineError
from streamapp.engine.events import Event
from streamapp.engine.families import Device
from streamapp.engine.job import Job
from streamapp.engine.lane import attention, lane_of
from streamapp.engine.memory import memory_of
from streamapp.engine.queue import Queue
from streamapp.engine.sample import Sample, Shared
from streamapp.engine.tick import MemoryShort, Ticks
from streamapp.engine.tiers import Budgets
from streamapp.engine.weights import Weights


class Engine(Weights):
    """Draws jobs with loaded checkpoints, many at a time. Not thread-safe: one thread calls it.

    Args:
        device: ``cpu`` or ``cuda:0``.
        dtype: of the denoiser's weights and activations; ``auto``: by device and family, see
            :mod:`streamapp.engine.precision`.
        max_batch_rows: most denoiser rows in one tick; None learns it, see :mod:`streamapp.engine.caps`.
        threads: of the tensor library.
        clock: monotonic seconds (tests inject their own).
        preview_every: ticks of a sample between two ``preview`` events; 0 for none.
        decode_queue: finished samples that wait for their decoding or are in it, from which on none joins a batch;
            0 decodes between ticks instead of beside them.
        vram_bytes, ram_bytes: what weights may take in VRAM, and copies of them on the host; None: a share of it,
            see :mod:`streamapp.engine.tiers`.
        strict_precision: refuse to load rather than to take less precision where memory is short (``auto`` only).
        options: passed to every family's ``read`` and ``build``; ``channels_last`` (true): U-Nets keep their tensors
            so, which convolutions in half precision on a CUDA device are faster with.
    """

    def __init__(  # noqa: PLR0913 (each may be left out)
        self,
        device: str = "cpu",
        dtype: str = "float32",
        max_batch_rows: int | None = None,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
        *,
        preview_every: int = 0,
        decode_queue: int = WAITING,
        vram_bytes: int | None = None,
        ram_bytes: int | None = None,
        strict_precision: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.caps = Caps(max_batch_rows)
        self.clock = clock
        self._queue = Queue(self.caps)
        self.memory = memory_of(device, (options or {}).get("ledger"))
        self.admission = Admission(self.memory.size())
        self.strict_precision = strict_precision
        super().__init__(Device(device, dtype, threads), options or {}, Budgets(vram_bytes, ram_bytes))
        self._events: list[Event] = []
        #: Makes pictures of finished samples beside the ticks; its ``wake`` is called after each.
        self.decoder = Decoder(self.memory, lane_of(device), clock, decode_queue)
        self.ticks = Ticks(self.caps, self.memory, clock, preview_every, self.decoder.wait_all, self.admission)
        self._names = count(1)

    # Jobs.
    def submit(self, job: Job, job_id: str | None = None, images: Sequence[int] | None = None) -> str:
        """Queue a job, or only these of its ``images``; its id.

        Raises:
            EngineError: what is wrong with it, before anything ran.
        """
        job = job.check()
        checkpoint = self._complete(job)
        checkpoint.validate(job)
        name = job_id if job_id is not None else f"job-{next(self._names)}"
        adapters = tuple(sorted((lora.name, float(lora.weight)) for lora in job.loras if lora.weight))
        rows, shared = checkpoint.rows(job), Shared()
        self.admission.check(job, checkpoint.family, rows)
        for index in range(job.num_images) if images is None else images:
            self._queue.wait(Sample(name, index, job, rows=rows, adapters=adapters, shared=shared))
        return name

    def cancel(self, job_id: str, index: int | None = None) -> None:
        """Take a job's samples (or one) out before the next tick; each gets a ``cancelled`` event."""

        def hit(sample: Sample) -> bool:
            return sample.job_id == job_id and index in (None, sample.index)

        out = [*(sample for sample in self._queue if hit(sample)), *self.decoder.take(hit)]
        self._queue.keep(lambda sample: not hit(sample))
        self._events += [Event(job_id, sample.index, "cancelled") for sample in out]

    def park(self, job_id: str, index: int) -> bytes:
        """Take a sample out between two ticks: what is needed to draw it on, here or in another process.

        Raises:
            EngineError: ``unknown_sample`` for one that is not here (any more), or that is decoded right now.
        """

        def meant(sample: Sample) -> bool:
            return (sample.job_id, sample.index) == (job_id, index)

        for sample in self.decoder.take(meant, begun=False):
            return parked.park(sample, self._identity(sample))
        state = self.snapshot(job_id, index)
        self._queue.keep(lambda sample: not meant(sample))
        return state

    def snapshot(self, job_id: str, index: int) -> bytes:
        """What :meth:`park` gives, of a sample that is drawn on here (``unknown_sample``)."""
        sample = self._queue.find(job_id, index)
        if sample is None:
            message = f"image {index} of job {job_id!r} is not in the engine; it may be drawn already"
            raise EngineError("unknown_sample", message)
        return parked.park(sample, self._identity(sample))

    def snapshots(self) -> list[tuple[str, int, bytes]]:
        """Job, image and state of all samples under way."""
        return [(s.job_id, s.index, parked.park(s, self._identity(s))) for s in self._queue if s.step]

    def resume(self, state: bytes) -> str:
        """Draw a parked sample on, bit for bit as if nothing had been; the id of its job.

        Raises:
            EngineError: ``bad_state``, ``state_mismatch`` naming what differs (weights, precision, version),
                ``unknown_model`` and ``unknown_lora`` for what is not loaded, ``invalid_job`` for one that is here.
        """
        found = parked.read(state, self.device.name)
        sample = found.sample
        checkpoint = self._complete(sample.job)
        parked.check(found.identity, self._identity(sample))
        checkpoint.hold(sample)
        here = [(other.job_id, other.index) for other in (*self._queue, *self.decoder.samples)]
        if (sample.job_id, sample.index) in here:
            raise EngineError("invalid_job", f"image {sample.index} of job {sample.job_id!r} is being drawn already")
        if sample.steps and sample.step >= sample.steps:
            self.decoder.put(checkpoint, sample)
        elif sample.steps:
            self._queue.ready(sample)
        else:
            self._queue.wait(sample)
        return sample.job_id

    def step(self, timeout: float = 0.0) -> list[Event]:  # noqa: ARG002 (the hosts share this interface)
        """One tick: let samples join, run one batch, retire what is done; what happened meanwhile.

        Pictures come from the step in which their decoding is seen to have ended. An engine that is called directly
        waits, whatever the ``timeout``, only for a picture when it has nothing else to do.
        """
        self._prepare(self._queue.to_encode())  # at most one encode batch between two ticks
        if not self.decoder.full:
            self._queue.join()
        batch = self._queue.next_batch()
        if batch:
            self._tick(batch)
        elif not self._events:
            self.decoder.wait()
        events, self._events = [*self._events, *self.decoder.finished()], []
        return events

    def _tick(self, batch: list[Sample]) -> None:
        try:
            self._events += self.ticks.run(self._checkpoints[batch[0].job.model], batch)
        except MemoryShort as short:
            self._queue.part(batch, short.rows)
        except EngineError as error:
            self._fail(batch, error)
        else:
            self._retire(batch)

    def run(self) -> Iterator[Event]:
        """Step until idle."""
        while True:
            yield from self.step()
            if self.idle:
                return

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do or to tell."""
        return not self._queue and not self._events and not self.decoder

    @property
    def resting(self) -> bool:
        """Whether there is nothing to do until a picture is decoded: :meth:`step` would wait for it."""
        if self._events or self.decoder.told or self._queue.running:
            return False
        return self.decoder.full if self._queue else bool(self.decoder)

    def stats(self) -> dict[str, Any]:
        """Samples waiting, running and decoding, resident bytes by name, and the last ticks (key, rows, seconds)."""
        return {
            "waiting": self._queue.waiting,
            "running": self._queue.running,
            "decoding": len(self.decoder.samples),
            **self._sizes(),
            "attention": attention(self.device.name),
            "batches": self.caps.learned(),
            "ticks": list(self.ticks.figures),
        }

    def close(self) -> None:
        """Free everything; unfinished jobs are gone."""
        self._queue.keep(lambda _: False)
        self.decoder.close()
        for name in [*self._checkpoints, *self._controls]:
            self.unload(name)
        self.tiers.clear()

    # Schedule.
    def _prepare(self, samples: list[Sample]) -> None:
        """Make samples of one model ready to join."""
        if not samples:
            return
        began = self.clock()
        checkpoint = self._checkpoints[samples[0].job.model]
        try:
            checkpoint.prepare(samples)
        except EngineError as error:
            if len(samples) == 1:
                self._fail(samples, error)
                return
            for sample in samples:  # one of them is to blame: find it
                self._prepare([sample])
            return
        for sample in samples:
            checkpoint.hold(sample)
            sample.notes = (*sample.notes, *self._notes.get(sample.job.model, ()))
            sample.key = (sample.job.model, *checkpoint.key(sample))
            sample.spent("encode", self.clock() - began)
            self._queue.ready(sample)

    # Retire.
    def _retire(self, batch: list[Sample]) -> None:
        done = [sample for sample in batch if sample.step >= sample.steps]
        if not done:
            return
        self._queue.keep(lambda sample: sample.step < sample.steps or not sample.steps)
        for sample in done:
            self.decoder.put(self._checkpoints[sample.job.model], sample)

    def _fail(self, samples: Sequence[Sample], error: EngineError) -> None:
        """The jobs of these samples fail as a whole: their other images are taken out."""
        for job_id in dict.fromkeys(sample.job_id for sample in samples):
            self._queue.keep(lambda sample, gone=job_id: sample.job_id != gone)  # type: ignore[misc]
            self.decoder.take(lambda sample, gone=job_id: sample.job_id == gone)  # type: ignore[misc]
            self._events.append(Event(job_id, -1, "failed", error))
