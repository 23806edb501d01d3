"""Sampling with vLLM. N prompts, G responses per prompt, T response tokens."""

import gc
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from pure_rllib.generation.base import (
    Finished,
    Generator,
    Request,
    Response,
    SamplingParams,
    check_logps,
    check_request,
    checked_eos_ids,
)
from pure_rllib.generation.engine_log import engine_errors
from pure_rllib.generation.vllm_engine import (
    check_engine_settings,
    check_vllm_installed,
    finish_loading,
    import_vllm,
    is_in_process,
    make_engine,
    parameter_sizes,
    paused,
    temporary_folder,
    watch_for_stop_strings,
)
from pure_rllib.generation.vllm_tensors import held_tensors
from pure_rllib.models.ends import is_ended
from pure_rllib.models.export import WeightSource, write_shards
from pure_rllib.models.fingerprints import HeldTensors
from pure_rllib.models.loading import policy_config
from pure_rllib.models.stop_strings import StopStrings

# vLLM raises what lies below to it, and refuses what lies above.
_TEMPERATURES = (0.01, 2.0)


class VLLMGenerator(Generator):
    """Samples responses with one vLLM engine in this process.

    The G responses to a prompt share its keys and values (prefix caching). Every
    response has its own random numbers, made from the prompt's seed and its number in
    the group, so it does not depend on what else is in the call, up to the rounding of
    batched products. The engine starts with weights that mean nothing: `load_weights`
    comes before everything else.

    Args:
        model: folder, hub id or Hugging Face config of the policy.
        eos_token_ids: the ids that end a response, at least one.
        prompt_and_response_len: tokens of both together, at most.
        stop: the strings that end a response.
        dtype: of the policy, as for `load_policy`; the engine's too by default.
        trust_remote_code: allow code that comes with the model.
        top_p: of the responses that will be asked for. Below 1.0 their temperature
            must be 1.0 or 0.0; see `check_vllm_sampling`.
        transfer_backend: vLLM's, by which `receive_weights` receives; None: it is not
            called.
        colocate: a learner has the same GPU, and `sleep` will be called.
        num_sequences: sampled at one time, at most; with `colocate` it sizes the cache.
        **engine_settings: vLLM's engine arguments, but for those that are set here;
            see `check_engine_settings`.

    Raises:
        ValueError: vLLM is missing, does not know a setting or a value, or cannot run
            the model here.
    """

    def __init__(
        self,
        model: str | Mapping[str, Any],
        *,
        eos_token_ids: Iterable[int],
        prompt_and_response_len: int,
        stop: StopStrings | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        top_p: float = 1.0,
        transfer_backend: str | None = None,
        colocate: bool = False,
        num_sequences: int | None = None,
        **engine_settings: Any,
    ):
        check_vllm_installed()
        check_engine_settings(engine_settings)
        self.weights_version = 0
        config = policy_config(model, trust_remote_code=trust_remote_code)
        text_config = config.get_text_config()
        self.eos_token_ids = checked_eos_ids(eos_token_ids, text_config.vocab_size)
        self.stop = stop
        asked = engine_settings.pop("max_model_len", None)
        if asked is not None and asked < prompt_and_response_len:
            raise ValueError(
                f"`generator_kwargs.max_model_len` ({asked}) must be at least "
                f"{prompt_and_response_len}, because prompts and responses are that "
                "long together. Leave it out, or lower `max_response_tokens`."
            )
        # To tell the log-probabilities of a sequence vLLM wants room for one more.
        room = max(asked or 0, prompt_and_response_len + 1)
        context = getattr(text_config, "max_position_embeddings", None)
        self.max_model_len = min(room, context) if context else room
        self._logprobs_mode = "processed_logprobs" if top_p == 1.0 else "raw_logprobs"
        self._sizes = parameter_sizes(model, trust_remote_code=trust_remote_code)
        self._is_loaded = False
        self._outputs: dict[str, Any] = {}  # finished, and not asked for yet
        if transfer_backend is not None:
            engine_settings["weight_transfer_config"] = {"backend": transfer_backend}
        self._llm = make_engine(
            model,
            dtype=dtype,
            max_model_len=self.max_model_len,
            logprobs_mode=self._logprobs_mode,
            trust_remote_code=trust_remote_code,
            settings=engine_settings,
            colocate=colocate,
            num_sequences=num_sequences,
        )
        self._is_in_process = is_in_process(self._llm)
        self._vllm = import_vllm()

    def load_weights(self, weights: WeightSource) -> None:
        """Takes over the policy's weights. See `Generator.load_weights`.

        An engine of this process is handed one tensor at a time: beside its own copy
        there is at no time more than one shard and one layer. Workers that are
        processes each read their part from a temporary folder.

        Responses under way go on: their next token is the first of the new weights.

        Raises:
            ValueError: a parameter is missing.
        """
        if not self._is_in_process:
            # As float32, which is the most.
            with temporary_folder(4 * sum(self._sizes.values())) as folder:
                write_shards(weights.shards(), folder)
                self.load_folder(folder, weights.version)
            return
        self._is_loaded = False
        seen: set[str] = set()
        tensors = _tensors(weights, seen)
        with paused(self._llm):
            self._llm.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": tensors}
            )
            self._hold(seen, weights.version)

    def sleep(self) -> None:
        """Frees weights and cache. See `Generator.sleep`.

        At vLLM's level 2: a copy in RAM would be of weights that are never used again.
        On a CPU vLLM only stops to take requests.
        """
        self._is_loaded = False
        self._llm.sleep(level=2)

    def wake(self, weights: WeightSource) -> None:
        """Takes memory back as it is needed. See `Generator.wake`.

        vLLM does not see which of PyTorch's memory is free, so that this is given back
        before each part. The cache comes last: beside it there is no room for what
        loading needs.

        Raises:
            ValueError: a parameter is missing.
        """
        _free_memory()
        self._llm.wake_up(tags=["weights"])
        self.load_weights(weights)
        _free_memory()
        self._llm.wake_up(tags=["kv_cache"])

    def load_folder(self, folder: Path, version: int = 0) -> None:
        """Has the engine's workers read a folder of safetensors.

        Raises:
            ValueError: a parameter is missing.
        """
        names: set[str] = set()
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                names.update(file.keys())
        self._check_names(names)
        self._llm.collective_rpc(
            "update_config", args=({"load_config": {"load_format": "safetensors"}},)
        )
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self._hold(names, version)

    def join_transfer(self, init_info: Mapping[str, Any]) -> None:
        """Gets ready for weights of a learner that calls with `init_info`."""
        self._llm.shutdown_weight_transfer_engine()
        self._llm.init_weight_transfer_engine({"init_info": dict(init_info)})

    def receive_weights(self, version: int, update_info: Mapping[str, Any]) -> None:
        """Takes over weights that a learner sends at the same time.

        Args:
            version: the update they come from.
            update_info: names, dtypes and shapes, as vLLM's trainer tells them.

        Raises:
            ValueError: a parameter is missing.
        """
        self._is_loaded = False
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": dict(update_info)})
        self._llm.finish_weight_update()
        self._hold(set(update_info["names"]), version)

    def _hold(self, names: set[str], version: int) -> None:
        """Brings the engine up to weights that were just loaded into it."""
        finish_loading(self._llm)
        self._check_names(names)
        self._is_loaded = True
        self.weights_version = version
        self._llm.llm_engine.set_weight_version(str(version))

    def _check_names(self, given: set[str]) -> None:
        missing = sorted(set(self._sizes) - given)
        if missing:
            raise ValueError(
                f"`weights` must hold all of the policy's parameters; missing: "
                f"{missing}. Build learner and generator from the same config.json."
            )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        params: SamplingParams,
        seeds: Sequence[int],
        budgets: Sequence[int] | None = None,
    ) -> list[list[Response]]:
        """Samples `group_size` responses to each prompt. See `Generator.generate`.

        Raises:
            ValueError: a prompt is empty or, with the budget, too long, or vLLM cannot
                sample with these settings.
        """
        names = self.begin(prompts, group_size, params, seeds, budgets)
        groups = [
            [self._response(one) for one in output.outputs]
            for output in self._finish(names)
        ]
        is_greedy = params.temperature == 0.0
        return [group * group_size for group in groups] if is_greedy else groups

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        params: SamplingParams,
        seeds: Sequence[int],
        budgets: Sequence[int] | None = None,
    ) -> list[str]:
        """Begins what `generate` does, for `advance`; returns each prompt's name.

        Raises:
            ValueError: as `generate`.
        """
        budgets = check_request(
            prompts, group_size, params, seeds, self.max_model_len, budgets
        )
        self._check(params)
        is_greedy = params.temperature == 0.0
        settings = [
            self._vllm.SamplingParams(
                # Greedy responses to one prompt are all the same: one is sampled.
                n=1 if is_greedy else group_size,
                temperature=params.temperature,
                top_p=params.top_p,
                max_tokens=budget,
                seed=None if is_greedy else engine_seed(seed),
                # The environment says what ends a response, not the checkpoint.
                ignore_eos=True,
                stop_token_ids=list(self.eos_token_ids),
                # The sampled id's and no other's.
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
            )
            for seed, budget in zip(seeds, budgets, strict=True)
        ]
        return self._enqueue(prompts, settings, self.stop)

    def advance(
        self, names: Collection[str], seconds: float
    ) -> tuple[str, list[Response]] | None:
        """Goes on with prompts that were begun, until one is finished.

        Args:
            names: of those that have not been returned yet.
            seconds: how long at most, but for one step of the engine.

        Returns:
            A prompt's name and all responses to it, or None.
        """
        deadline = monotonic() + seconds
        with self._stepping(len(names)):
            while not self._outputs.keys() & names:
                self._step()
                if monotonic() >= deadline:
                    return None
        name = next(name for name in names if name in self._outputs)
        return name, [self._response(one) for one in self._outputs.pop(name).outputs]

    def abort(self, names: Collection[str]) -> None:
        """Forgets prompts that were begun."""
        self._llm.llm_engine.abort_request(list(names))
        for name in names:
            self._outputs.pop(name, None)

    def _run(self, prompts: Sequence[Sequence[int]], settings: list[Any]) -> list[Any]:
        return self._finish(self._enqueue(prompts, settings))

    def _enqueue(
        self,
        prompts: Sequence[Sequence[int]],
        settings: list[Any],
        stop: StopStrings | None = None,
    ) -> list[str]:
        assert self._is_loaded, "the engine has no weights: load_weights comes first"
        token_prompts = [
            self._vllm.TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts
        ]
        with self._stepping(len(prompts)):
            names = self._llm.enqueue(token_prompts, settings, use_tqdm=False)
        if stop is not None:
            watch_for_stop_strings(self._llm, stop)
        # Within the engine a request's name has something random behind it.
        return [name.partition("-")[0] for name in names]

    def _finish(self, names: Sequence[str]) -> list[Any]:
        """Waits for prompts; others that were begun go on meanwhile."""
        with self._stepping(len(names)):
            missing = set(names) - self._outputs.keys()
            while missing:
                missing -= self._step()
        return [self._outputs.pop(name) for name in names]

    def _step(self) -> set[str]:
        finished = {
            output.request_id: output
            for output in self._llm.llm_engine.step()
            if output.finished
        }
        self._outputs |= finished
        return set(finished)

    @contextmanager
    def _stepping(self, num_prompts: int) -> Iterator[None]:
        # vLLM draws from PyTorch's generator even where it then uses a response's own.
        with torch.random.fork_rng(), engine_errors(f"{num_prompts} prompts were run"):
            yield

    def stream(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """Samples one response to each request. See `Generator.stream`.

        All requests are with the engine at once. Log-probabilities are not asked for,
        so that any temperature goes with any `top_p`.

        Raises:
            ValueError: a prompt is empty or, with the budget, too long, or vLLM cannot
                sample at this temperature.
        """
        assert self._is_loaded, "the engine has no weights: load_weights comes first"
        for one in requests:
            prompt, seed = [one.prompt], [one.seed]
            check_request(prompt, 1, one.params, seed, self.max_model_len)
            check_vllm_sampling(one.params.temperature, top_p=1.0)
        settings = [
            self._vllm.SamplingParams(
                temperature=one.params.temperature,
                top_p=one.params.top_p,
                max_tokens=one.params.max_response_tokens,
                seed=None if one.params.temperature == 0.0 else engine_seed(one.seed),
                ignore_eos=True,
                stop_token_ids=list(self.eos_token_ids),
                detokenize=False,
            )
            for one in requests
        ]
        prompts = [
            self._vllm.TokensPrompt(prompt_token_ids=list(one.prompt))
            for one in requests
        ]
        ids = self._llm.enqueue(prompts, settings, use_tqdm=False)
        if self.stop is not None:
            watch_for_stop_strings(self._llm, self.stop)
        # Within the engine a request's name has something random behind it.
        numbers = {name.partition("-")[0]: i for i, name in enumerate(ids)}
        engine = self._llm.llm_engine
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    (one,) = output.outputs
                    token_ids = np.array(one.token_ids, dtype=np.int64)
                    terminated = is_ended(token_ids, self.eos_token_ids, self.stop)
                    yield Finished(numbers[output.request_id], token_ids, terminated)

    def _response(self, output: Any) -> Response:
        token_ids = np.array(output.token_ids, dtype=np.int64)
        logps = np.array(output.logprobs.logprobs, dtype=np.float32)
        if output.finish_reason not in ("stop", "length") or len(logps) != len(
            token_ids
        ):
            raise RuntimeError(
                f"vLLM ended a response with {output.finish_reason!r} after "
                f"{len(token_ids)} tokens and {len(logps)} log-probabilities."
            )
        check_logps(logps, self.weights_version)
        terminated = is_ended(token_ids, self.eos_token_ids, self.stop)
        versions = np.zeros(len(token_ids), dtype=np.int64)
        for span in output.weight_versions:
            versions[span.start : span.end] = int(span.version)
        return Response(token_ids, logps, terminated, versions)

    def _check(self, params: SamplingParams) -> None:
        check_vllm_sampling(params.temperature, params.top_p)
        mode = self._logprobs_mode
        if params.top_p < 1.0 and mode != "raw_logprobs":
            raise ValueError(
                f"`top_p` ({params.top_p}) must be 1.0, because this engine was made "
                "for whole distributions. Pass `top_p` to VLLMGenerator."
            )
        if params.temperature not in (0.0, 1.0) and mode == "raw_logprobs":
            raise ValueError(
                f"`temperature` ({params.temperature}) must be 1.0 or 0.0, because "
                "this engine was made for a `top_p` below 1.0 and tells "
                "log-probabilities before the temperature. Set it to 1.0."
            )

    def logps(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probabilities of given ids, at temperature 1. See `Generator.logps`.

        Cached keys and values are not read, so that they cannot hide old weights.

        Raises:
            ValueError: a sequence has less than two ids or is too long.
        """
        for sequence in sequences:
            if not 2 <= len(sequence) < self.max_model_len:
                raise ValueError(
                    f"A sequence of {len(sequence)} ids must have 2 to "
                    f"{self.max_model_len - 1}, because each id but the first is told "
                    "given those before it, and vLLM then samples one more."
                )
        settings = self._vllm.SamplingParams(
            temperature=0.0,
            max_tokens=1,
            ignore_eos=True,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            skip_reading_prefix_cache=True,
        )
        outputs = self._run(sequences, [settings] * len(sequences))
        found = [
            np.array(output.prompt_logprobs.logprobs, dtype=np.float32)
            for output in outputs
        ]
        for sequence, logps in zip(sequences, found, strict=True):
            assert len(logps) == len(sequence) - 1, f"{len(logps)} of {len(sequence)}"
        return found

    def held_tensors(self, version: int) -> HeldTensors:
        """All that a single worker holds unquantised. See `Generator.held_tensors`.

        Of several workers, which hold parts of tensors, none.
        """
        if self._llm.llm_engine.vllm_config.parallel_config.world_size > 1:
            return []
        held: list[HeldTensors] = self._llm.collective_rpc(
            held_tensors, args=(version,)
        )
        return held[0]

    def close(self) -> None:
        """Stops the engine and frees its memory; the generator is of no use then."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()


def _free_memory() -> None:
    """Gives memory of tensors that are gone back to the device."""
    gc.collect()
    torch.cuda.empty_cache()


def check_vllm_sampling(temperature: float, top_p: float) -> None:
    """Checks that vLLM can sample so, and tell log-probabilities as we mean them.

    Log-probabilities are of the whole distribution at the sampling temperature. vLLM
    tells them before the temperature or after the nucleus, so that with both there is
    no right one.

    Args:
        temperature: 0.0 is greedy.
        top_p: nucleus size.

    Raises:
        ValueError: it cannot.
    """
    least, most = _TEMPERATURES
    if temperature != 0.0 and not least <= temperature <= most:
        raise ValueError(
            f"`temperature` ({temperature}) must be 0.0 or lie in [{least}, {most}] "
            "because vLLM samples with no other. Set `.env_runners(temperature=1.0)`."
        )
    if top_p < 1.0 and temperature not in (0.0, 1.0):
        raise ValueError(
            f"`top_p` ({top_p}) must be 1.0 with a `temperature` ({temperature}) other "
            "than 1.0, because vLLM then tells log-probabilities within the nucleus "
            "only, which are not the learner's. Set one of them to 1.0, or set "
            '`.env_runners(generator="transformers")`.'
        )


def engine_seed(seed: int) -> int:
    """A prompt's seed as vLLM takes it; response g of the prompt is given this plus g.

    Hashed, so that the numbers of prompts with neighbouring seeds do not meet.

    Args:
        seed: any integer.

    Returns:
        In [0, 2**62): with G added still below vLLM's 2**63.
    """
    digest = blake2b(str(int(seed)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def _tensors(weights: WeightSource, seen: set[str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of all shards, and their names put down in `seen`."""
    for shard in weights.shards():
        for name, tensor in shard.items():
            seen.add(name)
            # vLLM keeps the parts of a layer until it has all of them, which may be
            # longer than the shard is valid.
            yield name, tensor.detach().clone()
