"""What a learner holds for its next update, without Ray."""

from pure_rllib.learners.delivery import GroupInbox


def test_episodes_come_in_the_groups_order_and_once() -> None:
    inbox = GroupInbox()
    assert inbox.fetch({7: ["c", "d"], 3: ["a", "b"]}) == []
    assert inbox.take() == ["c", "d", "a", "b"]
    assert inbox.take() == []


def test_a_new_deal_forgets_the_groups_of_the_older_one() -> None:
    inbox = GroupInbox()
    inbox.fetch({1: ["a"], 2: ["b"]})
    inbox.fetch({2: ["b again"], 3: ["c"]})
    assert inbox.take() == ["b again", "c"]
