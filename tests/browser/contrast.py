"""The letters of a drawing, what lies under each, and the contrast between the two."""

from __future__ import annotations

# Each text's colour, and those of the shapes under its middle, from the top one down to one that hides what is below. A
# board's marks are left out: they may lie on several colours, and have an edge against them.
COLOURS = """svg => {
  const shown = (value, style, name) => [value, Number(style.opacity) * Number(style[`${name}Opacity`])];
  svg.scrollIntoView({ block: "center" });
  return [...svg.querySelectorAll("text:not(.pa-mark)")].flatMap((text) => {
    const { left, top, width, height } = text.getBoundingClientRect(), x = left + width / 2, y = top + height / 2;
    if (width === 0 || x < 0 || x > innerWidth || y < 0 || y > innerHeight) return [];
    const under = [];
    for (const shape of document.elementsFromPoint(x, y)) {
      if (!svg.contains(shape) || shape === svg || shape.closest("text")) continue;
      const style = getComputedStyle(shape), [fill, opacity] = shown(style.fill, style, "fill");
      if (fill === "none" || fill.startsWith("url")) continue;
      under.push([fill, opacity]);
      if (opacity === 1) break;
    }
    return [[text.textContent, getComputedStyle(text).fill, under]];
  });
}"""


def channels(colour: str) -> list[float]:
    """Read what a browser says of a colour: ``rgb(0, 114, 178)``."""
    return [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]


def contrast(colour: str, under: list[tuple[str, float]]) -> float:
    """Compute the contrast of a text's colour with what lies under it (WCAG 2.1, 1.4.3)."""
    seen = [0.0, 0.0, 0.0]
    for fill, opacity in reversed(under):
        seen = [below + opacity * (above - below) for below, above in zip(seen, channels(fill), strict=True)]
    low, high = sorted(map(luminance, (seen, channels(colour))))
    return (high + 0.05) / (low + 0.05)


def luminance(parts: list[float]) -> float:
    """Compute how light a colour is to the eye (WCAG 2.1, relative luminance)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
