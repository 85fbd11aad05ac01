"""Read the log that vLLM writes when it starts: what each line means, what it follows from, what to change."""

from pagedattn_lab.vllm_log.parse import read_log as read_log
from pagedattn_lab.vllm_log.start_up_log import LogLine as LogLine
from pagedattn_lab.vllm_log.start_up_log import StartUpLog as StartUpLog
