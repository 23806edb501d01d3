"""Making a vLLM engine in this process, and giving it weights.

vLLM is imported in here and nowhere else, when an engine is made.
"""

import ast
import importlib.util
import logging
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pure_rllib.generation.engine_log import engine_errors
from pure_rllib.models.loading import meta_model, policy_config
from pure_rllib.models.memory_plan import kv_numbers
from pure_rllib.models.stop_strings import StopStrings
from pure_rllib.setting_types import Count, check_setting

_ENVIRONMENT = {
    # The engine runs in our process: loaded in seconds, weights without a copy.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # What a worker shall do is sent to it as a function, where workers are processes.
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    # Bound to cores, the engines of two env runners would share the same ones.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
}
# What vLLM changes in the process that is not its own business: which allocator the
# processes started later are given.
_KEPT_VARIABLES = ("LD_PRELOAD",)
_NO_TOKENIZER = "prompts come as token ids. Leave it out"
_NO_DEFAULTS = "the environment says how responses are sampled. Leave it out"
# Engine arguments that are set here, or cannot work: why not, and what to do.
_ONE_KIND_OF_WORKERS = (
    "weights are sent to the workers of `tensor_parallel_size`. Set that, or more "
    "env runners"
)
_REFUSED = {
    "pipeline_parallel_size": _ONE_KIND_OF_WORKERS,
    "data_parallel_size": _ONE_KIND_OF_WORKERS,
    "model": "the policy is the model. Set `.rl_module(model_config={'model': ...})`",
    "trust_remote_code": (
        "the policy's is used. Set `.rl_module(model_config={'trust_remote_code': ..})`"
    ),
    "seed": "every prompt brings its own. Set `.debugging(seed=...)`",
    "enable_sleep_mode": (
        "it follows from where the learner is. Set `.env_runners(colocate=True)`"
    ),
    "load_format": "the learner's weights are loaded. Leave it out",
    "weight_transfer_config": (
        "it follows from how weights travel. Set `.learners(weight_transport=...)`"
    ),
    "logprobs_mode": "it follows from `top_p`. Leave it out",
    "logits_processors": (
        "the learner computes log-probabilities without them. Leave it out"
    ),
    "tokenizer": _NO_TOKENIZER,
    "skip_tokenizer_init": _NO_TOKENIZER,
    "generation_config": _NO_DEFAULTS,
    "override_generation_config": _NO_DEFAULTS,
}
_CPU_KV_CACHE_BYTES = 2**30
_CPU_BLOCK_TOKENS = 128
_GPU_BLOCK_TOKENS = 16
_MAX_NUM_SEQS = 256
_CPU_BATCHED_TOKENS = 4096


def check_vllm_installed() -> None:
    """Checks that vLLM is there; it is not imported for that, which takes seconds.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            '`generator` ("vllm") must be installed, because it is an extra. Install '
            "`pure-rllib[vllm]` on a machine with a GPU, run `make engines` on one "
            'without, or set `.env_runners(generator="transformers")`.'
        )


def check_engine_settings(settings: Mapping[str, Any]) -> None:
    """Checks the names of engine arguments; what they may be is vLLM's to say.

    Args:
        settings: by the names of vLLM's `EngineArgs`. vLLM is installed.

    Raises:
        ValueError: a name is unknown to vLLM, or ours to set.
    """
    for name in sorted(set(settings) & set(_REFUSED)):
        raise ValueError(
            f"`generator_kwargs` must not hold `{name}` ({settings[name]!r}), because "
            f"{_REFUSED[name]}."
        )
    check_setting(
        "tensor_parallel_size", settings.get("tensor_parallel_size", 1), Count
    )
    known = _engine_arguments()
    for name in sorted(set(settings) - known):
        like = get_close_matches(name, known, n=3, cutoff=0.0)
        raise ValueError(
            f"`generator_kwargs` must not hold `{name}` ({settings[name]!r}), because "
            "the generator `vllm` takes the names of vLLM's EngineArgs (the nearest: "
            f"{', '.join(like)}). Leave it out."
        )


def _engine_arguments() -> set[str]:
    """Names of vLLM's engine arguments, read from its source.

    Importing vLLM takes seconds, and changes the process that imports it.
    """
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations, "vLLM is installed"
    path = Path(spec.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    (arguments,) = (
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs"
    )
    targets = [n.target for n in arguments.body if isinstance(n, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def import_vllm() -> Any:
    """Imports vLLM, quiet and without reporting home unless the user wants it so."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # While it is imported vLLM does not heed the variable.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import vllm

    return vllm


def make_engine(
    model: str | Mapping[str, Any],
    *,
    dtype: str,
    max_model_len: int,
    logprobs_mode: str,
    trust_remote_code: bool,
    settings: Mapping[str, Any],
    colocate: bool = False,
    num_sequences: int | None = None,
) -> Any:
    """Makes a `vllm.LLM` for a policy, with weights that mean nothing yet.

    Args:
        model: folder, hub id or config of the policy; its weights are not read.
        dtype: "float32", "bfloat16", "float16" or "auto" (the checkpoint's).
        max_model_len: prompt and response tokens together.
        logprobs_mode: vLLM's.
        trust_remote_code: allow code that comes with the model.
        settings: vLLM's engine arguments; they win over what is chosen here.
        colocate: see `VLLMGenerator`.
        num_sequences: likewise.

    Raises:
        ValueError: vLLM cannot run the model on this machine.
    """
    vllm = import_vllm()
    from vllm.platforms import current_platform

    config = policy_config(model, trust_remote_code=trust_remote_code)
    is_cpu = current_platform.is_cpu()
    if is_cpu:
        _check_head_size(config.get_text_config())
    elif not torch.cuda.is_available():
        raise ValueError(
            'This env runner must have a GPU, because `generator` ("vllm") is vLLM\'s '
            "GPU build. Set `.env_runners(num_gpus_per_env_runner=1)`, or install the "
            "CPU build with `make engines` where there is no GPU."
        )
    if dtype == "auto":
        dtype = str(config.dtype or torch.float32).removeprefix("torch.")
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "max_model_len": max_model_len,
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        **settings,
    }
    sized = {"kv_cache_memory_bytes", "gpu_memory_utilization"} & set(settings)
    if is_cpu and not sized and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        # By itself vLLM would take 92% of the machine's memory.
        arguments["kv_cache_memory_bytes"] = _cpu_kv_cache_bytes(
            config.get_text_config(),
            arguments["max_model_len"],
            arguments.get("max_num_seqs", _MAX_NUM_SEQS),
        )
    if is_cpu:
        arguments |= _whole_prompts(arguments)
    elif colocate:
        tokens = kv_cache_tokens(
            arguments["max_model_len"], num_sequences, arguments.get("max_num_seqs")
        )
        arguments = _beside_a_learner(config, dtype, tokens) | arguments
    if arguments.get("tensor_parallel_size", 1) > 1:
        # Inside a Ray actor vLLM would ask Ray for GPUs that the actor already holds.
        arguments.setdefault("distributed_executor_backend", "mp")
    with tempfile.TemporaryDirectory(prefix="pure-rllib-vllm-") as folder:
        if not isinstance(model, str):
            if not config.architectures:
                name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]
                config.architectures = [name]
            config.save_pretrained(folder)
            model = folder
        with _process_state(), engine_errors("an engine was made"):
            return vllm.LLM(
                model,
                load_format="dummy",
                skip_tokenizer_init=True,
                # No sampling defaults of the checkpoint: ours are complete.
                generation_config="vllm",
                logprobs_mode=logprobs_mode,
                trust_remote_code=trust_remote_code,
                **arguments,
            )


def _cpu_kv_cache_bytes(config: Any, max_model_len: int, max_num_seqs: int) -> int:
    """Room for all sequences that are sampled at once, up to 1 GiB."""
    bytes_per_token = 4 * kv_numbers(config)  # of 4 bytes at most
    blocks = -(-max_model_len // _CPU_BLOCK_TOKENS)
    # vLLM keeps one block to itself.
    tokens = (max_num_seqs * blocks + 1) * _CPU_BLOCK_TOKENS
    return int(min(_CPU_KV_CACHE_BYTES, tokens * bytes_per_token))


def kv_cache_tokens(
    max_model_len: int, num_sequences: int | None, max_num_seqs: int | None = None
) -> int:
    """Tokens of a cache on a GPU that has room for all that is sampled at one time.

    Args:
        max_model_len: prompt and response tokens together.
        num_sequences: that are asked for at one time; None: without end.
        max_num_seqs: vLLM's limit; None: its own here.
    """
    limit = max_num_seqs or _MAX_NUM_SEQS
    blocks = -(-max_model_len // _GPU_BLOCK_TOKENS)
    # vLLM keeps one block to itself.
    return (min(limit, num_sequences or limit) * blocks + 1) * _GPU_BLOCK_TOKENS


def _beside_a_learner(config: Any, dtype: str, num_tokens: int) -> dict[str, Any]:
    """Engine arguments with which an engine can sleep, and takes no more than it needs.

    Args:
        config: of the policy.
        dtype: of keys and values.
        num_tokens: of the cache.
    """
    numbers = num_tokens * kv_numbers(config.get_text_config())
    free, total = torch.cuda.mem_get_info()
    return {
        "enable_sleep_mode": True,
        "kv_cache_memory_bytes": numbers * getattr(torch, dtype).itemsize,
        # It sizes nothing then, but vLLM refuses a share that is not free.
        "gpu_memory_utilization": min(0.9, 0.98 * free / total),
    }


def _whole_prompts(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Engine arguments with which vLLM takes each prompt as a whole.

    For a part of a prompt vLLM draws a token too, and then rewinds the response's
    random numbers, which it can do on CUDA devices only. Prompts that are too many for
    one pass wait for the next.

    Raises:
        ValueError: other arguments ask for parts.
    """
    for name, whole in (
        ("enable_chunked_prefill", False),
        ("long_prefill_token_threshold", 0),
    ):
        if arguments.get(name):
            raise ValueError(
                f"`generator_kwargs.{name}` ({arguments[name]!r}) must be {whole} on a "
                "CPU, because vLLM cannot take a prompt in parts there when responses "
                "have seeds of their own. Leave it out."
            )
    longest = arguments["max_model_len"]
    num_tokens = arguments.get("max_num_batched_tokens") or max(
        _CPU_BATCHED_TOKENS, longest, arguments.get("max_num_seqs") or 0
    )
    if num_tokens < longest:
        raise ValueError(
            f"`generator_kwargs.max_num_batched_tokens` ({num_tokens}) must be >= "
            f"{longest} on a CPU, because the longest prompt and response are taken in "
            "one pass there. Leave it out."
        )
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": num_tokens}


def _head_size(config: Any) -> int:
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def _check_head_size(config: Any) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    size = _head_size(config)
    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size not in sizes:
        raise ValueError(
            f"The policy's `head_dim` ({size}) must be one of {sizes}, because vLLM's "
            "attention on CPUs has no other. Choose hidden_size / num_attention_heads "
            'so, or set `.env_runners(generator="transformers")`.'
        )


@contextmanager
def _process_state() -> Iterator[None]:
    """Undoes what making an engine does to the process beside making it.

    In local mode the learner lives in the same process.
    """
    variables = {name: os.environ.get(name) for name in _KEPT_VARIABLES}
    set_num_threads = torch.set_num_threads
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_num_threads = set_num_threads
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def watch_for_stop_strings(llm: Any, stop: StopStrings) -> None:
    """Has the requests that have just come to an engine end with stop strings.

    By the same rule as everywhere: vLLM's own takes the prompt's text along where a
    character begins there, sees a token that ends within a character too late, and
    wants a tokenizer in the engine. vLLM asks the part of a request that is replaced
    here after each token whether the request ends, and takes its ids from it.

    Args:
        llm: the engine.
        stop: what ends a response.
    """
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    class Watcher(IncrementalDetokenizer):  # type: ignore[misc]
        def update(self, new_token_ids: list[int], stop_terminated: bool) -> str | None:
            for token_id in new_token_ids:
                self.token_ids.append(token_id)
                begin = stop.begins_at(self.token_ids)
                if begin is not None:
                    # vLLM drops the tokens of this step that come behind.
                    return stop.stop[0]
            return None

    for state in llm.llm_engine.output_processor.request_states.values():
        if not state.detokenizer.token_ids:  # else it is watched already
            state.detokenizer = Watcher()


def parameter_sizes(
    model: str | Mapping[str, Any], *, trust_remote_code: bool
) -> dict[str, int]:
    """Sizes of a policy's parameters by name, tied ones once; no weights are made."""
    config = policy_config(model, trust_remote_code=trust_remote_code)
    made = meta_model(config, trust_remote_code=trust_remote_code)
    return {name: parameter.numel() for name, parameter in made.named_parameters()}


@contextmanager
def temporary_folder(num_bytes: int) -> Iterator[Path]:
    """A folder for as long as an engine reads it, in shared memory if there is room.

    Args:
        num_bytes: that will be written to it, at most.
    """
    memory = Path("/dev/shm")
    has_room = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > num_bytes
    with tempfile.TemporaryDirectory(
        prefix="pure-rllib-weights-", dir=memory if has_room else None
    ) as folder:
        yield Path(folder)


def finish_loading(llm: Any) -> None:
    """Brings an engine's packed copies and caches up to its new weights."""
    # In every worker, where workers are processes, too.
    llm.collective_rpc(_repack_tied_head)
    # Those of responses under way, too, which vLLM computes again.
    if not llm.reset_prefix_cache(reset_running_requests=True):
        raise RuntimeError(
            "vLLM did not empty its prefix cache, which holds keys and values of the "
            "old weights."
        )


@contextmanager
def paused(llm: Any) -> Iterator[None]:
    """Stops responses under way between two tokens, while weights change."""
    if not llm.llm_engine.has_unfinished_requests():
        yield
        return
    llm.sleep(level=0, mode="keep")
    try:
        yield
    finally:
        llm.wake_up(tags=["scheduling"])


def _repack_tied_head(worker: Any) -> None:
    """Packs a tied head again from the embedding that was just loaded.

    On CPUs vLLM multiplies with a packed copy of the head's weights, which it makes
    when the head's own weights are loaded; those of a tied head never are.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    model: nn.Module = worker.model_runner.get_model()
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def is_in_process(llm: Any) -> bool:
    """Whether an engine's only worker runs in this process."""
    from vllm.v1.engine.core_client import InprocClient

    engine = llm.llm_engine
    num_workers = engine.vllm_config.parallel_config.world_size
    return num_workers == 1 and isinstance(engine.engine_core, InprocClient)
