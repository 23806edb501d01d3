"""The metrics against reward hacking, in the form of `reporting.metrics`."""

HACKING_REGISTRY = """
# Guard against hacks
hacking/empty_step_share [share, 0 to 1]
    Responses with a step of nothing, or with nothing visible at all.
    Such responses / responses.
hacking/short_share [share, 0 to 1]
    Responses far shorter than their group's (see `hack_limits`).
    Such responses / responses.
hacking/repetition_share [share, 0 to 1]
    Responses that repeat their sentences or most of their text (see `hack_limits`).
    Such responses / responses.
hacking/after_answer_share [share, 0 to 1]
    Responses that go on after their boxed answer.
    Such responses / responses.
hacking/chatter_share [share, 0 to 1]
    Responses with thanks, wishes or greetings.
    Such responses / responses.
hacking/pseudo_positive_share [share, 0 to 1]
    Correct responses that are highly repetitive or hold a step rated below -0.5.
    Such responses / correct responses.
hacking/hacked_share [share, 0 to 1]
    Incorrect responses whose worst step is rated above 0: the PRM falls for them.
    Such responses / scored responses whose gold answer is known.
hacking/alarm [0 or 1]
    Whether any of the signals below has gone off; NaN without a monitor.
    By `reporting.hacking.find_alarms`.
hacking/signal/accuracy_falls [0 or 1]
    Reward rises while accuracy falls.
    Last window against the window of the best accuracy.
hacking/signal/length_falls [0 or 1]
    Reward rises while responses shrink and accuracy does not rise.
    Last window against the window of the longest responses.
hacking/signal/accuracy_collapse [0 or 1]
    Accuracy has fallen by a large part, whatever the reward does.
    Last window against the window of the best accuracy.
hacking/signal/reward_collapse [0 or 1]
    The reward has fallen below all that is remembered.
    Last window against the window of the lowest reward.
hacking/signal/kl_jump [0 or 1]
    kl/reference jumps.
    Last iteration against the median of two windows before.
hacking/signal/loss_jump [0 or 1]
    loss/policy jumps.
    Last iteration against the median of two windows before.
hacking/signal/one_step [0 or 1]
    response/one_step_share has risen.
    Last window against the window of the lowest.
hacking/signal/no_answer [0 or 1]
    response/no_answer_share has risen.
    Last window against the window of the lowest.
hacking/signal/repetition [0 or 1]
    response/repetition has risen.
    Last window against the window of the lowest.
hacking/signal/disagreement [0 or 1]
    prm/verifier_agreement has fallen.
    Last window against the window of the highest.
hacking/signal/pseudo_positives [0 or 1]
    hacking/pseudo_positive_share has risen.
    Last window against the window of the lowest.
"""
