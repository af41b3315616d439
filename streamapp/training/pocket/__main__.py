"""``python -m streamapp.training.pocket``: all stages, or the ones that are named."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from streamapp.training.pocket import (
    card,
    classifier,
    data,
    decoder,
    denoiser,
    latents,
    parallel,
    styles,
    vae,
    vocabulary,
)
from streamapp.training.pocket.export import export
from streamapp.training.pocket.report import report
from streamapp.training.pocket.work import Work, default_folder

#: Steps of the long stages: a quarter of an hour, eighty minutes and three minutes on two free cores.
VAE_STEPS, DENOISER_STEPS, DECODER_STEPS = 3200, 13_000, 600


def stages(work: Work, processes: int, denoiser_steps: int) -> Mapping[str, Callable[[], object]]:
    """In their order."""
    return {
        "data": lambda: data.prepare(work),
        "vocabulary": lambda: vocabulary.learn(work),
        "vae": lambda: parallel.run(vae.train, processes, work, VAE_STEPS),
        "latents": lambda: latents.encode(work),
        "denoiser": lambda: parallel.run(denoiser.train, processes, work, denoiser_steps),
        "decoder": lambda: parallel.run(decoder.train, processes, work, DECODER_STEPS),
        "export": lambda: export(work),
        "styles": lambda: styles.train(work),
        "classifier": lambda: classifier.train(work),
        "report": lambda: report(work),
        "card": lambda: card.write(work),
    }


def main() -> None:
    """Run stages; each goes on where it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m streamapp.training.pocket", description=__doc__)
    parser.add_argument("--work", type=Path, default=default_folder(), help="folder for all files (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="that learn together, one thread each (%(default)s)")
    parser.add_argument("--denoiser-steps", type=int, default=DENOISER_STEPS, help="of 32 samples (%(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="of everything drawn by chance (%(default)s)")
    parser.add_argument(
        "stage",
        nargs="*",
        help="data vocabulary vae latents denoiser decoder export styles classifier report card; all unless named",
    )
    given = parser.parse_args()
    known = stages(Work(given.work, given.seed), given.processes, given.denoiser_steps)
    unknown = [name for name in given.stage if name not in known]
    if unknown:
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(known)}")
    for name, run in known.items():
        if not given.stage or name in given.stage:
            run()


if __name__ == "__main__":
    main()
