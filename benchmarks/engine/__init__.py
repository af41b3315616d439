"""How much of a tick is the denoiser's own forward, and what adapters, joins and neighbours cost."""
