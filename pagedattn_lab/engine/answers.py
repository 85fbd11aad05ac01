"""What the server answers: an engine's outputs in the shapes of OpenAI's API, whole or as they grow (chapter 09).

Source: OpenAI's API reference; ``vllm/entrypoints/openai``, release 0.33.0, where log-probabilities leave room for
choice.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar
from uuid import uuid4

from pagedattn_lab.engine.outputs import CompletionOutput, Logprob, RequestOutput

NO_CHANCE = -9999.0
"""What stands for the logarithm of 0, which JSON does not have."""


class Answer(ABC):
    """The answer to one call, which may have had several prompts and want several outputs of each.

    Args:
        model: its name.
        n: outputs of each prompt.
        num_top: how many likely tokens are reported beside each chosen one; ``None``: nothing is.

    Attributes:
        request_id: what the client may call it by.
    """

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, model: str, n: int, num_top: int | None) -> None:
        self.request_id = f"{self.prefix}-{uuid4().hex}"
        self._head = {"id": self.request_id, "created": int(time.time()), "model": model}
        self._n, self._num_top = n, num_top
        self._sent: dict[int, tuple[int, int]] = {}  # of each choice: characters and tokens that have been sent
        self._ended: set[int] = set()

    @abstractmethod
    def first(self, number: int) -> dict[str, Any] | None:
        """What a streamed choice begins with, before it has any token of its own; ``None`` for nothing."""

    @abstractmethod
    def choice(
        self, number: int, output: CompletionOutput, characters: int, tokens: int, whole: bool
    ) -> dict[str, Any]:
        """What an output has behind so many characters and tokens."""

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """Give the answer to all prompts, whose outputs are complete."""
        choices = [
            self.choice(place * self._n + output.index, output, 0, 0, whole=True)
            for place, of_prompt in enumerate(outputs)
            for output in of_prompt.outputs
        ]
        return self._head | {"object": self.whole_object, "choices": choices, "usage": usage(outputs)}

    def news(self, place: int, of_prompt: RequestOutput) -> Iterator[dict[str, Any]]:
        """Give chunks with what has not been sent of one prompt's outputs."""
        for output in of_prompt.outputs:
            number = place * self._n + output.index
            if number not in self._sent:
                self._sent[number] = 0, 0
                if (first := self.first(number)) is not None:
                    yield self._chunk([first])
            characters, tokens = self._sent[number]
            if number in self._ended or (len(output.text) == characters and not output.finished()):
                continue
            yield self._chunk([self.choice(number, output, characters, tokens, whole=False)])
            self._sent[number] = len(output.text), len(output.token_ids)
            if output.finished():
                self._ended.add(number)

    def account(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """Give the chunk behind all others, which has no choice."""
        return self._chunk([]) | {"usage": usage(outputs)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"object": self.chunk_object, "choices": choices}


class CompletionAnswer(Answer):
    """The answer of ``/v1/completions``.

    Args:
        model, n, num_top: as above.
        echoes: of each prompt, the text that goes in front of its outputs.

    Example:
        >>> answer = CompletionAnswer("toy", 1, None, ["The sky is"])
        >>> step = RequestOutput("Ada", None, [5, 6, 7], [CompletionOutput(0, " bl", [8])], finished=False)
        >>> done = RequestOutput("Ada", None, [5, 6, 7], [CompletionOutput(0, " blue", [8], None, None, "stop")], True)
        >>> [chunk["choices"][0]["text"] for output in (step, done) for chunk in answer.news(0, output)]
        ['The sky is', ' bl', 'ue']
        >>> answer.whole([done])["choices"][0]["text"], answer.whole([done])["usage"]["total_tokens"]
        ('The sky is blue', 4)
    """

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, n: int, num_top: int | None, echoes: Sequence[str]) -> None:
        super().__init__(model, n, num_top)
        self._echoes = echoes

    def first(self, number: int) -> dict[str, Any] | None:
        """The prompt, if it is to be repeated."""
        echo = self._echo(number)
        return {"index": number, "text": echo, "logprobs": None, "finish_reason": None} if echo else None

    def choice(
        self, number: int, output: CompletionOutput, characters: int, tokens: int, whole: bool
    ) -> dict[str, Any]:
        """Text, and four lists of log-probabilities."""
        return {
            "index": number,
            "text": (self._echo(number) if whole else "") + output.text[characters:],
            "logprobs": None if self._num_top is None else self._logprobs(output, tokens),
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }

    def _echo(self, number: int) -> str:
        return self._echoes[number // self._n]

    def _logprobs(self, output: CompletionOutput, tokens: int) -> dict[str, list[Any]]:
        rows = list(_rows(output, self._num_top or 0, tokens))
        sizes = [len(_text(chosen)) for chosen, _ in _chosen(output, 0)]  # texts of earlier chunks count as well
        return {
            "text_offset": list(accumulate(sizes, initial=0))[tokens:-1],
            "tokens": [_text(chosen) for chosen, _ in rows],
            "token_logprobs": [_number(chosen) for chosen, _ in rows],
            "top_logprobs": [{_text(each): _number(each) for each in (chosen, *top)} for chosen, top in rows],
        }


class ChatAnswer(Answer):
    """The answer of ``/v1/chat/completions``.

    Example:
        >>> answer = ChatAnswer("toy", 1, None)
        >>> done = RequestOutput("Ada", None, [5, 6, 7], [CompletionOutput(0, "Hi!", [8, 2], None, None, "stop")], True)
        >>> [chunk["choices"][0]["delta"] for chunk in answer.news(0, done)]
        [{'role': 'assistant', 'content': ''}, {'content': 'Hi!'}]
        >>> answer.whole([done])["choices"][0]["message"]
        {'role': 'assistant', 'content': 'Hi!'}
    """

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self, number: int) -> dict[str, Any]:
        """Who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}

    def choice(
        self, number: int, output: CompletionOutput, characters: int, tokens: int, whole: bool
    ) -> dict[str, Any]:
        """A message or its next part, and a list of log-probabilities."""
        text = output.text[characters:]
        said = {"message": {"role": "assistant", "content": text}} if whole else {"delta": {"content": text}}
        rows = None if self._num_top is None else _rows(output, self._num_top, tokens)
        return {
            "index": number,
            **said,
            "logprobs": None
            if rows is None
            else {"content": [_entry(chosen) | {"top_logprobs": [*map(_entry, top)]} for chosen, top in rows]},
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }


def usage(outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """Count the tokens of prompts, which are read once, and of all outputs."""
    num_prompt = sum(len(of_prompt.prompt_token_ids) for of_prompt in outputs)
    num_output = sum(len(output.token_ids) for of_prompt in outputs for output in of_prompt.outputs)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": sum(of_prompt.num_cached_tokens for of_prompt in outputs)},
    }


def _chosen(output: CompletionOutput, start: int) -> Iterator[tuple[Logprob, Mapping[int, Logprob]]]:
    """For each token from ``start`` on, what is reported of it, and of it and the likeliest."""
    for token_id, row in zip(output.token_ids[start:], (output.logprobs or ())[start:], strict=False):
        yield row[token_id], row


def _rows(output: CompletionOutput, num_top: int, start: int) -> Iterator[tuple[Logprob, list[Logprob]]]:
    """For each token from ``start`` on, the chosen one and so many of the likeliest, likeliest first."""
    for chosen, row in _chosen(output, start):
        yield chosen, _likeliest(row)[:num_top]


def _likeliest(row: Mapping[int, Logprob]) -> list[Logprob]:
    return sorted(row.values(), key=lambda each: -each.logprob)


def _entry(each: Logprob) -> dict[str, Any]:
    return {"token": _text(each), "logprob": _number(each), "bytes": list(_text(each).encode())}


def _text(each: Logprob) -> str:
    return each.decoded_token or ""


def _number(each: Logprob) -> float:
    return max(each.logprob, NO_CHANCE)
