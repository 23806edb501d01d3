import random
from dataclasses import replace

import pytest
import torch

from pure_rllib.arithmetic.sft import FaultyFacts, Phase, SFTRecipe, train_policy
from pure_rllib.arithmetic.task import TASK_M20B, TASK_Z, apply
from pure_rllib.arithmetic.training import is_correct, steps_of

TINY = SFTRecipe(TASK_Z, (Phase(3),), sampled=0.0, batch_size=4, num_measured=1)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    # Two busy threads on two busy cores wait for each other for seconds.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_faulty_facts_have_one_fixed_wrong_result():
    faults = FaultyFacts(share=0.5, probability=0.65, modulus=20)
    rng, bad = random.Random(0), 0
    facts = [(a, o, b) for a in range(20) for o in "+-" for b in range(1, 6)]
    for a, operator, b in facts:
        results = [faults(a, operator, b, rng) for _ in range(40)]
        right = apply(a, operator, b, 20)
        wrong = {result for result in results if result != right}
        assert len(wrong) <= 1
        bad += bool(wrong)
    assert 0.35 < bad / len(facts) < 0.65


def test_no_fact_is_faulty_at_share_zero():
    faults = FaultyFacts(share=0.0, probability=1.0, modulus=10)
    assert faults(3, "-", 5, random.Random(0)) == 8


def test_training_is_repeatable_and_leaves_torch_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    first, tokenizer, figures = train_policy(TINY)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    again, _, _ = train_policy(TINY)
    other, _, _ = train_policy(replace(TINY, seed=1))
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    assert figures["updates"] == 3
    assert first.num_parameters() > 350_000
    assert len(tokenizer) == first.config.vocab_size == 22


def test_a_missed_target_is_an_error():
    recipe = replace(TINY, phases=(Phase(2, target=0.9),), measure_every=2)
    with pytest.raises(RuntimeError, match=r"`target` \(0.9\) of `sampled`"):
        train_policy(recipe)


def test_answers_are_read_from_the_last_box():
    problem = TASK_M20B.problem(0)
    assert is_correct(problem, f"1+1=2\n\n\\boxed{{{problem.answer}}}\n")
    assert not is_correct(problem, f"\\boxed{{{problem.answer}}}\n\n1+1=2")
    assert steps_of("1+1=2\n\n\n\n \n\n\\boxed{2}") == ["1+1=2", "\\boxed{2}"]
