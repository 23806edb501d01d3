"""Environments behind a server of OpenEnv."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from transformers import PreTrainedTokenizerBase

from pure_rllib.envs.adapters.text_game import optional, started
from pure_rllib.envs.text_env import StepResult
from pure_rllib.envs.text_token_env import TextTokenEnv
from pure_rllib.rewards.make import import_named

ToAction = Callable[[str], Mapping[str, Any]]
ToText = Callable[[Mapping[str, Any]], str]


class OpenEnvSession:
    """One episode on a server as a `TextEnv`, with a connection of its own.

    Args:
        url: of the server.
        to_action: makes an action of a turn's text.
        to_text: makes a text of an observation.
        reset_kwargs: what a reset is given beside its seed.
    """

    def __init__(
        self,
        url: str,
        to_action: ToAction,
        to_text: ToText,
        reset_kwargs: Mapping[str, Any],
    ):
        client = optional("openenv.core", "openenv").GenericEnvClient(base_url=url)
        self._client = client.sync()
        self._to_action, self._to_text = to_action, to_text
        self._reset_kwargs = dict(reset_kwargs)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[str, dict[str, Any]]:
        """See `TextEnv.reset`."""
        result = self._client.reset(seed=seed, **self._reset_kwargs)
        return self._to_text(result.observation), {}

    def step(self, action: str) -> StepResult:
        """See `TextEnv.step`."""
        result = self._client.step(dict(self._to_action(action)))
        reward = None if result.reward is None else float(result.reward)
        return self._to_text(result.observation), reward, bool(result.done), False, {}

    def close(self) -> None:
        """Ends the session on the server."""
        self._client.close()


class OpenEnv(TextTokenEnv):
    """Plays an environment on a server of OpenEnv, over turns.

    ## Arguments
    Args:
        tokenizer: folder or hub id of the policy's tokenizer, or the tokenizer.
        url: of the server, such as "http://localhost:8000"; it must take as many
            sessions as responses are sampled at once.
        to_action: function that makes an action, a dict, of a turn's text, or its
            "module:name"; None: the one required string of the server's action schema.
        to_text: function that makes a text of an observation, a dict, or its
            "module:name"; None: the one string of the server's observation schema.
        reset_kwargs: what a reset is given beside its seed.
        **kwargs: the other arguments of `TextTokenEnv`.

    Raises:
        ValueError: openenv is not installed, no server answers, or its schemas have
            none or several strings.
    """

    def __init__(
        self,
        *,
        tokenizer: str | PreTrainedTokenizerBase,
        url: str,
        to_action: ToAction | str | None = None,
        to_text: ToText | str | None = None,
        reset_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        schema = _schema(url)
        action, text = _given("to_action", to_action), _given("to_text", to_text)
        if action is None:
            required = schema["action"].get("required", [])
            action = partial(
                _as_dict, _text_of("to_action", schema["action"], required)
            )
        if text is None:
            told = schema["observation"]
            text = partial(_field_of, _text_of("to_text", told, told["properties"]))
        make = partial(OpenEnvSession, url, action, text, reset_kwargs or {})
        super().__init__(make_env=started(make, url), tokenizer=tokenizer, **kwargs)


def _given(setting: str, function: Any) -> Any:
    return import_named(setting, function) if isinstance(function, str) else function


def _as_dict(field: str, text: str) -> dict[str, str]:
    return {field: text}


def _field_of(field: str, observation: Mapping[str, Any]) -> str:
    return str(observation[field])


def _schema(url: str) -> dict[str, Any]:
    try:
        with urlopen(f"{url.rstrip('/')}/schema", timeout=10) as reply:
            schema: dict[str, Any] = json.load(reply)
            return schema
    except (URLError, TimeoutError, ValueError) as error:
        raise ValueError(
            f"`url` ({url}) must be that of a running server of OpenEnv, because "
            f"episodes are played there: {error}. Start it, or correct the address."
        ) from error


def _text_of(setting: str, schema: Mapping[str, Any], names: Iterable[str]) -> str:
    """Returns the one of some fields of a schema that is a text."""
    texts = [n for n in names if schema["properties"][n].get("type") == "string"]
    if len(texts) != 1:
        raise ValueError(
            f"`{setting}` (None) must be a function, because the server's schema has "
            f"{len(texts)} texts ({', '.join(texts) or 'none'}) to choose from. Set it "
            'to "my_module:my_function".'
        )
    return texts[0]
