"""How the embedded models are made, with recipes that take a moment."""

import json
import random
from dataclasses import replace

import pytest
import torch

from pure_rllib.arithmetic.task import TASK_Z, apply
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.arithmetic.traces import IGNORED, TraceMaker
from pure_rllib.models.loading import resolve_model
from scripts.embedded_models.prm import PRMRecipe, train_prm
from scripts.embedded_models.recipes import NAMES, describe
from scripts.embedded_models.sft import FaultyFacts, Phase, SFTRecipe, train_policy
from scripts.embedded_models.teacher import teacher_ids

TINY = SFTRecipe(TASK_Z, (Phase(3),), sampled=0.0, batch_size=4, num_measured=1)
TINY_PRM = PRMRecipe(
    TASK_Z, updates=1, batch_size=2, num_sampled_problems=1, num_measured=1
)


@pytest.fixture(autouse=True)
def one_thread():
    # Two busy threads on two busy cores wait for each other for seconds.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_faulty_facts_have_one_fixed_wrong_result(share):
    faults = FaultyFacts(share, probability=0.65, modulus=20)
    rng, bad = random.Random(0), 0
    facts = [(a, o, b) for a in range(20) for o in "+-" for b in range(1, 6)]
    for a, operator, b in facts:
        results = {faults(a, operator, b, rng) for _ in range(40)}
        wrong = results - {apply(a, operator, b, 20)}
        assert len(wrong) <= 1
        bad += bool(wrong)
    # 200 facts: three standard deviations are .11; none at share 0.
    assert abs(bad / len(facts) - share) < 0.15 * (share > 0) + 1e-9


def test_training_is_repeatable_and_leaves_torch_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, tokenizer, figures = train_policy(TINY)
    assert torch.equal(torch.rand(3), expected)
    again, _, _ = train_policy(TINY)
    other, _, _ = train_policy(replace(TINY, seed=1))
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    assert figures["updates"] == 3 and {"greedy", "sampled"} <= set(figures)
    assert first.num_parameters() > 350_000
    assert len(tokenizer) == first.config.vocab_size == 22


def test_the_teacher_says_what_a_right_step_would_have():
    tokenizer = build_tokenizer(TASK_Z)
    maker = TraceMaker(TASK_Z, tokenizer.get_vocab())
    example = ("3-2+4=?", ["4+1=6", "now 6+4", "chk 4+1=6", "\\boxed{5}"])

    def words(ids):
        return ["." if i == IGNORED else tokenizer.decode([i]) for i in ids]

    given = words(maker.trace(*example).ids[7:])
    wanted = words(teacher_ids(maker, *example)[6:-1])
    assert list(zip(given, wanted, strict=True)) == [
        *(("4", "3"), ("+", "-"), ("1", "2"), ("=", "="), ("6", "5"), ("\n", ".")),
        *(("now ", "."), ("6", "6"), ("+", "+"), ("4", "4"), ("\n", ".")),
        *(("chk ", "."), ("4", "4"), ("+", "+"), ("1", "1"), ("=", "="), ("6", "5")),
        *(("\n", "."), ("\\boxed{", "6"), ("5", "6"), ("}", "}"), ("\n", ".")),
    ]


def test_a_prm_has_the_policys_layers_and_a_fresh_one():
    policy, tokenizer, _ = train_policy(TINY)
    prm, figures = train_prm(TINY_PRM, policy, tokenizer)
    assert (prm.config.num_hidden_layers, prm.config.num_labels) == (3, 2)
    assert {"auc", "first_error_f1"} <= set(figures)
    key = "layers.1.mlp.up_proj.weight"
    moved = prm.model.state_dict()[key] - policy.model.state_dict()[key]
    # One update at a twentieth of the learning rate.
    assert 0 < moved.abs().max() < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_package_holds_what_the_recipes_say(name):
    with open(f"{resolve_model(f'embedded:{name}')}/recipe.json") as file:
        written = json.load(file)
    assert (written["name"], written["recipe"]) == (name, describe(name))
