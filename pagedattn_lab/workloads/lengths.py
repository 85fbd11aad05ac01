"""How long requests are, drawn from a seed (chapter 02).

* :func:`sharegpt` and :func:`alpaca` have the *mean* lengths that Kwon et al. 2023 report for these data sets (Fig. 11)
  and no sequence longer than the model that the paper served. Their shape is an assumption: lognormal, prompts and
  outputs independent, with the spread that the logarithms of the lengths have in the Azure trace of conversations.
  Trust their means; take their quantiles for those of a plausible chat service, not of these data sets.
* :func:`azure_conv` and :func:`azure_code` draw from quantile tables of the public Azure traces of 2023. Between two
  entries of a table lengths are taken as evenly spread, which puts the means within 1 % of the traces' own (outputs of
  the coding assistant: 4 % above, for their longest percent is steep). Prompts and outputs are drawn independently:
  in the traces their ranks correlate by 0.07 and by -0.02.

Source of the tables: *Azure LLM inference trace 2023*, github.com/Azure/AzurePublicDataset, CC-BY-4.0, described in
Patel et al. 2023, "Splitwise".
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from itertools import pairwise, repeat
from statistics import NormalDist

from pagedattn_lab.studies.paper import FIG_11

Lengths = Iterator[tuple[int, int]]

AZURE_SPREAD = (0.985, 0.859)
"""Standard deviation of the logarithms of prompt and output lengths in the Azure conversation trace."""

OPT_MAX_LEN = 2048
"""Positions that OPT models have, which the paper served."""

QUANTILE_LEVELS = (
    0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95,
    0.975, 0.99, 0.995, 0.999, 1,
)  # fmt: skip
"""The parts of all requests that :data:`AZURE_QUANTILES` has an entry for."""

AZURE_QUANTILES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "azure-conv": (
        (2, 29, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097, 1130, 1189, 1315, 1876, 2734, 4083,
         4092, 4142, 4831, 6179, 14050),
        (7, 16, 41, 54, 67, 77, 85, 91, 96, 103, 113, 129, 151, 177, 217, 384, 395, 400, 411, 424, 451, 522, 601, 643,
         954, 1000),
    ),
    "azure-code": (
        (3, 17, 75, 147, 232, 386, 578, 770, 939, 1075, 1261, 1469, 1690, 1909, 2164, 2433, 2744, 3192, 3920, 5188,
         7303, 7435, 7436, 7436, 7437, 7437),
        (6, 6, 6, 7, 7, 8, 9, 9, 10, 11, 12, 13, 14, 16, 18, 20, 24, 29, 39, 55, 90, 145, 251, 359, 825, 1899),
    ),
}  # fmt: skip
"""Lengths of prompts and of outputs at :data:`QUANTILE_LEVELS`, interpolated linearly between ranks."""


def lognormal(
    means: tuple[float, float],
    spread: tuple[float, float] = AZURE_SPREAD,
    longest: int = OPT_MAX_LEN,
    seed: int = 0,
) -> Lengths:
    """Draw pairs of prompt and output length without end: lognormal, independent, drawn again if longer than allowed.

    The medians are chosen so that the means come out as given *after* long pairs have been refused. No length is below
    1 token, which lifts very short means: 2 comes out as 2.2, 5 as 5.05.

    Args:
        means: mean tokens in prompts and outputs.
        spread: standard deviations of the logarithms of the two.
        longest: most tokens in prompt and output together.
        seed: same seed, same lengths.

    Raises:
        ValueError: a mean below 1, a spread below 0, or means that ``longest`` does not leave room for, so that less
            than one pair in a hundred would be kept.

    Example:
        >>> from itertools import islice
        >>> list(islice(lognormal((161.31, 337.99)), 3))
        [(44, 194), (70, 350), (45, 304)]
    """
    medians = _fit_medians(tuple(means), tuple(spread), longest)
    rng = random.Random(f"lengths {seed}")
    (prompt_mu, output_mu), (prompt_sigma, output_sigma) = map(math.log, medians), spread
    return _draw_lognormal(rng, prompt_mu, prompt_sigma, output_mu, output_sigma, longest)


def _draw_lognormal(
    rng: random.Random, prompt_mu: float, prompt_sigma: float, output_mu: float, output_sigma: float, longest: int
) -> Lengths:
    while True:
        prompt_len = max(1, round(rng.lognormvariate(prompt_mu, prompt_sigma)))
        output_len = max(1, round(rng.lognormvariate(output_mu, output_sigma)))
        if prompt_len + output_len <= longest:
            yield prompt_len, output_len


@cache
def _fit_medians(means: tuple[float, float], spread: tuple[float, float], longest: int) -> tuple[float, float]:
    """Find the medians that lead to given means once pairs longer than ``longest`` are refused.

    The mean output given a prompt has a closed form; over prompts we integrate numerically, in steps of a twentieth of
    a standard deviation. Medians are scaled by what the means are off, until they are not. Where fewer than one pair
    in a hundred would be kept, drawing would take for ever.
    """
    if min(means) < 1 or min(spread) < 0:
        raise ValueError(f"means {means} with spread {spread}: give means of at least 1 and spreads of at least 0")
    if sum(means) + 1 >= longest:
        raise ValueError(f"means {means} leave no room below {longest} tokens: raise longest")
    normal = NormalDist()
    steps = [step / 20 for step in range(-120, 121)]
    sigma = max(spread[1], 1e-9)
    with suppress(ArithmeticError):  # medians that run to zero or infinity are not found
        medians = [mean / math.exp(s * s / 2) for mean, s in zip(means, spread, strict=True)]
        for _ in range(200):
            kept = prompts = outputs = 0.0
            for step in steps:
                prompt = medians[0] * math.exp(spread[0] * step)
                if prompt >= longest:
                    break
                limit = math.log((longest - prompt) / medians[1]) / sigma
                weight = normal.pdf(step)
                accepted = weight * normal.cdf(limit)
                kept += accepted
                prompts += accepted * prompt
                outputs += weight * medians[1] * math.exp(sigma * sigma / 2) * normal.cdf(limit - sigma)
            factors = means[0] * kept / prompts, means[1] * kept / outputs
            medians = [median * factor for median, factor in zip(medians, factors, strict=True)]
            if max(abs(factor - 1) for factor in factors) < 1e-9 and kept > 0.01 * sum(map(normal.pdf, steps)):
                return medians[0], medians[1]
    raise ValueError(f"no lognormal lengths of spread {spread} up to {longest} tokens have the means {means}")


def from_quantiles(
    prompts: Iterable[float], outputs: Iterable[float], levels: Iterable[float] = QUANTILE_LEVELS, seed: int = 0
) -> Lengths:
    """Draw pairs of prompt and output length without end from tables of quantiles, evenly between two entries.

    Raises:
        ValueError: tables of different lengths, one that does not rise from 1 or more, or levels that do not rise from
            0 to 1.

    Example:
        >>> from itertools import islice
        >>> pairs = from_quantiles([1, 10, 100], [5, 5, 5], levels=[0, 0.5, 1])
        >>> sum(prompt <= 10 for prompt, _ in islice(pairs, 10_000))     # about half of them
        5038
    """
    levels, tables = tuple(levels), (tuple(prompts), tuple(outputs))
    if (levels[:1], levels[-1:]) != ((0,), (1,)) or not all(low < high for low, high in pairwise(levels)):
        raise ValueError(f"levels {levels} must rise from 0 to 1")
    for table in tables:
        rises = all(low <= high for low, high in pairwise((1, *table, math.inf)))
        if len(table) != len(levels) or not rises or table[-1] == math.inf:
            raise ValueError(f"{table} is no table of lengths: give {len(levels)} that rise from at least 1")
    rng = random.Random(f"lengths {seed}")
    return ((_interpolate(rng, levels, tables[0]), _interpolate(rng, levels, tables[1])) for _ in repeat(None))


def _interpolate(rng: random.Random, levels: tuple[float, ...], table: tuple[float, ...]) -> int:
    level = rng.random()
    index = bisect_right(levels, level) - 1
    part = (level - levels[index]) / (levels[index + 1] - levels[index])
    return round(table[index] + part * (table[index + 1] - table[index]))


def sharegpt(seed: int = 0) -> Lengths:
    """Lengths with the means of ShareGPT, the paper's chat load: see the module's text for what can be trusted."""
    return lognormal(FIG_11["sharegpt"], seed=seed)


def alpaca(seed: int = 0) -> Lengths:
    """Lengths with the means of Alpaca, the paper's load of short instructions."""
    return lognormal(FIG_11["alpaca"], seed=seed)


def azure_conv(seed: int = 0) -> Lengths:
    """Lengths distributed as in the Azure trace of conversations."""
    return from_quantiles(*AZURE_QUANTILES["azure-conv"], seed=seed)


def azure_code(seed: int = 0) -> Lengths:
    """Lengths distributed as in the Azure trace of a coding assistant: long prompts, very short outputs."""
    return from_quantiles(*AZURE_QUANTILES["azure-code"], seed=seed)


WORKLOADS: dict[str, Callable[[int], Lengths]] = {
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "azure-conv": azure_conv,
    "azure-code": azure_code,
}
"""Synthetic lengths by name; each takes a seed."""
