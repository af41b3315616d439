"""Training goes on where it was stopped, and gives a pipeline that others read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from streamapp.engine import Engine, Job
from streamapp.engine.architectures import Architecture, Text
from streamapp.engine.single_file import read_single_file
from streamapp.training.pocket import decoder, denoiser, latents, networks, parallel, vae, vocabulary
from streamapp.training.pocket.export import export, pipeline
from streamapp.training.pocket.optimizer import Optimizer, average
from streamapp.training.pocket.work import Work


@pytest.fixture
def ready(work: Work, monkeypatch: pytest.MonkeyPatch) -> Work:
    """A work folder in which the denoiser can learn."""
    monkeypatch.setattr(vocabulary, "CAPTIONS", 300)
    monkeypatch.setattr(vocabulary, "MERGES", 200)
    vocabulary.learn(work)
    parallel.run(vae.train, 1, work, 2)
    latents.encode(work)
    return work


def weights(work: Work, file: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(work.path(file), weights_only=True)
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[part][name], other[part][name]) for part in one for name in one[part])


def test_the_autoencoder_goes_on_bit_for_bit(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    vae.train(0, 1, work, 4)
    whole = weights(work, "vae.pt")["networks"]
    work.path("vae.pt").unlink()

    class Stopped(Exception):
        pass

    taken = average

    def stop(*arguments: Any) -> None:
        taken(*arguments)
        if work.path("vae.pt").exists():
            raise Stopped

    monkeypatch.setattr("streamapp.training.pocket.kept.EVERY_S", 0.0)
    monkeypatch.setattr(vae, "average", stop)
    with pytest.raises(Stopped):
        vae.train(0, 1, work, 4)
    assert weights(work, "vae.pt")["step"] == 1
    monkeypatch.setattr(vae, "average", taken)
    vae.train(0, 1, work, 4)
    assert same(weights(work, "vae.pt")["networks"], whole)


def test_a_finished_stage_keeps_what_was_noted_of_it(work: Work) -> None:
    vae.train(0, 1, work, 1)
    noted = json.loads(work.path("run.json").read_text())
    assert noted["vae"]["from"] == 0
    vae.train(0, 1, work, 1)
    assert json.loads(work.path("run.json").read_text()) == noted


def test_folding_changes_no_picture_and_levels_the_latents() -> None:
    torch.manual_seed(0)
    model = networks.vae().eval()
    pictures = torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        raw = model.encode(pictures).latent_dist
        before = model.decode(raw.mean).sample
        mean, spread = raw.mean.mean(dim=(0, 2, 3)), raw.mean.std(dim=(0, 2, 3))
        latents.fold(model, mean, spread)
        after = model.encode(pictures).latent_dist
        assert torch.allclose(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
        assert torch.allclose(after.mean.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4)
        assert torch.allclose(after.std * spread.view(-1, 1, 1), raw.std, rtol=1e-4)
        assert torch.allclose(model.decode(after.mean).sample, before, atol=1e-4)


def test_the_denoiser_learns_and_the_export_draws(ready: Work) -> None:
    denoiser.train(0, 1, ready, 6)
    told = ready.path("denoiser.pt")
    assert weights(ready, told.name)["step"] == 6
    folder = export(ready)
    engine = Engine(max_batch_rows=2)
    engine.load("m", folder)
    engine.submit(Job(model="m", prompt="a ball", width=128, height=128, num_inference_steps=2, guidance_scale=3))
    pictures = [event.value for event in engine.run() if event.kind == "image"]
    engine.close()
    assert [picture.size for picture in pictures] == [(128, 128)]
    assert not list(Path(folder).glob("**/*.bin"))
    _one_file_holds_the_same(ready, folder)


def _one_file_holds_the_same(work: Work, folder: Path) -> None:
    def config(part: str) -> Any:
        return json.loads((folder / part).read_text())

    parts = [config(f"{part}/config.json") for part in ("unet", "vae", "text_encoder")]
    small = Architecture("small", parts[0], parts[1], (Text(parts[2]),), config("scheduler/scheduler_config.json"))
    one = read_single_file(work.path("pocket.safetensors"), torch.float32, architecture=small, tokenizer=lambda _: None)
    for part, network in (("unet", one.unet), ("vae", one.vae)):
        stored = load_file(folder / part / "diffusion_pytorch_model.safetensors")
        found = network.state_dict()
        assert found.keys() == stored.keys()
        assert all(torch.equal(found[name], stored[name].float()) for name in stored)


def test_the_decoder_learns_on_and_the_latents_stay(ready: Work) -> None:
    denoiser.train(0, 1, ready, 1)
    before = latents.folded_vae(ready).state_dict()
    decoder.train(0, 1, ready, 2)
    after = pipeline(ready).vae.state_dict()
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder", "post_quant_conv"}


def test_prompts_become_whole_windows(ready: Work) -> None:
    tokenizer = vocabulary.load(ready)
    ids = denoiser.tokens(tokenizer, ["a ball", "ball " * 40], 2)
    assert ids.shape == (4, networks.WINDOW)
    assert set(ids[:, 0].tolist()) == {tokenizer.bos_token_id}
    assert set(ids[:, -1].tolist()) == {tokenizer.eos_token_id}
    assert (ids[1] == tokenizer.eos_token_id).sum() == networks.WINDOW - 1  # the second window of a short prompt
    again = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert again == "a ball"


def test_muon_and_adamw_share_the_weights() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    optimizer = Optimizer(dict(net.named_parameters()), 1e-2, 1e-2, 10)
    torch.autograd.backward(net(torch.ones(1, 3, 3, 3)).square().sum())
    optimizer.step(1)
    assert all(not torch.equal(before[name], weight) for name, weight in net.named_parameters())
    assert all(weight.grad is None for weight in net.parameters())


#: In a process of its own: what watches over spawned processes would outlive the test.
AVERAGED = """
import sys, torch
import subprocess
import sys
from pathlib import Path
from streamapp.training.pocket import parallel
from streamapp.training.pocket.optimizer import average

def learn(rank, processes, folder):
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.full((3,), float(rank + 1))
    average([weight], 1 / processes)
    Path(folder, str(rank)).write_text(str(weight.grad.tolist()))

if __name__ == "__main__":
    parallel.run(learn, 2, sys.argv[1])
"""


def test_gradients_are_the_mean_of_all_processes(tmp_path: Path) -> None:
    script = tmp_path / "averaged.py"
    script.write_text(AVERAGED)
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=120)
    assert [(tmp_path / name).read_text() for name in "01"] == [str([1.5, 1.5, 1.5])] * 2
