"""Write down what vLLM's own ``Scheduler`` does with random loads, for ``test_vllm_scheduler.py`` to compare.

Not part of the tests, which need no vLLM. To record anew, in an environment that has vLLM (a CPU build will do):

    VLLM_TARGET_DEVICE=cpu python tests/record_vllm_scheduler.py

Every step is one list: what came and what was given up before it, what was scheduled and preempted, who runs and waits
then, with which blocks, what was sampled, who ended, and last the free queue.

One thing is left out, because we differ on purpose. With priorities a request can be preempted that had tokens in the
very same step. vLLM has remembered the blocks that these fill by then, and goes on finding them, though nobody computes
them; we forget them. A load ends before the first such step.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

TRANSCRIPT = Path(__file__).parent / "vllm_scheduler.json"
STOP = 2
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 16,
    "max_position_embeddings": 8192, "torch_dtype": "float32",
}  # fmt: skip


class Remembered(Exception):
    """A block was remembered that will not be computed."""


class Recorder:
    """One scheduler of vLLM's, and the list of its steps."""

    def __init__(self, seed: int) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import init_none_hash

        init_none_hash(sha256)
        self.rng = rng = random.Random(seed)
        self.block_size = rng.choice([1, 1, 2, 3, 4, 16])
        self.num_blocks = rng.randint(4, 14)
        self.caching = seed % 3 > 0
        self.options = {
            "max_num_batched_tokens": rng.choice([None, None, None, 1, 3, 7, 20]),
            "max_num_seqs": rng.choice([None, None, None, 3]),
            "policy": "priority" if seed % 2 else "fcfs",
            "watermark": rng.choice([0.0, 0.0, 0.0, 0.1, 0.25, 0.5]),
            "long_prefill_token_threshold": rng.choice([None, None, 3, 5]),
        }
        self.scheduler = self.make_scheduler()
        self.preempted: list[str] = []
        self.preempt = self.scheduler._preempt_request
        self.scheduler._preempt_request = self.note_preemption
        self.steps: list[list] = []
        self.num_made = 0

    def make_scheduler(self) -> Any:
        """Make vLLM's scheduler of the options that were drawn."""
        from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.structured_output import StructuredOutputManager

        budget, max_num_seqs = self.options["max_num_batched_tokens"], self.options["max_num_seqs"]
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(MODEL))
            model_config = ModelConfig(model=folder, skip_tokenizer_init=True, dtype="float32")
        config = VllmConfig(
            model_config=model_config,
            cache_config=CacheConfig(block_size=self.block_size, enable_prefix_caching=self.caching),
            scheduler_config=SchedulerConfig(
                max_model_len=8192,
                is_encoder_decoder=False,
                max_num_batched_tokens=self.max_in_flight_tokens(),
                max_num_scheduled_tokens=budget or 8192,
                max_num_seqs=max_num_seqs or 256,
                policy=self.options["policy"],
                watermark=self.options["watermark"],
                long_prefill_token_threshold=self.options["long_prefill_token_threshold"] or 0,
                async_scheduling=False,
            ),
        )
        config.cache_config.num_gpu_blocks = self.num_blocks
        return Scheduler(config, self.cache_config(), StructuredOutputManager(config), block_size=self.block_size)

    def max_in_flight_tokens(self) -> int:
        """Tokens of one step at most, as far as windows count on it."""
        return 8192

    def cache_config(self) -> Any:
        """One group of layers with full attention."""
        import torch
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

        spec = FullAttentionSpec(block_size=self.block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
        return KVCacheConfig(self.num_blocks, [], [KVCacheGroupSpec(["layer"], spec)])

    def note_preemption(self, request: Any, *arguments: Any, **options: Any) -> None:
        manager = self.scheduler.kv_cache_manager.coordinator.single_type_managers[0]  # all have dealt with as many
        num_remembered = manager.num_cached_block.get(request.request_id, 0) * self.block_size
        if self.caching and num_remembered > request.num_computed_tokens:
            raise Remembered
        self.preempt(request, *arguments, **options)
        self.preempted.append(request.request_id)

    def most_tokens(self) -> int:
        """Tokens that all blocks can hold."""
        return (self.num_blocks - 1) * self.block_size

    def block_ids(self, name: str) -> list:
        """The blocks of a request that runs."""
        return self.scheduler.kv_cache_manager.get_block_ids(name)[0]

    def come(self) -> list:
        """Add a request that begins as others do, and that all blocks can hold."""
        from vllm.sampling_params import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request

        rng, most = self.rng, self.most_tokens()
        length = rng.randint(1, min(most, rng.choice([1, 3, 4 * self.block_size + 1, 8 * self.block_size])))
        max_tokens = rng.randint(1, min(most - length + 1, rng.choice([2, 40, 40])))
        tokens: list[int] = []
        while len(tokens) < length:
            tokens += [rng.choice([0, 0, 1])] * rng.choice([self.block_size, self.block_size, 1])
        tokens = tokens[:length]
        name, salt = f"r{self.num_made}", rng.choice([None, None, None, "a"])
        priority, arrival_time = rng.randint(0, 2), self.num_made // 2
        self.num_made += 1
        self.scheduler.add_request(
            Request(
                request_id=name,
                prompt_token_ids=tokens,
                sampling_params=SamplingParams(max_tokens=max_tokens, stop_token_ids=[STOP]),
                pooling_params=None,
                arrival_time=arrival_time,
                priority=priority,
                cache_salt=salt,
                block_hasher=get_request_block_hasher(self.block_size, sha256),
            )
        )
        return [name, "".join(map(str, tokens)), salt, max_tokens, priority, arrival_time]

    def give_up(self) -> list[str]:
        from vllm.v1.request import RequestStatus

        names = [name for name in self.scheduler.requests if self.rng.random() < 0.007]
        for name in names:
            self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        return names

    def step(self, may_come: bool) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        scheduler = self.scheduler
        came = [self.come() for _ in range(self.rng.choice([0, 0, 0, 1, 2, 4]))] if may_come else []
        gone = self.give_up()
        self.preempted = []
        output = scheduler.schedule()
        scheduled = dict(output.num_scheduled_tokens)
        running = {request.request_id: self.block_ids(request.request_id) for request in scheduler.running}
        waiting = [request.request_id for request in scheduler.waiting]
        sampled = {}
        for name in scheduled:
            request = scheduler.requests[name]
            if request.num_computed_tokens == request.num_tokens:
                sampled[name] = STOP if self.rng.random() < 0.02 else self.rng.choice([0, 0, 0, 1])
        scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=list(scheduled),
                req_id_to_index={name: place for place, name in enumerate(scheduled)},
                sampled_token_ids=[[sampled[name]] if name in sampled else [] for name in scheduled],
            ),
        )
        ended = [name for name in scheduled if name not in scheduler.requests]
        queue = scheduler.kv_cache_manager.block_pool.free_block_queue.get_all_free_blocks()
        free = [block.block_id for block in queue]
        self.steps.append([came, gone, scheduled, self.preempted, running, waiting, sampled, ended, free])

    def run(self, num_steps: int) -> dict[str, Any]:
        try:
            for number in range(num_steps):
                self.step(may_come=number < num_steps * 3 // 4 and len(self.scheduler.waiting) < 6)
        except Remembered:
            pass
        return {
            "num_blocks": self.num_blocks,
            "block_size": self.block_size,
            "enable_prefix_caching": self.caching,
            "options": self.options,
            "steps": self.steps,
        }


def main() -> None:
    """Record sixty schedulers."""
    import vllm

    runs = ",\n".join(json.dumps(Recorder(seed).run(40), separators=(",", ":")) for seed in range(60))
    TRANSCRIPT.write_text(f'{{"vllm": "{vllm.__version__}", "runs": [\n{runs}\n]}}\n')
    print(f"wrote {TRANSCRIPT}")


if __name__ == "__main__":
    main()
