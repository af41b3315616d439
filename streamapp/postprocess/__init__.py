"""From the engine's pixels to the file that a user receives, and back to its recipe. Blocks: call it in threads."""

from streamapp.postprocess.encoders import ENCODERS, Encoder, read_infotext, read_recipe
from streamapp.postprocess.finish import Encoded, finish_picture

__all__ = ["ENCODERS", "Encoded", "Encoder", "finish_picture", "read_infotext", "read_recipe"]
