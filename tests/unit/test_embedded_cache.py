import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from pure_rllib.arithmetic import cache, recipes
from pure_rllib.arithmetic.prm import PRMRecipe
from pure_rllib.arithmetic.recipes import CommandsEntry, PolicyEntry, PRMEntry
from pure_rllib.arithmetic.sft import Phase, SFTRecipe
from pure_rllib.arithmetic.task import TASK_Z

TINY = SFTRecipe(TASK_Z, (Phase(1),), batch_size=2, num_measured=1)


@pytest.fixture
def tiny_entries(monkeypatch, tmp_path):
    # Two busy threads on two busy cores wait for each other for seconds.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("PURE_RLLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(recipes.ENTRIES, "tiny-policy", PolicyEntry(TINY, "tiny"))
    prm = PRMRecipe(
        TASK_Z, updates=1, batch_size=2, num_sampled_problems=1, num_measured=1
    )
    monkeypatch.setitem(recipes.ENTRIES, "tiny-prm", PRMEntry(prm, "tiny-policy", ""))
    yield tmp_path / "cache"
    torch.set_num_threads(threads)


def test_folders_and_hub_ids_pass_through():
    for ref in ("/some/folder", "Qwen/Qwen2.5-Math-7B", "./relative"):
        assert cache.resolve_model(ref) == ref


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="embedded:arithmetic-prm") as error:
        cache.resolve_model("embedded:arithmetic-polcy")
    assert "`embedded:arithmetic-polcy`" in str(error.value)


def test_a_model_is_made_once_and_loads_with_transformers(tiny_entries):
    lines = []
    folder = cache.resolve_model(
        "embedded:tiny-prm", progress=lambda *a: lines.append(a)
    )
    assert lines
    assert Path(folder).parent == tiny_entries
    written = Path(folder, "model.safetensors").stat().st_mtime_ns
    assert cache.resolve_model("embedded:tiny-prm") == folder
    assert Path(folder, "model.safetensors").stat().st_mtime_ns == written
    prm, info = AutoModelForTokenClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (prm.config.num_hidden_layers, prm.config.num_labels) == (3, 2)
    policy = cache.resolve_model("embedded:tiny-policy")
    model = AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert not list(tiny_entries.glob(".*")), "temporary folders are left"


def test_recipe_and_figures_are_written_beside_the_weights(tiny_entries):
    prepared = cache.prepare(["tiny-prm", "tiny-policy"])
    assert list(prepared) == ["tiny-policy", "tiny-prm"]
    assert prepared["tiny-policy"]["recipe"]["sft"]["batch_size"] == 2
    assert {"greedy", "sampled"} <= set(prepared["tiny-policy"]["figures"])
    assert {"auc", "first_error_f1"} <= set(prepared["tiny-prm"]["figures"])


def test_the_folder_follows_the_recipe(tiny_entries, monkeypatch):
    before = cache.model_folder("tiny-policy"), cache.model_folder("tiny-prm")
    entry = PolicyEntry(replace(TINY, seed=1), "tiny")
    monkeypatch.setitem(recipes.ENTRIES, "tiny-policy", entry)
    after = cache.model_folder("tiny-policy"), cache.model_folder("tiny-prm")
    # The PRM starts from the policy, so it changes too.
    assert before[0] != after[0] and before[1] != after[1]
    again = PolicyEntry(replace(TINY, seed=1), "another text")
    monkeypatch.setitem(recipes.ENTRIES, "tiny-policy", again)
    assert cache.model_folder("tiny-policy") == after[0]


def _resolve(results):
    torch.set_num_threads(1)
    lines = []
    folder = cache.resolve_model(
        "embedded:tiny-policy", progress=lambda text, _: lines.append(text)
    )
    results.put((os.getpid(), folder, Path(folder, "model.safetensors").read_bytes()))


def test_two_processes_make_one_model(tiny_entries):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_resolve, args=(results,)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert found[0][1:] == found[1][1:]
    assert len([p for p in tiny_entries.iterdir() if p.is_dir()]) == 1


def test_what_a_model_needs_is_made_first_and_once(tiny_entries, monkeypatch):
    entry = CommandsEntry(("no-such-command",), ("tiny-policy", "tiny-prm"), "")
    monkeypatch.setitem(recipes.ENTRIES, "tiny-rounds", entry)
    with pytest.raises(RuntimeError, match="invalid choice: 'no-such-command'"):
        cache.prepare(["tiny-rounds"])
    made = {path.name.rsplit("-", 1)[0] for path in tiny_entries.glob("*[!k]")}
    assert made == {"tiny-policy", "tiny-prm"}
    before = cache.model_folder("tiny-rounds")
    policy = PolicyEntry(replace(TINY, seed=1), "tiny")
    monkeypatch.setitem(recipes.ENTRIES, "tiny-policy", policy)
    assert cache.model_folder("tiny-rounds") != before
