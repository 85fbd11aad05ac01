"""Sentences: what they render is what was passed, and a number that is typed is found out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedattn_lab.viz.sentence import bare_numbers, say


def test_a_sentence_says_the_same_everywhere() -> None:
    """Catches a plain text that differs from the Markdown, or holds an address: nbval compares the plain text too."""
    sentence = say("**{size:.1f} MB** for {count:,} tokens of {who!r}.", size=1.25, count=12000, who="Ada")
    assert sentence._repr_mimebundle_() == {"text/markdown": repr(sentence), "text/plain": repr(sentence)}
    assert repr(sentence) == "**1.2 MB** for 12,000 tokens of 'Ada'."


@given(
    st.integers(0, 10**7),
    st.floats(0, 1e6),
    st.sampled_from(["{n} of {x}", "{n:,} ({x:.1f} %)", "**{x:8.2e}** $\\times$ {n:>5}", "{{{n}}} on an A100: {x:g}×"]),
)
def test_values_arrive_as_format_puts_them(n: int, x: float, template: str) -> None:
    """Catches a value that is rounded, dropped or escaped differently from ``str.format``."""
    assert say(template, n=n, x=x).text == template.format(n=n, x=x)


@given(st.integers(0, 10**9), st.sampled_from(["", " %", "×", "x", "K", "-byte", ".5", " tokens.", ")", "–", ","]))
def test_a_typed_number_is_refused(number: int, unit: str) -> None:
    """Catches a number that slips into the template: before or after a field, with a unit or without."""
    typed = f"{number:,}"
    for template in (
        f"It took {typed}{unit}",
        f"{{n}} of {typed}{unit}",
        f"{typed}{unit} of {{n}}",
        f"{{n}}{typed}{unit}",
    ):
        if unit == "," and template.endswith("{n}"):
            continue
        with pytest.raises(ValueError, match=r"is typed into the sentence: write \{name\} in its place"):
            say(template, n=1)


def test_missing_and_unused_values_are_refused() -> None:
    """Catches a sentence that lost its value, and a value that lost its sentence."""
    with pytest.raises(KeyError, match="tokens"):
        say("After {tokens} tokens.")
    with pytest.raises(ValueError, match=r"no \{blocks\} in the sentence"):
        say("After {tokens} tokens.", tokens=3, blocks=1)


@pytest.mark.parametrize(
    "text",
    [
        "SmolLM2-135M in fp16, bf16 or int32 on an A100 (sm_80); Llama-3.1-8B; a gfx942; OPT-13B; `V1`; E4M3.",
        "# 03 · Blocks",
        "| 02 Contiguous caches | |\n| [04 · Page tables](04.ipynb) | |",
        "## 2 · A cache in five lines\n\n### 1 · Merge",
        "1. one\n2. two\n\n   3. three",
        "**1.** A request\n\n**2. Where?**",
        "chapter 04; chapters 05 and 06, Chapters 01, 03 and 07, section 6, sections 1–3, exercise 3",
        "(§7.1), §§3 and 4, Fig. 2, Figs. 2 and 13, Figure 1, Table 1, vLLM issue 13596, arXiv 2309.06180",
        "`16` and ``a `8` b`` and\n```python\nx = 8\n```\n",
        "$2^{10}$, $x = 3$ and\n\n$$\n\\frac{1}{2}\n$$\n",
        "[the paper](https://arxiv.org/abs/2309.06180), https://example.org/12 and <https://example.org/7>",
        '<img src="a.svg" alt="words" width="300"> &#8594; <!-- 12 -->',
        "In 2023, 1999 or 2029; SOSP 2023. vLLM 0.33.0.",
    ],
)
def test_digits_that_are_no_figures(text: str) -> None:
    """Catches a rule that grew too strict: a name, a reference or a piece of code that would need a mark."""
    assert bare_numbers(text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("20.4–38.2 % of 12,288 tokens", ["20.4", "38.2", "12,288"]),
        ("a 16-bit cache, 2x, 12GB, 15.7K, 1st", ["16", "2", "12", "15.7", "1"]),
        ("the factor is $10$, not $x + 10$", ["10"]),
        ("2,023 tokens, 1989, 2030, 2023.5", ["2,023", "1989", "2030", "2023.5"]),
        ("| 7.00 | 8 |\n|---|---|", ["7.00", "8"]),
        ("## 2 · All 7 blocks", ["7"]),
        ("1. costs 5", ["5"]),
        ("| 12 tokens | [16 of them](x) |", ["12", "16"]),
        ("see chapter 04, 96 % of it, chapters 05 and 06, 12 times", ["96", "12"]),
        ("−1 is no slot; block 0; row 2", ["1", "0", "2"]),
        ("Python 3.11, [12 of them](https://example.org/13)", ["3.11", "12"]),
    ],
)
def test_digits_that_are_figures(text: str, found: list[str]) -> None:
    """Catches a rule that grew too lax: a figure that nobody would have to account for."""
    assert bare_numbers(text) == found
