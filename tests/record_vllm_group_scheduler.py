"""Write down what vLLM's own ``Scheduler`` does over several groups of layers, for ``test_vllm_group_scheduler.py``.

Not part of the tests, which need no vLLM. To record anew, in an environment that has vLLM (a CPU build will do):

    VLLM_TARGET_DEVICE=cpu python tests/record_vllm_group_scheduler.py [FIRST STOP FILE]

Without arguments it records seeds 0 to 29 into ``vllm_group_scheduler.json``. A step is written as
``record_vllm_scheduler.py`` writes it, with a list of blocks for each group of each request.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests import record_vllm_scheduler
from tests.record_vllm_groups import draw_settings, vllm_groups

TRANSCRIPT = Path(__file__).parent / "vllm_group_scheduler.json"


class Recorder(record_vllm_scheduler.Recorder):
    """One scheduler of vLLM's over several groups, and the list of its steps."""

    def __init__(self, seed: int) -> None:
        self.settings = draw_settings(random.Random(seed), seed)
        super().__init__(seed)

    def make_scheduler(self) -> Any:
        self.block_size, self.caching = self.settings["block_size"], self.settings["enable_prefix_caching"]
        self.num_blocks = self.settings["num_blocks"]
        budget = self.options["max_num_batched_tokens"]
        if budget is not None:  # vLLM wants no more requests in a step than tokens
            self.options["max_num_seqs"] = min(budget, self.options["max_num_seqs"] or budget)
        return super().make_scheduler()

    def max_in_flight_tokens(self) -> int:
        return self.options["max_num_batched_tokens"] or 8192

    def cache_config(self) -> Any:
        from vllm.v1.kv_cache_interface import KVCacheConfig

        interval = self.settings["retention_interval"]
        return KVCacheConfig(self.num_blocks, [], vllm_groups(self.settings), prefix_cache_retention_interval=interval)

    def most_tokens(self) -> int:
        return (self.num_blocks - 1) // len(self.settings["groups"]) * self.block_size

    def block_ids(self, name: str) -> list:
        return list(self.scheduler.kv_cache_manager.get_block_ids(name))

    def run(self, num_steps: int) -> dict[str, Any]:
        run = super().run(num_steps)
        return {"groups": self.settings["groups"], "retention_interval": self.settings["retention_interval"]} | run


def main(first: int = 0, stop: int = 30, file: str | Path = TRANSCRIPT) -> None:
    """Record schedulers, thirty of them unless said otherwise."""
    import vllm

    runs = ",\n".join(json.dumps(Recorder(seed).run(40), separators=(",", ":")) for seed in range(first, stop))
    Path(file).write_text(f'{{"vllm": "{vllm.__version__}", "runs": [\n{runs}\n]}}\n')
    print(f"wrote {file}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(*map(int, arguments[:2]), *arguments[2:])
