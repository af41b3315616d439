"""How the pocket model is made: ``python -m streamapp.training.pocket`` (``make pocket``).

Stages, each of which goes on where it was stopped: data (icons as pixels), vocabulary, VAE, latents, denoiser (U-Net
and text encoder), decoder (the VAE's second half again), export, styles (LoRAs), classifier, report. What they make
lies in a work folder.
"""
