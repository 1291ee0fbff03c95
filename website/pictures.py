"""Draws how the error travels under each rule, and what R compares: `python -m website pictures`.

The pictures are SVG files in `docs/pictures/`, one for each rule and one for backpropagation. Two forms are used. Rules
that act layer by layer are drawn in one layer: its forward path above, its backward path below, and between them the
signals that R compares. Rules for a whole network are drawn in a network of three layers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from website.pages import ROOT

FOLDER = ROOT / "docs" / "pictures"

WIDTH, HEIGHT = 480, 300
FORWARD, ERROR, RULE, PALE = "#1f3b63", "#b3441a", "#0f7a43", "#707070"
"""Colours of the forward path, of the error, of the rule, and of everything that is fixed or recorded."""

STYLE = {
    "forward": f'stroke="{FORWARD}" stroke-width="2"',
    "error": f'stroke="{ERROR}" stroke-width="4"',
    "rule": f'stroke="{RULE}" stroke-width="2.5" stroke-dasharray="7 4"',
    "pale": f'stroke="{PALE}" stroke-width="2" stroke-dasharray="2 4"',
}
"""Kind of a line -> its look. The kinds differ in width and dashes as well as in colour."""

COLOURS = {"forward": FORWARD, "error": ERROR, "rule": RULE, "pale": PALE}


class Drawing:
    """A picture in SVG.

    Args:
        title: a sentence that describes the picture, for readers who cannot see it.
    """

    def __init__(self, title: str):
        markers = "".join(
            f'<marker id="{kind}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="{3 if kind == "error" else 5}" '
            f'markerHeight="{3 if kind == "error" else 5}" orient="auto-start-reverse">'
            f'<path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
            for kind, colour in COLOURS.items()
        )
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            f'font-family="Helvetica, Arial, sans-serif" font-size="16" text-anchor="middle">',
            f"<title>{title}</title><defs>{markers}</defs>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        ]

    def line(self, kind: str, *points: tuple[float, float], both: bool = False, curve: bool = False) -> None:
        """Draws an arrow through points; with `curve` the second and third are the handles of a curve."""
        start, *rest = (f"{x:g} {y:g}" for x, y in points)
        path = f"M{start} C{' '.join(rest)}" if curve else f"M{start} L{' L'.join(rest)}"
        begin = f' marker-start="url(#{kind})"' if both else ""
        self.parts.append(f'<path d="{path}" fill="none" {STYLE[kind]} marker-end="url(#{kind})"{begin}/>')

    def text(
        self, x: float, y: float, text: str, kind: str = "forward", anchor: str = "middle", size: float = 16
    ) -> None:
        """Writes a line of text. `_` and `^` before one character or `{...}` lower or raise it."""
        place = f'x="{x:g}" y="{y:g}" fill="{COLOURS[kind]}" text-anchor="{anchor}" font-size="{size}"'
        self.parts.append(f"<text {place}>{marked(text, size)}</text>")

    def node(self, x: float, y: float, text: str, kind: str = "forward") -> None:
        """Draws a signal: a circle with a name."""
        dash = ' stroke-dasharray="2 4"' if kind == "pale" else ""
        self.parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="19" fill="white" stroke="{COLOURS[kind]}" stroke-width="2"{dash}/>'
        )
        size = 14 if len(text) < 5 else 11
        self.text(x, y + size / 3, text, kind, size=size)

    def box(self, x: float, y: float, text: str, kind: str = "forward", width: int = 52) -> None:
        """Draws weights: a box with a name."""
        dash = ' stroke-dasharray="2 4"' if kind == "pale" else ""
        self.parts.append(
            f'<rect x="{x - width / 2:g}" y="{y - 18:g}" width="{width}" height="36" rx="4" fill="#f3f3f3" '
            f'stroke="{COLOURS[kind]}" stroke-width="2.5"{dash}/>'
        )
        self.text(x, y + 6, text, kind, size=16 if width > 10 * len(text.strip("^_")) - 12 else 13)

    def svg(self) -> str:
        """Returns the text of the file."""
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def marked(text: str, size: float) -> str:
    """Returns text with raised and lowered parts, as `W_l` and `W^T`, in SVG."""
    shift, small = round(size * 0.3), round(size * 0.72)
    result, position = "", 0
    while position < len(text):
        if text[position] in "_^":
            sign = 1 if text[position] == "_" else -1
            end = text.index("}", position) if text[position + 1] == "{" else position + 1
            inner = text[position + 1 : end + 1].strip("{}")
            result += f'<tspan dy="{sign * shift}" font-size="{small}">{inner}</tspan>'
            result += f'<tspan dy="{-sign * shift}">&#8203;</tspan>'
            position = end + 1
        else:
            result += text[position].replace("&", "&amp;").replace("<", "&lt;")
            position += 1
    return result


# One layer: x, W and z above; the error, B and the error of the layer below under them; B^T x and B z between.
X, W, Z = (62, 58), (180, 58), (298, 58)
BELOW, B, ABOVE = (62, 238), (180, 238), (298, 238)
RECONSTRUCTION, PROJECTION = (62, 148), (298, 148)
LEARNED, FIXED = (121, 238), (239, 238)


def layer(
    title: str, backward: str = "B", inputs: str = "x", kind: str = "error", hidden: tuple[str, str, str] | None = None
) -> Drawing:
    """Draws the two paths of a layer.

    Args:
        title: as of `Drawing`.
        backward: the name of the weights of the backward path, or their formula.
        inputs: the name of the inputs.
        kind: kind of the backward path.
        hidden: the names of two kinds of backward weights, from the inputs to the outputs, with that of the hidden
            units between them.
    """
    picture = Drawing(title)
    through = "B" if hidden is None else f"B = {hidden[0]}{hidden[2]}"
    picture.text(12, 22, "layer l: forward path", "forward", "start", 14)
    picture.text(12, 290, f"backward path: the error travels through {through} in place of W^T", "error", "start", 14)
    picture.line("forward", (81, 58), (153, 58))
    picture.line("forward", (206, 58), (278, 58))
    picture.line("forward", (317, 58), (372, 58))
    picture.line("error", (424, 238), (320, 238))
    for start, end in ((279, 210), (153, 84)) if hidden is None else ((279, 261), (221, 202), (161, 143), (103, 84)):
        picture.line("error", (start, 238), (end, 238))
    picture.line("error", (43, 238), (8, 238))
    picture.node(*X, inputs)
    picture.box(*W, "W")
    picture.node(*Z, "z")
    picture.node(*ABOVE, "d", kind)
    if hidden is None:
        picture.box(*B, backward, kind, 52 if len(backward) < 4 else 96)
    else:
        picture.box(*LEARNED, hidden[0], kind, 36)
        picture.node(*B, hidden[1], kind)
        picture.box(*FIXED, hidden[2], kind, 36)
    picture.node(*BELOW, "Bd", kind)
    picture.text(376, 63, "to layer l+1", "forward", "start", 14)
    picture.text(376, 224, "from layer l+1", "error", "start", 14)
    return picture


def _project(picture: Drawing) -> None:
    """Draws B^T x, the projection of the input by B."""
    picture.line("forward", (75, 72), (162, 217))
    picture.line("forward", (200, 217), (282, 160))
    picture.node(*PROJECTION, "B^Tx")


def _reconstruct(picture: Drawing) -> None:
    """Draws B z, the reconstruction of the input from the output."""
    picture.line("forward", (285, 72), (196, 217))
    picture.line("forward", (161, 217), (78, 160))
    picture.node(*RECONSTRUCTION, "Bz")


def _compared(picture: Drawing, primitive: str) -> None:
    """Draws that R makes the two projections similar."""
    picture.line("rule", (298, 127), (298, 80), both=True)
    picture.text(308, 108, primitive, "rule", "start")
    picture.text(308, 126, "makes z and B^Tx similar", "rule", "start", 12)


def _small(picture: Drawing, primitive: str, x: float, y: float, what: str, anchor: str = "start") -> None:
    """Writes that a primitive keeps a signal or B small."""
    picture.text(x, y, primitive, "rule", anchor)
    picture.text(x, y + 16, f"keeps {what} small", "rule", anchor, 12)


def feedback() -> Drawing:
    """B is fixed."""
    picture = layer("Feedback alignment: the error travels through a fixed random B.")
    picture.text(180, 205, "random, never changes", "error", size=14)
    return picture


def signs(description: str, kernel: str, sizes: str) -> Drawing:
    """Returns the picture of a layer whose B has the signs of W.

    Args:
        description: one sentence about the rule.
        kernel: the formula of the backward weights.
        sizes: where the sizes of their entries come from.
    """
    picture = layer(description, kernel)
    picture.line("rule", (180, 78), (180, 216))
    picture.text(190, 140, "signs of W at every step,", "rule", "start", 14)
    picture.text(190, 158, sizes, "rule", "start", 14)
    return picture


def sign_symmetry() -> Drawing:
    """B has the signs of W."""
    description = "Sign symmetry: the backward weights are the signs of the forward weights."
    return signs(description, "sign(W)^T", "all entries of equal size")


def frsf() -> Drawing:
    """B has the signs of W and fixed sizes."""
    description = "Fixed random magnitudes: signs of W, sizes of the initial B."
    return signs(description, "sign(W)^T|M|", "sizes |M| drawn once")


def brsf() -> Drawing:
    """B has the signs of W and new sizes at every step."""
    description = "Redrawn magnitudes: signs of W, sizes drawn anew at every step."
    return signs(description, "sign(W)^T|M|", "sizes |M| drawn at every step")


def weight_mirror() -> Drawing:
    """Amp and decay."""
    picture = layer("Weight mirror: R makes the projections of noise by W and by B similar.", inputs="noise")
    _project(picture)
    _compared(picture, "amp")
    _small(picture, "decay", 8, 192, "B")
    return picture


def information() -> Drawing:
    """Amp, decay and null."""
    picture = layer("Information alignment: as weight mirror, and R keeps the reconstruction small.", inputs="noise")
    _project(picture)
    _reconstruct(picture)
    _compared(picture, "amp")
    _small(picture, "decay", 8, 192, "B")
    _small(picture, "null", 8, 108, "Bz")
    return picture


def symmetric() -> Drawing:
    """Self and decay."""
    picture = layer("Symmetric alignment: R makes B similar to the transpose of W.")
    picture.line("rule", (180, 78), (180, 217), both=True)
    picture.text(190, 130, "self", "rule", "start")
    picture.text(190, 146, "makes B and W^T similar", "rule", "start", 12)
    _small(picture, "decay", 190, 184, "B")
    return picture


def activation() -> Drawing:
    """Amp and sparse."""
    picture = layer("Activation alignment: R makes the projections of the input by W and by B similar.")
    _project(picture)
    _compared(picture, "amp")
    _small(picture, "sparse", 322, 160, "B^Tx")
    return picture


def kolen_pollack() -> Drawing:
    """Equal updates."""
    picture = layer("Kolen-Pollack: B gets the update of W, and both decay.")
    picture.line("rule", (180, 78), (180, 217))
    picture.text(190, 130, "angle", "rule", "start")
    picture.text(190, 146, "B gets the same update as W", "rule", "start", 12)
    picture.text(190, 178, "decay", "rule", "start")
    picture.text(190, 194, "shrinks W and B equally,", "rule", "start", 12)
    picture.text(190, 209, "so their difference fades", "rule", "start", 12)
    return picture


def pfa() -> Drawing:
    """Fixed and learned backward weights, with hidden units between them."""
    title = "Product feedback alignment: the error travels through fixed weights, hidden units and learned weights."
    picture = layer(title, hidden=("L", "r", "F"))
    picture.text(FIXED[0], 211, "F is random and never changes", "error", size=12)
    picture.line("rule", (68, 77), (116, 217))
    picture.text(122, 118, "angle", "rule", "start")
    picture.text(122, 134, "L gets the product of x and r", "rule", "start", 12)
    picture.text(122, 162, "decay", "rule", "start")
    picture.text(122, 178, "shrinks W and L equally", "rule", "start", 12)
    return picture


def align_prop() -> Drawing:
    """B is the initial W."""
    picture = layer("Align-prop: the error travels through the weights before training.", "W(0)^T")
    picture.line("pale", (180, 78), (180, 216))
    picture.text(190, 140, "copied once, before", "rule", "start", 14)
    picture.text(190, 158, "the first training step", "rule", "start", 14)
    return picture


# A network of three layers.
NODES, BOXES = (34, 150, 266, 382), (92, 208, 324)
NAMES = ("x", "h_1", "h_2", "f")
TOP, MIDDLE, LOW = 52, 142, 222


def network(title: str, y: float = TOP, weights: str = "W_{}", kind: str = "forward") -> Drawing:
    """Draws the forward path of a network, and its loss."""
    picture = Drawing(title)
    _chain(picture, y, weights, kind, NAMES)
    picture.line("forward", (401, y), (430, y))
    picture.box(450, y, "J", width=36)
    return picture


def _chain(picture: Drawing, y: float, weights: str, kind: str, names: tuple[str, ...]) -> None:
    """Draws nodes and weights from left to right."""
    for number, (box, left, right) in enumerate(zip(BOXES, NODES[:-1], NODES[1:], strict=True), start=1):
        picture.line(kind, (left + 19, y), (box - 24, y))
        picture.line(kind, (box + 23, y), (right - 20, y))
        picture.box(box, y, weights.format(number), kind, 46)
    for x, name in zip(NODES, names, strict=True):
        picture.node(x, y, name, kind)


def _errors(picture: Drawing, y: float, weights: Callable[[int], str], kind: str = "error") -> None:
    """Draws the error from the outputs back through weights."""
    picture.line("error", (450, TOP + 20), (450, y), (404, y))
    for number in (3, 2):
        box, right, left = BOXES[number - 1], NODES[number], NODES[number - 1]
        picture.line("error", (right - 20, y), (box + 26, y))
        picture.line("error", (box - 24, y), (left + 21, y))
        picture.box(box, y, weights(number), kind, 48)
    _error_nodes(picture, y)


def _error_nodes(picture: Drawing, y: float, numbers: tuple[int, ...] = (3, 2, 1)) -> None:
    """Draws the error at the outputs of layers."""
    for number in numbers:
        picture.node(NODES[number], y, f"e_{number}", "error")


def _updates(picture: Drawing, y: float, numbers: tuple[int, ...] = (3, 2, 1), text: str = "") -> None:
    """Draws that the error at the outputs of a layer, and its inputs, change W."""
    for number in numbers:
        x, box = NODES[number], BOXES[number - 1]
        picture.line("rule", (x - 12, y - 18), (box + 12, TOP + 22))
    if text:
        picture.text(12, 290, text, "rule", "start", 14)


def backprop() -> Drawing:
    """The error travels through the transpose of W."""
    picture = network("Backpropagation: the error travels through the transposes of the forward weights.")
    _errors(picture, 190, lambda number: f"W_{number}^T")
    _updates(picture, 190, text="dashed: error e_l and input h_{l-1} change W_l")
    picture.text(12, 268, "W^T must be known to the backward path: weight transport", "error", "start", 14)
    return picture


def align_zero() -> Drawing:
    """Errors and activities of the network at initialisation."""
    picture = network("Align-zero: error path and activities of the network at initialisation.")
    _chain(picture, MIDDLE, "W_{}(0)", "pale", ("x", "h_1(0)", "h_2(0)", "f(0)"))
    _errors(picture, LOW, lambda number: f"W_{number}(0)^T", "pale")
    for number in (3, 2, 1):
        picture.line("rule", (NODES[number] - 14, LOW - 16), (BOXES[number - 1] + 16, TOP + 22))
    for number in (2, 1):
        picture.line("rule", (NODES[number] + 12, MIDDLE - 17), (BOXES[number] - 12, TOP + 22))
    picture.line("rule", (NODES[0] + 12, MIDDLE - 17), (BOXES[0] - 12, TOP + 22))
    picture.text(12, 272, "dotted: the network before training, run on the same batch", "pale", "start", 14)
    picture.text(12, 292, "dashed: e_l and h_{l-1}(0) change W_l", "rule", "start", 14)
    return picture


def align_ada() -> Drawing:
    """Errors of the network at initialisation, current activities."""
    picture = network("Align-ada: error path of the network at initialisation, current activities.")
    _chain(picture, MIDDLE, "W_{}(0)", "pale", ("x", "h_1(0)", "h_2(0)", "f(0)"))
    _errors(picture, LOW, lambda number: f"W_{number}(0)^T", "pale")
    for number in (3, 2, 1):
        picture.line("rule", (NODES[number] - 14, LOW - 16), (BOXES[number - 1] + 16, TOP + 22))
    for number in (1, 2, 3):
        left, right = NODES[number - 1] + 8, BOXES[number - 1] - 4
        handles = (left + 12, TOP - 38), (right - 12, TOP - 38)
        picture.line("rule", (left, TOP - 18), *handles, (right, TOP - 22), curve=True)
    picture.text(12, 272, "dotted: the network before training, run on the same batch", "pale", "start", 14)
    picture.text(12, 292, "dashed: e_l and the current h_{l-1} change W_l", "rule", "start", 14)
    return picture


def _direct(title: str, target: bool, remark: str) -> Drawing:
    """Draws maps from the output error, or from the target, to each hidden layer."""
    picture = network(title)
    y, rows = 130, (230, 184)
    picture.line("error", (450, TOP + 20), (450, y), (404, y))
    start = [(430, 207), (404, 207)] if target else [(NODES[3], y + 20)]
    for number, row in zip((1, 2), rows, strict=True):
        box, node = BOXES[number], NODES[number]
        picture.line("error", *start, (start[-1][0], row), (box + 30, row))
        picture.line("error", (box - 26, row), (node, row), (node, y + 22))
        picture.box(box, row, f"M_{number}", "error")
    _error_nodes(picture, y)
    _updates(picture, y, text="dashed: error e_l and input h_{l-1} change W_l")
    if target:
        picture.node(449, 207, "y*")
    picture.text(12, 270, remark, "error", "start", 14)
    return picture


def dfa() -> Drawing:
    """The output error, directly."""
    remark = "fixed random maps M_l from the output error to each layer"
    return _direct("Direct feedback alignment: the output error reaches each layer by a map.", False, remark)


def drtp() -> Drawing:
    """The target, directly."""
    remark = "fixed random maps M_l from the target y* to each hidden layer"
    return _direct("Direct random target projection: the target reaches each layer by a map.", True, remark)


def last_layer() -> Drawing:
    """Only the readout learns."""
    picture = network("Last layer: only the readout is trained.")
    picture.line("error", (450, TOP + 20), (450, 190), (404, 190))
    _error_nodes(picture, 190, (3,))
    _updates(picture, 190, (3,))
    for box in BOXES[:2]:
        picture.text(box, TOP + 40, "fixed", "pale", size=14)
    picture.text(12, 268, "no error reaches the hidden layers", "error", "start", 14)
    picture.text(12, 290, "dashed: error e_3 and input h_2 change W_3", "rule", "start", 14)
    return picture


PICTURES: dict[str, Callable[[], Drawing]] = {
    each.__name__: each
    for each in (
        *(backprop, feedback, sign_symmetry, frsf, brsf, weight_mirror, information, symmetric, activation),
        *(kolen_pollack, pfa, align_prop, align_zero, align_ada, dfa, drtp, last_layer),
    )
}
"""Name of a rule in a configuration, or `backprop` -> the function that draws it."""


def write(folder: Path = FOLDER) -> list[Path]:
    """Writes all pictures; returns their files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        (folder / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")
    return [folder / f"{name}.svg" for name in PICTURES]
