"""What a client may ask of the server, and how it is told that something is wrong (chapter 09).

Source: OpenAI's API reference for completions and chat completions, and for what goes beyond them vLLM's
``vllm/entrypoints/openai``, release 0.33.0. A parameter that this server would have to ignore is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pagedattn_lab.engine.sampling_params import SamplingParams

SAMPLING = (
    "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p",
    "seed", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens",
)  # fmt: skip
"""Fields that are handed on as they are, if the client gave them."""

Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class ApiError(Exception):
    """An answer that is no success: what OpenAI's clients raise in turn.

    Attributes:
        status: of HTTP.
        retry_after: in how many seconds to try again; ``None`` if that would not help.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self._param, self._code = param, code

    @property
    def body(self) -> dict[str, Any]:
        """The answer as OpenAI shapes it.

        Example:
            >>> ApiError(404, "no such model", "model").body
            {'error': {'message': 'no such model', 'type': 'invalid_request_error', 'param': 'model', 'code': None}}
        """
        type_ = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            type_ = "rate_limit_error"
        return {"error": {"message": str(self), "type": type_, "param": self._param, "code": self._code}}


class StrictModel(BaseModel):
    """No value is turned into one of another type; one that is null counts as left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class StreamOptions(StrictModel):
    """What a stream has beside its tokens."""

    include_usage: bool = False


def _texts(value: Any) -> Any:
    """Read one text as a list of texts."""
    return [value] if isinstance(value, str) else value


class SamplingRequest(StrictModel):
    """What both kinds of requests may say."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: Whole = 1
    max_tokens: Whole | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Whole | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_texts)] = None
    # vLLM's own
    repetition_penalty: float | None = None
    top_k: Whole | None = None
    min_p: float | None = None
    stop_token_ids: list[Whole] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Whole | None = None
    skip_special_tokens: bool | None = None
    priority: Whole = 0
    cache_salt: str | None = Field(default=None, min_length=1, max_length=1024)

    @model_validator(mode="after")
    def _has_stream_options_for_a_stream(self) -> SamplingRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for streams: set stream to true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with an account of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling_params(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Give the part that the engine understands.

        Raises:
            ValueError: a value out of range.
        """
        given = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        return SamplingParams(max_tokens=max_tokens, logprobs=logprobs, **given)


def _prompts(value: Any) -> Any:
    """Read the four forms that a prompt may have: a text, token ids, or a list of either."""

    def is_prompt(item: Any) -> bool:
        return isinstance(item, str) or (
            isinstance(item, list) and bool(item) and all(type(token) is int for token in item)
        )

    prompts = [value] if is_prompt(value) else value
    if not isinstance(prompts, list) or not prompts or not all(map(is_prompt, prompts)):
        raise ValueError("give a text, a list of token ids, or a list of either, and no empty list")
    return prompts


class CompletionRequest(SamplingRequest):
    """The body of ``/v1/completions``.

    Example:
        >>> CompletionRequest(prompt="Hello", max_tokens=5).prompt, CompletionRequest(prompt=[5, 6]).prompt
        (['Hello'], [[5, 6]])
    """

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]
    max_tokens: Whole | None = 16
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool = False

    @model_validator(mode="after")
    def _echoes_no_logprobs(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ValueError(
                "echo with logprobs needs log-probabilities of the prompt, which this server does not have"
            )
        return self


class TextPart(StrictModel):
    """A part of a message; this server knows texts only."""

    type: Literal["text"]
    text: str


def _parts(value: Any) -> Any:
    """Read a text as a list of one part."""
    parts = [{"type": "text", "text": value}] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        raise ValueError('give a text, or a list of parts {"type": "text", "text": ...}: this server reads no others')
    return parts


class ChatMessage(StrictModel):
    """One message of a conversation."""

    role: str
    content: Annotated[list[TextPart], BeforeValidator(_parts)]
    name: str | None = None


class ChatCompletionRequest(SamplingRequest):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Whole | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _asks_for_logprobs_first(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs says how many: set logprobs to true as well")
        return self

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The messages as chat templates read them.

        Example:
            >>> parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]
            >>> ChatCompletionRequest(messages=[{"role": "user", "content": parts}]).conversation
            [{'role': 'user', 'content': 'Hi\\nthere'}]
        """
        return [
            {"role": message.role, "content": "\n".join(part.text for part in message.content)}
            | ({} if message.name is None else {"name": message.name})
            for message in self.messages
        ]


def explain(errors: list[Any]) -> ApiError:
    """Make one answer of what pydantic found: the first thing that is wrong, and where.

    Example:
        >>> from pydantic import ValidationError
        >>> try:
        ...     CompletionRequest(prompt="Hello", n="two")
        ... except ValidationError as error:
        ...     print(explain(error.errors()))
        n: Input should be a valid integer, not 'two'
    """
    error = errors[0]
    where = [str(part) for part in error["loc"] if part != "body"]
    name = ".".join(where)
    if error["type"] == "extra_forbidden":
        return ApiError(400, f"this server has no parameter {name}: leave it out", name, "unknown_parameter")
    if error["type"] == "missing":
        return ApiError(400, f"{name or 'the body'} is missing", name or None, "missing_parameter")
    if error["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {error['ctx']['error']}")
    if not where:
        if error["type"] == "value_error":
            return ApiError(400, str(error["ctx"]["error"]))
        return ApiError(400, "the body is no JSON object: send one, with Content-Type: application/json")
    if error["type"] == "value_error":
        return ApiError(400, f"{name}: {error['ctx']['error']}", name)
    shown = repr(error["input"])
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return ApiError(400, f"{name}: {error['msg']}, not {shown}", name)
