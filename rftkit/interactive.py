"""Two things to try by hand in a notebook or on its page: a jigsaw, and a slider over the checkpoints of a run.

Each is one piece of HTML with its own short script, nothing loaded from elsewhere. It is written so that it can be read without the
script: the jigsaw is then a picture with its answer folded away, the slider a list of all checkpoints.
Replies of a model are text to be shown: they are escaped, and no script reads them.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Mapping, Sequence

from PIL import Image

from rftkit import jigsaw
from rftkit.config import UserError

SIDE = 84  # pixels on the page, of a tile

# Colours are the page's own, so that both are readable in light and dark; what is chosen shows by its border as well.
STYLE = """<style>
.rftkit-hand button {{ padding: 0; border: 3px solid transparent; background: none; line-height: 0; cursor: pointer }}
.rftkit-hand button[aria-pressed=true] {{ border: 3px dashed currentColor }}
.rftkit-hand .tiles {{ display: grid; grid-template-columns: repeat({cols}, max-content); gap: 2px; margin: .5em 0 }}
.rftkit-hand .check {{ padding: .4em 1em; border: 1px solid currentColor; color: inherit; font: inherit; line-height: 1.2 }}
</style>"""

SWAP = """<script>
(() => {
  const box = document.getElementById("KEY"), tiles = [...box.querySelectorAll(".tiles button")];
  const told = box.querySelector("[role=status]"), check = box.querySelector(".check");
  let chosen = null, swaps = 0;
  const name = button => `tile ${button.dataset.tile}, on place ${tiles.indexOf(button) + 1}`;
  const label = button => button.setAttribute("aria-label", name(button));
  const swap = (a, b) => {
    for (const what of ["tile", "home"]) [a.dataset[what], b.dataset[what]] = [b.dataset[what], a.dataset[what]];
    const [x, y] = [a.firstElementChild, b.firstElementChild];
    a.append(y); b.append(x); label(a); label(b);
  };
  tiles.forEach(button => {
    label(button);
    button.addEventListener("click", () => {
      if (chosen && chosen !== button) { swap(chosen, button); swaps += 1; told.textContent = `Swaps so far: ${swaps}.`; }
      if (chosen) { chosen.setAttribute("aria-pressed", "false"); chosen = null; }
      else { chosen = button; button.setAttribute("aria-pressed", "true"); told.textContent = `Chosen: ${name(button)}. Which one shall it change places with?`; }
    });
  });
  check.hidden = false;
  check.addEventListener("click", () => {
    const right = tiles.filter((button, place) => Number(button.dataset.home) === place + 1).length;
    told.textContent = `${right} of ${tiles.length} tiles are in their place. Swaps so far: ${swaps}.`;
  });
})();
</script>"""

SLIDE = """<script>
(() => {
  const box = document.getElementById("KEY"), frames = [...box.querySelectorAll(".frame")], bar = box.querySelector("input");
  const show = () => { frames.forEach((frame, i) => { frame.hidden = i !== Number(bar.value); }); bar.setAttribute("aria-valuetext", frames[bar.value].dataset.name); };
  box.querySelector(".bar").hidden = false;
  bar.addEventListener("input", show);
  show();
})();
</script>"""


def jigsaw_by_hand(puzzle: jigsaw.Puzzle, reply: str, who: str = "the model") -> str:
    """HTML of a puzzle to be solved by swapping tiles, and, folded away, the answer and what `reply` made of it.

    Raises UserError for a puzzle whose answer is not in the forward convention, as the text speaks of that one only.
    """
    if puzzle.convention != "forward":
        raise UserError("The jigsaw to try by hand explains the forward convention only: make the puzzle with it.")
    rows, cols = puzzle.rows, puzzle.cols
    buttons = "".join(
        f'<button type="button" aria-pressed="false" data-tile="{tile}" data-home="{home}">{_image(piece, f"tile {tile}")}</button>'
        for tile, (home, piece) in enumerate(
            zip(puzzle.permutation, jigsaw.cut(puzzle.image, rows, cols), strict=True), 1
        )
    )
    read = jigsaw.parse(reply, rows, cols)
    if read.status == "ok":
        made = jigsaw.restore(puzzle.image, read.indices, rows, cols)
        hits = round(jigsaw.hit_fraction(read, puzzle.answer) * rows * cols)
        outcome = f"{hits} of {rows * cols} tiles right.<br>{_image(made, f'the picture as {who} puts it together', SIDE * cols)}"
    else:
        outcome = "No order of the tiles can be read from that."
    body = (
        f"<p>Choose a tile, then the one to change places with. Then ask how many are right.</p>"
        f'<div class="tiles">{buttons}</div>'
        '<p><button type="button" class="check" hidden>How many are right?</button> <span role="status"></span></p>'
        f"<details><summary>What {html.escape(who)} says, and the answer</summary>"
        f"<p>{html.escape(who)}: <code>{html.escape(reply)}</code></p><p>{outcome}</p>"
        f"<p>The answer, the place of each tile as shown, in reading order: {' '.join(map(str, puzzle.answer))}.</p></details>"
    )
    return _piece("rftkit-hand", STYLE.format(cols=cols) + body, SWAP)


def slider(frames: Mapping[str, str], what: str) -> str:
    """HTML of one frame at a time, chosen by a slider called `what`; `frames` are pieces of HTML by their names.

    Raises UserError for fewer than two frames.
    """
    if len(frames) < 2:
        raise UserError(f"A slider over {what} needs two frames or more, not {len(frames)}.")
    bar = (
        f'<p class="bar" hidden><label>{html.escape(what)} '
        f'<input type="range" min="0" max="{len(frames) - 1}" value="0" step="1"></label></p>'
    )
    shown = "".join(
        f'<div class="frame" data-name="{html.escape(name)}"><p><strong>{html.escape(name)}</strong></p>{frame}</div>'
        for name, frame in frames.items()
    )
    return _piece("rftkit-slider", bar + shown, SLIDE)


def meters(shares: Mapping[str, float]) -> str:
    """HTML bars of shares from 0 to 1, each with its name and its number."""
    if wrong := [name for name, share in shares.items() if not 0 <= share <= 1]:
        raise UserError(f"A bar shows a share from 0 to 1, and {', '.join(wrong)} is none: divide first.")
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left">{html.escape(name)}</th><td><meter min="0" max="1" value="{share:.3f}" '
        f'aria-label="{html.escape(name)}">{share:.0%}</meter> {share:.1%}</td></tr>'
        for name, share in shares.items()
    )
    return f"<table>{rows}</table>"


def replies(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """HTML of a table of texts, all escaped."""
    head = "".join(f'<th scope="col" style="text-align:left">{html.escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="text-align:left">{html.escape(str(cell))}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def show(piece: str) -> None:
    """Display a piece of HTML made here in a notebook."""
    from IPython.display import HTML, display  # here, so that the command line needs no IPython

    display(HTML(piece))


def _piece(kind: str, body: str, script: str) -> str:
    """The same content has the same id on every run, and the script finds it by that."""
    key = f"{kind}-{hashlib.sha256(body.encode()).hexdigest()[:12]}"
    return f'<div class="{kind}" id="{key}">{body}</div>{script.replace("KEY", key)}'


def _image(image: Image.Image, alt: str, side: int = SIDE) -> str:
    out = io.BytesIO()
    image.save(out, format="PNG")
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" width="{side}" style="image-rendering: pixelated">'
