"""Where the published files of Flux.1 and Stable Diffusion 3 keep what diffusers' transformers call otherwise.

Black Forest Labs' and Stability AI's files join queries, keys and values (and in Flux's single blocks the feed-forward
layer's first half) in one matrix, and order the last modulation's halves as shift, scale where diffusers has scale,
shift. Nothing here knows a width: where a matrix is cut follows from the module that takes the pieces.

Sources: https://github.com/black-forest-labs/flux, https://github.com/Stability-AI/sd3.5
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]
#: Modules of the diffusers transformer, and of the file; pairs of one file's module are its rows in this order.
Pairs = Iterator[tuple[str, str]]
LEAVES = ("weight", "bias")


@dataclass(frozen=True, slots=True)
class Piece:
    """What a parameter takes of a file's tensor.

    Attributes:
        source: the tensor's name in the file, without the prefix of the transformer.
        begin, end: its rows; all where ``end`` is None.
        swapped: whether its halves change places.
    """

    source: str
    begin: int = 0
    end: int | None = None
    swapped: bool = False


def pieces(wanted: Shapes, modules: Pairs, swapped: frozenset[str], plain: Mapping[str, str]) -> dict[str, Piece]:
    """Every parameter and buffer of a transformer with the piece of the file that it takes.

    Args:
        wanted: the transformer's, with their shapes.
        modules: see :data:`Pairs`.
        swapped: the file's modules whose halves change places.
        plain: parameters (not modules) with their names in the file.
    """
    found = {name: Piece(source) for name, source in plain.items() if name in wanted}
    ends: dict[str, int] = {}
    last: dict[str, str] = {}
    for ours, theirs in modules:
        for leaf in LEAVES:
            name, source = f"{ours}.{leaf}", f"{theirs}.{leaf}"
            if name not in wanted:
                continue
            begin = ends.get(source, 0)
            ends[source] = begin + wanted[name][0]
            found[name] = Piece(source, begin, ends[source], theirs in swapped)
            last[source] = name
    # The last piece goes to the end: a matrix with more rows than its pieces take is another shape, not a longer one.
    for source, name in last.items():
        piece = found[name]
        found[name] = Piece(source, piece.begin, None, piece.swapped)
    return found


def flux(wanted: Shapes) -> dict[str, Piece]:
    """Of ``FluxTransformer2DModel`` in Black Forest Labs' layout."""
    norms = {f"{ours}.weight": f"{theirs}.scale" for ours, theirs in _flux_norms(_blocks(wanted))}
    return pieces(wanted, _flux_modules(wanted), frozenset({"final_layer.adaLN_modulation.1"}), norms)


def sd3(wanted: Shapes) -> dict[str, Piece]:
    """Of ``SD3Transformer2DModel`` in Stability AI's layout, 3 and 3.5."""
    last = _blocks(wanted)["transformer_blocks"] - 1
    # The last block changes the text no more: its modulation is a final one.
    swapped = {"final_layer.adaLN_modulation.1", f"joint_blocks.{last}.context_block.adaLN_modulation.1"}
    return pieces(wanted, _sd3_modules(wanted), frozenset(swapped), {"pos_embed.pos_embed": "pos_embed"})


#: By family.
LAYOUTS: Mapping[str, Callable[[Shapes], dict[str, Piece]]] = {"flux": flux, "sd3": sd3}


def _blocks(wanted: Shapes) -> dict[str, int]:
    counts = {"transformer_blocks": 0, "single_transformer_blocks": 0}
    for name in wanted:
        kind, _, rest = name.partition(".")
        if kind in counts:
            counts[kind] = max(counts[kind], int(rest.partition(".")[0]) + 1)
    return counts


def _flux_modules(wanted: Shapes) -> Pairs:
    yield from (
        ("x_embedder", "img_in"),
        ("context_embedder", "txt_in"),
        ("proj_out", "final_layer.linear"),
        ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    )
    for ours, theirs in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance")):
        for number, side in ((1, "in"), (2, "out")):
            yield f"time_text_embed.{ours}_embedder.linear_{number}", f"{theirs}_in.{side}_layer"
    counts = _blocks(wanted)
    for number in range(counts["transformer_blocks"]):
        ours, theirs = f"transformer_blocks.{number}", f"double_blocks.{number}"
        for suffix, side in (("", "img"), ("_context", "txt")):
            yield f"{ours}.norm1{suffix}.linear", f"{theirs}.{side}_mod.lin"
            yield f"{ours}.ff{suffix}.net.0.proj", f"{theirs}.{side}_mlp.0"
            yield f"{ours}.ff{suffix}.net.2", f"{theirs}.{side}_mlp.2"
        yield from _attention(f"{ours}.attn", f"{theirs}.img_attn.qkv", f"{theirs}.img_attn.proj")
        yield from _added(f"{ours}.attn", f"{theirs}.txt_attn.qkv", f"{theirs}.txt_attn.proj")
    for number in range(counts["single_transformer_blocks"]):
        ours, theirs = f"single_transformer_blocks.{number}", f"single_blocks.{number}"
        yield f"{ours}.norm.linear", f"{theirs}.modulation.lin"
        for module in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"):
            yield f"{ours}.{module}", f"{theirs}.linear1"
        yield f"{ours}.proj_out", f"{theirs}.linear2"


def _flux_norms(counts: Mapping[str, int]) -> Pairs:
    for number in range(counts["transformer_blocks"]):
        for added, side in (("", "img"), ("added_", "txt")):
            for letter, word in (("q", "query"), ("k", "key")):
                ours = f"transformer_blocks.{number}.attn.norm_{added}{letter}"
                yield ours, f"double_blocks.{number}.{side}_attn.norm.{word}_norm"
    for number in range(counts["single_transformer_blocks"]):
        for letter, word in (("q", "query"), ("k", "key")):
            ours = f"single_transformer_blocks.{number}.attn.norm_{letter}"
            yield ours, f"single_blocks.{number}.norm.{word}_norm"


def _sd3_modules(wanted: Shapes) -> Pairs:
    yield from (
        ("pos_embed.proj", "x_embedder.proj"),
        ("context_embedder", "context_embedder"),
        ("proj_out", "final_layer.linear"),
        ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    )
    for ours, theirs in (("timestep", "t"), ("text", "y")):
        yield f"time_text_embed.{ours}_embedder.linear_1", f"{theirs}_embedder.mlp.0"
        yield f"time_text_embed.{ours}_embedder.linear_2", f"{theirs}_embedder.mlp.2"
    for number in range(_blocks(wanted)["transformer_blocks"]):
        ours, theirs = f"transformer_blocks.{number}", f"joint_blocks.{number}"
        for suffix, side in (("", "x_block"), ("_context", "context_block")):
            yield f"{ours}.norm1{suffix}.linear", f"{theirs}.{side}.adaLN_modulation.1"
            yield f"{ours}.ff{suffix}.net.0.proj", f"{theirs}.{side}.mlp.fc1"
            yield f"{ours}.ff{suffix}.net.2", f"{theirs}.{side}.mlp.fc2"
        for attention, own in (("attn", "attn"), ("attn2", "attn2")):
            place = f"{theirs}.x_block.{own}"
            yield from _attention(f"{ours}.{attention}", f"{place}.qkv", f"{place}.proj")
            yield f"{ours}.{attention}.norm_q", f"{place}.ln_q"
            yield f"{ours}.{attention}.norm_k", f"{place}.ln_k"
        text = f"{theirs}.context_block.attn"
        yield from _added(f"{ours}.attn", f"{text}.qkv", f"{text}.proj")
        yield f"{ours}.attn.norm_added_q", f"{text}.ln_q"
        yield f"{ours}.attn.norm_added_k", f"{text}.ln_k"


def _attention(ours: str, joined: str, out: str) -> Pairs:
    yield from ((f"{ours}.to_{letter}", joined) for letter in "qkv")
    yield f"{ours}.to_out.0", out


def _added(ours: str, joined: str, out: str) -> Pairs:
    yield from ((f"{ours}.add_{letter}_proj", joined) for letter in "qkv")
    yield f"{ours}.to_add_out", out
