"""What a model's cache gets of a GPU, to the block, as vLLM computes and logs it (chapter 10).

The way of a budget: a model's configuration (:mod:`~pagedattn_lab.budget.models`) becomes the specs of its layers
(:mod:`~pagedattn_lab.budget.layers`) and its weights (:mod:`~pagedattn_lab.budget.weights`), a GPU becomes the memory
that is left for a cache (:mod:`~pagedattn_lab.budget.memory`), and the two become blocks, tokens and concurrency
(:mod:`~pagedattn_lab.budget.compute`), in the formulas and words of a version of vLLM
(:mod:`~pagedattn_lab.budget.versions`). :func:`plan` goes all of it; :mod:`~pagedattn_lab.budget.advice` and
:mod:`~pagedattn_lab.budget.lengths` go it the other way round.
"""

from __future__ import annotations

from pagedattn_lab.budget.advice import Change, first_change, largest_context, smallest_gpu
from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.budget.estimate import Estimate
from pagedattn_lab.budget.lengths import BlockSize, Users, block_size_advice, users
from pagedattn_lab.budget.models import known_models, load_config
from pagedattn_lab.budget.options import Options
from pagedattn_lab.budget.plan import plan, plan_longest
from pagedattn_lab.budget.result import Budget, Rank

__all__ = [
    "BlockSize",
    "Budget",
    "BudgetError",
    "Change",
    "Estimate",
    "Options",
    "Rank",
    "Users",
    "block_size_advice",
    "first_change",
    "known_models",
    "largest_context",
    "load_config",
    "plan",
    "plan_longest",
    "smallest_gpu",
    "users",
]
