"""The player in the built book: how MyST-NB shows it, and its scripts for pages without a kernel.

Registered under the entry point group ``myst_nb.mime_renderers``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

from pagedattn_lab.viz.player import HERE, MIME, SCRIPT, picture

if TYPE_CHECKING:
    from docutils.nodes import Element
    from myst_nb.core.render import MimeData, NbElementRenderer

WITHOUT_KERNEL = ("model.js", "recorder.js", "calculator.js", "lesson.js")
EXPORTS = "export default { render };\nexport { boardText, modelOf };\n"
FOR_SCRIPTS = "application/vnd.pagedattn-lab."  # what begins so is for scripts of the book, and shows nothing by itself
# What scripts of single pages are made of: the front page's and the sandbox's.
FOR_PAGES = (
    "BlockPool", "BlockTable", "NoFreeBlocksError", "Recorder", "ValueError",
    "boardText", "controlOf", "modelOf", "plural", "render",
)  # fmt: skip
BOOT = """
for (const mount of document.querySelectorAll(".pa-mount")) {
  const data = JSON.parse(mount.querySelector("script").textContent);
  mount.querySelector("svg").remove();
  playStored(data, mount);
}
for (const box of document.querySelectorAll(".picture")) {
  const [words] = box.querySelector("svg").getAttribute("aria-label").split(/[.:;] /);
  showScrolling(box, words);
}
"""


def book_source() -> str:
    """The player, and what answers a lesson's controls where no kernel does, in one scope and without exports."""
    if not SCRIPT.endswith(EXPORTS):
        raise ValueError(f"player.js must end with {EXPORTS!r}: the book's script is made by replacing that")
    return SCRIPT.removesuffix(EXPORTS) + "".join((HERE / name).read_text(encoding="utf-8") for name in WITHOUT_KERNEL)


def book_script() -> str:
    """The same as a classic script that mounts itself: unlike a module, it also runs on a page opened as a file."""
    return f"(() => {{\n{book_source()}{BOOT}window.pagedattn = {{ {', '.join(FOR_PAGES)} }};\n}})();\n"


class PlayerRenderer:
    """Shows a cell's player: its recording for the script, and a still picture for where no script runs."""

    mime_priority_overrides: ClassVar = [("html", MIME, 5)]

    @staticmethod
    def handle_mime(renderer: NbElementRenderer, data: MimeData, inline: bool) -> list[Element] | None:
        """Render one output; ``None`` leaves it to MyST-NB."""
        from docutils.nodes import raw

        if data.mime_type != MIME:
            return [] if data.mime_type.startswith(FOR_SCRIPTS) else None
        if inline:
            return None
        values = data.content
        still = picture(values, values["step"]).svg
        stored = values | data.output_metadata.get(MIME, {})
        text = json.dumps(stored).replace("<", "\\u003c")  # no tag, comment or script can begin or end in it
        html = f'<div class="pa-mount"><script type="application/json">{text}</script>{still}</div>'
        return [raw("", html, format="html")]
