"""The player: step through a recording or some pictures, in JupyterLab, in the built book, and as a still picture.

The scripts beside this module are the one source of what moves; :mod:`pagedattn_lab.viz.board` draws the still.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from pagedattn_lab.recorder import Recorder
from pagedattn_lab.recorder.frame import Frame
from pagedattn_lab.viz import MIME, Picture
from pagedattn_lab.viz.board import describe, show_frame
from pagedattn_lab.viz.tiles import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HERE = Path(__file__).parent
SCRIPTS = (
    "looks.js",
    "tiles.js",
    "tables.js",
    "board.js",
    "motion.js",
    "text.js",
    "scrolling.js",
    "player.js",
)  # one module, in this order
SCRIPT = "".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)

Source = Recorder | Mapping[str, Any] | Picture | Sequence[Picture]
Tokens = Mapping[str, Sequence[int | str]]


def recording(
    source: Source, tokens: Tokens | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> dict[str, Any]:
    """Turn something into what a player plays: JSON values with a list of frames.

    Args:
        source: a recorder, a saved recording (:func:`pagedattn_lab.recorder.load`), or one or more pictures.
        tokens: each request's tokens, to stand in the cells of the drawing: texts, or ids for ``tokenizer``.
        tokenizer: turns ids into texts.

    Returns:
        ``frames``; of a recorder also ``num_blocks``, ``block_size`` and its ``ops``, which no player shows.

    Raises:
        ValueError: no frame at all, ids without a tokenizer, or tokens of a request that no frame shows.

    Example:
        >>> pictures = [Picture("<svg></svg>", alt="first"), Picture("<svg></svg>", alt="second")]
        >>> recording(pictures)["frames"][1]["sentence"]
        'second'
    """
    if isinstance(source, Recorder):
        source = source.to_dict() | {"ops": source.ops}
    if isinstance(source, Mapping):
        made = {name: value for name, value in source.items() if name != "format"}
    else:
        pictures = [source] if isinstance(source, Picture) else list(source)
        made = {"frames": [_picture_frame(picture) for picture in pictures]}
    if not made.get("frames"):
        raise ValueError("there is no frame to play: record at least one event, or give at least one picture")
    if tokens:
        names = {table["name"] for frame in made["frames"] for table in frame.get("tables", ())}
        strangers = [name for name in tokens if name not in names]
        if strangers:
            raise ValueError(
                f"no frame shows a request {strangers[0]!r}: name one of {', '.join(sorted(names)) or 'none'}"
            )
        made["words"] = {name: [_word(token, tokenizer) for token in row] for name, row in tokens.items()}
    return made


def played(made: Mapping[str, Any]) -> dict[str, Any]:
    """A recording without what was done: the frames tell a player all that it needs."""
    return {name: value for name, value in made.items() if name != "ops"}


def picture(made: Mapping[str, Any], step: int) -> Picture:
    """Draw one frame of a recording."""
    frame = made["frames"][step]
    if "svg" in frame:
        return Picture(frame["svg"], frame.get("alt", frame["sentence"]), frame["sentence"])
    frames = [Frame.from_dict(each, made["block_size"]) for each in made["frames"]]
    return show_frame(frames[step], made.get("words"), among=frames)


class Player(anywidget.AnyWidget):
    """A recording with buttons, a scrubber and keys to step through it; blocks and table entries answer each other.

    Args:
        source, tokens, tokenizer: what to play; see :func:`recording`.
        label: what the player shows, in a few words; screen readers announce it.
        step: the frame to begin with, negative ones counted from the end.

    Attributes:
        step: the frame shown, from 0. The reader moves it, and so may you.

    Raises:
        ValueError: no frame, no label, or a first step that does not exist.
        traitlets.TraitError: ``step`` is set to a frame that does not exist.

    Example:
        >>> from pagedattn_lab.block_pool import BlockPool
        >>> from pagedattn_lab.block_table import BlockTable
        >>> pool = BlockPool(num_blocks=4, block_size=4)
        >>> recorder = Recorder(pool)
        >>> _ = recorder.add("Ada", BlockTable(pool)).append_tokens(5)
        >>> player = Player(recorder, "One request", step=0)
        >>> player.step = 1
        >>> player
        Player('One request', step 1 of 1): Ada appends 5 tokens and takes blocks 1 and 2 from the head of the free queue. 3 usable blocks of 4 tokens. Ada: 5 tokens in blocks 1 (4/4), 2 (1/4). Free queue: 3.
    """  # noqa: E501

    _esm = SCRIPT
    _css = HERE / "player.css"

    recording = traitlets.Dict().tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        source: Source,
        label: str,
        *,
        step: int = -1,
        tokens: Tokens | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if not label.strip():
            raise ValueError("a player needs a label: say in a few words what it shows")
        made = recording(source, tokens, tokenizer)
        last = len(made["frames"]) - 1
        if not -last - 1 <= step <= last:
            raise ValueError(f"there is no frame {step}: give a step from 0 to {last}, or from −{last + 1} to −1")
        super().__init__(recording=played(made), step=step % (last + 1), label=label)

    @property
    def frames(self) -> list[dict[str, Any]]:
        """What there is to show."""
        return self.recording["frames"]

    @property
    def picture(self) -> Picture:
        """The frame shown, as a still picture with its text equivalent."""
        return picture(self.recording, self.step)

    def play(self, source: Source) -> None:
        """Show something else: at its end if this stood at its end, else at the same step, or the last there is."""
        made = recording(source)
        step = self.step_in(len(made["frames"]) - 1)
        with self.hold_sync(), self.hold_trait_notifications():
            self.recording = played(made)
            self.step = step

    def step_in(self, last: int) -> int:
        """Where this player would stand in another recording whose last frame is ``last``."""
        return last if self.step == len(self.frames) - 1 else min(self.step, last)

    @traitlets.validate("step")
    def _check_step(self, proposal: traitlets.Bunch) -> int:
        last = len(self.frames) - 1
        if not 0 <= proposal.value <= last:
            raise traitlets.TraitError(f"there is no frame {proposal.value}: give a step from 0 to {last}")
        return proposal.value

    @property
    def alt(self) -> str:
        """The frame shown, in words."""
        frame = self.frames[self.step]
        if "svg" in frame:
            return frame.get("alt", frame["sentence"])
        return describe(Frame.from_dict(frame, self.recording["block_size"]))

    def __repr__(self) -> str:
        error = f" {self.error}, so still" if self.error else ""
        return f"Player({self.label!r}, step {self.step} of {len(self.frames) - 1}):{error} {self.alt}"

    def bundle(self) -> dict[str, Any]:
        """The shown frame for every reader but JupyterLab: the recording as JSON, a still picture, and words."""
        data = {"label": self.label, "step": self.step, **self.recording}
        return {MIME: data, "image/svg+xml": self.picture.svg, "text/plain": repr(self)}

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        return data | self.bundle(), metadata


def _picture_frame(picture: Picture) -> dict[str, Any]:
    alt = {} if picture.caption == picture.alt else {"alt": picture.alt}
    return {"sentence": picture.caption, **alt, "svg": picture.svg}


def _word(token: int | str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if isinstance(token, str):
        return visible(token)
    if tokenizer is None:
        raise ValueError(f"token {token} is an id: give the tokenizer that it belongs to, or the tokens as texts")
    return visible(tokenizer.decode([token]))
