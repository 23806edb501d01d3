"""Every metric of a run, once: its name, its unit and range, what it means, how it is
computed. `docs/metrics.md` is printed from here:

    python -m pure_rllib.reporting.metrics > docs/metrics.md

A name is flat, with "/" between group and metric. A metric that has nothing to measure
in an iteration (no gold answers: no accuracy) is NaN, not missing, so that CSV columns
stay the same from the first row to the last. One that has nothing to measure in the
whole run, being of a step scorer or verifier that the environment lacks, is missing.
"""

import re
from dataclasses import dataclass

from pure_rllib.hacking.detector import SIGNAL_METRICS
from pure_rllib.hacking.flags import FLAG_METRICS

# Three lines each: name [unit, range] and what the environment must have, meaning, how
# it is computed. "#" opens a group.
_REGISTRY = """
# Rewards and credit
reward/process_mean [reward, -1 to 1] needs step scorer
    Process reward of a step.
    Mean over all scored steps of the iteration's responses.
reward/process_min [reward, -1 to 1] needs step scorer
    Process reward of a response's worst step: what the min form pays.
    Mean over scored responses of the minimum over steps.
reward/verifiable [reward, 0 to 1] needs verifier
    Verifiable reward before its coefficient; equals accuracy, unless graded.
    Mean over responses whose gold answer is known.
reward/model [reward] needs reward model
    What the reward model says of a response, before its coefficient; any number.
    Mean over responses.
reward/total [reward]
    Both reward streams with their coefficients, for a whole response.
    Mean over responses of the credited rewards' sum over tokens; before any baseline.
return/mean [reward]
    Rewards from a token on, as credit assignment weighs them; before any baseline.
    Mean over response tokens.
advantage/mean [reward]
    Return minus baseline; far from 0 says that baseline and return do not match.
    Mean over response tokens, after normalisation if that is on.
advantage/std [reward]
    Spread of the advantage; towards 0 there is nothing left to learn from.
    Standard deviation over response tokens (divided by n, not n - 1).

# Risk (RiskPO)
risk/lower_quantile [reward]
    Sum over a bundle of questions below which the tail lies that counts most.
    Tracked over iterations, over the answer sheets of all learners; NaN but for RiskPO.
risk/upper_quantile [reward]
    Sum over a bundle above which a sheet counts no more than at it.
    Likewise.
risk/middle_mean [reward]
    What sheets between the two quantiles earn.
    Mean over those of the iteration, quantiles included; over all where there are none.
risk/tail_mean [reward]
    What sheets of the lower tail earn.
    Mean over those of the iteration, the quantile included; over all if there are none.
risk/mixed [reward]
    Both: what RiskPO raises, but for its normalisation.
    (tail_weight * tail_mean + middle_mean) / (tail_weight + 1).

# Values (ROVER)
rover/log_ratio [nats]
    How far the policy has moved on the sampled tokens since the iteration began.
    logp - old_logp: mean over loss tokens and updates; NaN but for ROVER.
rover/next_value [nats]
    How far it has moved on all tokens alike: what the uniform policy makes of the rest.
    The change of mean_logp at the next token; mean over the same tokens.
rover/mean_logp [nats, <= 0]
    Log-probability of a token drawn at random; ruled by the most improbable ones.
    Mean over the vocabulary, loss tokens and updates.

# Correctness
accuracy [share, 0 to 1] needs verifier
    Correct responses in training samples (evaluation/ has the held-out ones).
    Correct / responses whose gold answer is known.
pass_at_g [share, 0 to 1] needs verifier
    Groups in which at least one response is correct.
    Such groups / groups whose gold answer is known; G is the group size.
groups/verified [groups, count] needs verifier
    Groups whose gold answer is known: what accuracy rests on, as answers go by groups.
    Count in this iteration.
groups/no_signal_share [share, 0 to 1]
    Groups that teach nothing, all their responses having earned the same.
    Groups with equal rewards (to 1e-5), but for the response baseline at equal places.
groups/dropped [groups, count]
    Groups without signal that were left out of the update.
    Count in this iteration; 0 where such groups are kept.
groups/resampled [groups, count]
    Groups that were sampled a second time, after an env runner was lost with them.
    Count in this iteration.
verifier/correct [responses, count] needs verifier
    Responses whose answer equals the gold answer.
    Count in this iteration.
verifier/incorrect [responses, count] needs verifier
    Responses whose answer differs from the gold answer.
    Count in this iteration.
verifier/no_answer [responses, count] needs verifier
    Responses in which the verifier found nothing to compare.
    Count in this iteration.
verifier/timeout [responses, count] needs verifier
    Responses whose check ran over the time limit; they earn 0.
    Count in this iteration.
verifier/error [responses, count] needs verifier
    Responses on which the checker itself failed.
    Count in this iteration.
verifier/part/<name> [1] needs verifier
    A part of the verifiable reward, where the verifier names its parts.
    Mean over the responses that have it.
verifier/opinion_accepted [responses, count] needs verifier
    Responses that only a hybrid verifier's second opinion accepted: audit these.
    Count in this iteration; the rules accepted verifier/correct minus these.
verifier/opinion_rejected [responses, count] needs verifier
    Responses that rules and second opinion rejected.
    Count in this iteration; 0 without a second opinion.
verifier/opinion_undecided [responses, count] needs verifier
    Responses that the second opinion was asked about and had none; they earn 0.
    Count in this iteration; 0 without a second opinion.
verifier/opinion_guarded [responses, count] needs verifier
    Rejected responses that a guard kept from the second opinion (no box, attacks, ...).
    Count in this iteration; 0 without a second opinion.

# Reward model of whole responses
reward_model/overlong [responses, count] needs reward model
    Responses that with their prompt exceed the reward model's context.
    Count in this iteration; such texts lose their beginning.
reward_model/retries [batches, count] needs reward model
    Batches of responses that were rated again, their actor having been lost.
    Count in this iteration; 0 without actors.

# Process reward model (PRM)
prm/verifier_agreement [share, 0 to 1] needs step scorer, verifier
    Responses on which PRM and verifier agree; falling while reward rises is hacking.
    (Minimum over steps > 0) == correct, over scored responses with a gold answer.
prm/overlong [responses, count] needs step scorer
    Responses that with their prompt exceed the PRM's context.
    Count in this iteration.
prm/retries [batches, count] needs step scorer
    Batches of responses that were scored again, their PRM actor having been lost.
    Count in this iteration; 0 without PRM actors.
prm/verdicts [verdicts, count] needs step scorer
    Verdicts that a generative PRM sampled for its votes.
    Count in this iteration, equal questions asked once; 0 without votes.
prm/unclear_verdicts [verdicts, count] needs step scorer
    Sampled verdicts with neither of the two words: votes that count for no side.
    Count in this iteration; 0 without votes.
prm/ties [questions, count] needs step scorer
    Questions about a step whose votes cancel out, so that the score is 0.
    Count in this iteration, equal questions once; 0 without votes.

# Prompts and responses
prompt/tokens [tokens]
    Length of a prompt, template included.
    Mean over prompts of the iteration.
prompt/dropped [prompts, count]
    Prompts longer than the limit, never asked.
    Count over the whole data set, at loading.
response/tokens [tokens]
    Length of a response, end-of-sequence token included.
    Mean over responses.
response/tokens_correct [tokens] needs verifier
    Length of a correct response.
    Mean over correct responses.
response/tokens_incorrect [tokens] needs verifier
    Length of a response that is not correct though the gold answer is known.
    Mean over those responses.
response/steps [steps]
    Reasoning steps of a response.
    Mean over responses.
response/tokens_per_step [tokens]
    Length of a step.
    Tokens inside steps / steps, over all responses.
response/separator_rate [share, 0 to 1]
    Tokens that complete a blank line, where steps end.
    Separators / response tokens, over all responses.
response/blank_share [share, 0 to 1]
    Responses without a visible character.
    Such responses / responses.
response/one_step_share [share, 0 to 1]
    Responses of a single step; towards 1 the step structure has collapsed.
    Such responses / responses.
response/truncated_share [share, 0 to 1]
    Responses that ran out of their token budget.
    Not ended by an end-of-sequence token / responses.
response/no_answer_share [share, 0 to 1] needs verifier
    Responses in which no final answer was found.
    Such responses / responses that were verified.
response/repetition [share, 0 to 1]
    How much of a response repeats itself.
    Mean over responses of `pure_rllib.credit.text_metrics.repetition`.
response/reflection [words, count]
    Words of second thought ("wait", "let me check", ...) in a response.
    Mean over responses of `pure_rllib.credit.text_metrics.reflection`.

# Losses and optimisation
loss/total [1]
    What the optimiser minimises.
    Mean over the iteration's updates.
loss/policy [1]
    Clipped policy-gradient loss.
    Mean over updates; aggregated over tokens as the configuration says.
loss/kl [1]
    KL penalty in the loss, coefficient applied; 0 where KL is part of the reward.
    Mean over updates.
loss/entropy [1]
    Entropy bonus in the loss, coefficient applied, as it is added (<= 0).
    Mean over updates.
kl/reference [nats per token]
    How far the policy is from the reference policy; NaN without a reference policy.
    k3, whatever `kl_estimator` is: mean over loss tokens and updates.
kl/old_policy [nats per token, >= 0]
    How far an update has moved the policy from the old one (see ratio/mean).
    k3: mean over response tokens of ratio - 1 - log(ratio).
entropy [nats per token, >= 0]
    Entropy of the policy's next-token distribution.
    Mean over response tokens.
ratio/mean [1]
    Ratio to the policy that sampled (rollout correction: to that before any update).
    Mean over response tokens and updates.
ratio/max [1]
    Largest probability ratio.
    Maximum over response tokens and updates.
ratio/first_minibatch_max_deviation [1, >= 0]
    Distance of the ratio from 1 before any update; above 1e-4 something is wrong.
    Maximum of |ratio - 1| over the tokens of the iteration's first mini-batch.
clip/low_share [share, 0 to 1]
    Tokens whose ratio was clipped from below (negative advantage).
    Such tokens / loss tokens, over all updates of the iteration.
clip/high_share [share, 0 to 1]
    Tokens whose ratio was clipped from above (positive advantage).
    Such tokens / loss tokens, over all updates of the iteration.
gradient_norm [1, >= 0]
    Length of the gradient before clipping.
    2-norm over all parameters, mean over updates.
learning_rate [1]
    The optimiser's learning rate.
    At the iteration's last update.
weights/version [count]
    Version of the weights that the responses were sampled with.
    Counts weight transfers from learner to generator.
generator_learner_logp_gap [nats, >= 0]
    Disagreement of generator and learner on a few fixed tokens; an error past a bound.
    Maximum |difference of logp| after a generator took over weights, over env runners.

# Generator and learner
weights/lag_mean [versions, >= 0]
    How old the weights are that the responses were sampled with.
    Learner's version before the update - the response's: mean over responses.
weights/lag_max [versions, >= 0]
    The oldest response's lag; at most `max_weight_lag`.
    Maximum over responses.
mismatch/ratio_mean [1]
    Ratio of the learner's probability, before any update, to the generator's.
    Mean over loss tokens: all with a rollout correction, else the first mini-batch's.
mismatch/ratio_max [1]
    The largest such ratio.
    Maximum over the same tokens.
mismatch/kl [nats per token, >= 0]
    How far the learner's policy, before any update, is from the generator's.
    k3 from generator to learner: mean over the same tokens of ratio - 1 - log(ratio).
mismatch/effective_sample_size [share, 0 to 1]
    How many samples of the learner's own policy the generator's are worth.
    (Sum of ratios)^2 / (tokens * sum of squared ratios), over the same tokens.
correction/weight_mean [1]
    Factor by which a token's loss was multiplied; NaN without a correction.
    Mean over loss tokens before masking; tokens of masked responses count as 0.
correction/truncated_share [share, 0 to 1]
    Tokens whose ratio was cut to `rollout_correction_cap`.
    Such tokens / loss tokens.
correction/masked_share [share, 0 to 1]
    Responses that were left out for a ratio too far from 1.
    Such responses / responses with a loss token.

# Speed
tokens/padding_share [share, 0 to 1]
    Padding among the tokens that pass through the policy in updates; 0 if packed.
    Padding / tokens that passed, over all micro-batches.
tokens/prompt_saved_share [share, 0 to 1]
    Prompt tokens that need not pass, as another row of the group has the same ones.
    Such tokens / prompt tokens of all rows in updates; 0 if padded.
tokens/imbalance [ratio, >= 1]
    How much longer the busiest learner has to work in a step than learners on average.
    Most tokens of a learner / mean over learners: mean over steps.
throughput/sampled_tokens_per_s [tokens/s]
    Speed of sampling.
    Response tokens / seconds/sample.
throughput/scored_tokens_per_s [tokens/s] needs step scorer
    Speed of the step scorer.
    Response tokens / seconds/score.
throughput/scoring_share [share, 0 to 1] needs step scorer
    Part of an iteration that goes into scoring steps.
    seconds/score / seconds/iteration.
throughput/learned_tokens_per_s [tokens/s]
    Speed of learning.
    Response tokens times passes over them / seconds/learn.
seconds/iteration [s]
    Wall-clock time of the iteration, without evaluation.
    From the start to the end of `training_step`.
seconds/sample [s]
    Wall-clock time of sampling responses.
    With several env runners the slowest one's.
seconds/score [s] needs step scorer
    Wall-clock time of scoring steps.
    With several env runners the slowest one's.
seconds/verify [s] needs verifier
    Wall-clock time of checking answers, or of text environments between turns.
    With several env runners the slowest one's.
seconds/learn [s]
    Wall-clock time of learner connectors and updates.
    Measured around the learner group's update.
seconds/sync [s]
    Wall-clock time of bringing new weights to the generators.
    Measured around the transfer.
seconds/wait [s]
    Wall-clock time for which the algorithm waited for samples.
    Less than sample + score + verify where sampling and learning overlap.
seconds/other [s]
    What is left of the iteration.
    seconds/iteration minus the five phases, of sampling only what was waited for.
sampling/overlap_share [share, 0 to 1]
    Time of the env runners that was hidden behind the update before.
    1 - seconds/wait / their sync, sample, score and verify; 0 where that is negative.

# Progress through the data
epoch [passes]
    Passes over the problems, the one under way in part.
    problems_seen / problems in the training set.
problems_seen [problems, count]
    Problems asked since the run began.
    Counted over resumed runs as well.

# Evaluation on held-out problems
evaluation/greedy_accuracy [share, 0 to 1] needs verifier
    Problems that are solved by greedy decoding.
    Correct / problems.
evaluation/greedy_accuracy_low [share, 0 to 1] needs verifier
    Lower end of its 95% interval.
    Wilson score interval over problems.
evaluation/greedy_accuracy_high [share, 0 to 1] needs verifier
    Upper end of its 95% interval.
    Wilson score interval over problems.
evaluation/sampled_accuracy [share, 0 to 1] needs verifier
    Sampled responses that are correct.
    Mean over problems of the share of correct responses.
evaluation/sampled_accuracy_low [share, 0 to 1] needs verifier
    Lower end of its 95% interval.
    Interval over problems, not responses, which hang together within a problem.
evaluation/sampled_accuracy_high [share, 0 to 1] needs verifier
    Upper end of its 95% interval.
    Interval over problems, not responses, which hang together within a problem.
evaluation/pass_at_n [share, 0 to 1] needs verifier
    Problems that at least one of the sampled responses solves.
    Mean over problems of pass@n, n being num_samples_per_problem.
evaluation/greedy_model_reward [reward] needs reward model
    What the reward model says of greedy responses.
    Mean over problems.
evaluation/sampled_model_reward [reward] needs reward model
    What it says of sampled responses.
    Mean over responses.
evaluation/response_tokens [tokens]
    Length of a response to a held-out problem.
    Mean over the sampled responses; over the greedy ones if none were sampled.
evaluation/no_answer_share [share, 0 to 1] needs verifier
    Responses to held-out problems in which no final answer was found.
    Over the same responses as evaluation/response_tokens.
evaluation/truncated_share [share, 0 to 1] needs verifier
    Responses to held-out problems that were cut by the token budget.
    Over the same responses as evaluation/response_tokens.

# Turns
turns/mean [turns] needs turns
    Turns of the policy in a response.
    Mean over responses.
turns/cut_share [share, 0 to 1] needs turns
    Responses whose last turn was cut by a budget, so that no environment saw it.
    Over all responses.
turns/cut_observations [observations] needs turns
    Observations that were over `max_observation_tokens`.
    Mean over responses.
turns/observation_tokens [tokens] needs turns
    What the environment says between turns; no other count of tokens has it.
    Mean over responses of its tokens behind the prompt.
env/errors [responses, count] needs turns
    Responses that are lost because their text environment raised or did not answer.
    Count in this iteration.

# Guard against hacks
hacking/pseudo_positive_share [share, 0 to 1] needs verifier
    Correct responses that are highly repetitive or hold a step rated below -0.5.
    Such responses / correct responses.
hacking/hacked_share [share, 0 to 1] needs step scorer, verifier
    Incorrect responses whose worst step is rated above 0: the PRM falls for them.
    Such responses / scored responses whose gold answer is known.
"""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: its key in results.
        unit: unit, then range where it has one.
        meaning: what it says.
        estimator: how it is computed, and over what.
        group: heading that it stands under in the documentation.
        needs: what the environment must have: "step scorer", "verifier", "turns".
    """

    name: str
    unit: str
    meaning: str
    estimator: str
    group: str
    needs: frozenset[str] = frozenset()


def _parse(registry: str) -> dict[str, Metric]:
    """Reads the registry above; a name that stands there twice is an error."""
    metrics: dict[str, Metric] = {}
    group = ""
    lines = iter(line.strip() for line in registry.splitlines() if line.strip())
    for line in lines:
        if line.startswith("# "):
            group = line[2:]
            continue
        name, _, rest = line.partition(" [")
        unit, end, needs = rest.partition("]")
        assert end, f"registry line {line!r}: expected 'name [unit]'"
        assert name not in metrics, f"metric {name!r} is registered twice"
        of_env = frozenset(re.findall("step scorer|verifier|turns", needs))
        metrics[name] = Metric(name, unit, next(lines), next(lines), group, of_env)
    return metrics


_REGISTERED = _parse(_REGISTRY + FLAG_METRICS + SIGNAL_METRICS)
METRICS = {name: metric for name, metric in _REGISTERED.items() if "<" not in name}
FAMILIES = tuple(name.split("<")[0] for name in _REGISTERED if "<" in name)
"""How metrics begin whose last part an environment names."""


def absent_metrics(
    *,
    has_step_scorer: bool,
    has_verifier: bool,
    has_turns: bool = False,
    has_reward_model: bool = False,
) -> frozenset[str]:
    """Returns the metrics that a run without these can never measure."""
    has = {
        "step scorer": has_step_scorer,
        "verifier": has_verifier,
        "turns": has_turns,
        "reward model": has_reward_model,
    }
    return frozenset(
        name
        for name, metric in METRICS.items()
        if not all(has[need] for need in metric.needs)
    )


def metrics_markdown() -> str:
    """Writes the registry as the text of `docs/metrics.md`."""
    parts = [
        "# Metrics",
        "",
        "Printed by `python -m pure_rllib.reporting.metrics > docs/metrics.md`; edit "
        "`pure_rllib/reporting/metrics.py`, not this file.",
        "",
        "A metric that has nothing to measure in an iteration is NaN. One that needs a "
        "step scorer, a verifier, a reward model or turns is missing where the "
        "environment has none.",
    ]
    group = ""
    for metric in _REGISTERED.values():
        if metric.group != group:
            group = metric.group
            parts += ["", f"## {group}", ""]
            parts += [
                "| name | unit, range | meaning | computed as | needs |",
                "|---|---|---|---|---|",
            ]
        needs = ", ".join(sorted(metric.needs))
        name, text = f"`{metric.name}`", (metric.meaning, metric.estimator)
        cells = (name, metric.unit, *text, needs)
        parts.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(metrics_markdown(), end="")
