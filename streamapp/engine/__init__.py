"""The engine: step-level continuous batching of diffusion models. Importing it imports no torch.

From a script::

    from streamapp.engine import Engine, Job, LoRA

    engine = Engine(device="cpu")
    engine.load("pocket", "streamapp/models/pocket", family="sd15")
    for seed in range(4):
        engine.submit(Job(model="pocket", prompt="a cute panda", width=128, height=128, guidance_scale=3, seed=seed))
    for event in engine.run():
        if event.kind == "image":
            event.value.save(f"{event.job_id}.png")
    engine.close()
"""

from streamapp.engine.engine import Engine
from streamapp.engine.errors import EngineError
from streamapp.engine.events import Event, Picture
from streamapp.engine.job import Control, Job, LoRA
from streamapp.engine.process import EngineProcess

__all__ = ["Control", "Engine", "EngineError", "EngineProcess", "Event", "Job", "LoRA", "Picture"]
