"""How the pocket model is made: ``python -m streamapp.training.pocket`` (``make pocket``).

Stages, each of which goes on where it was stopped: pictures (icons as pixels), scenes (what is shown and said), VAE,
latents, denoiser (U-Net and text encoder), export, classifier, LoRAs, report. What they make lies in a work folder.
"""
