"""What happens where the Hugging Face hub has no address."""

import socket
from typing import Any

import pytest
from huggingface_hub import constants

from pure_rllib.models.hub import go_offline_without_hub
from pure_rllib.models.loading import policy_config, resolve_model
from pure_rllib.rewards.prm.generative import GenerativeLoader

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The names whose addresses were asked for; none has one."""
    names: list[Any] = []

    def nobody(host: str, *_: Any) -> Any:
        names.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example:8443/x")
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    go_offline_without_hub.cache_clear()
    return names


def test_without_an_address_only_cached_files_are_read(
    asked: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    resolve_model("embedded:arithmetic-policy")
    resolve_model("/")
    assert not asked, "these are folders"
    for _ in range(2):
        assert resolve_model("owner/name") == "owner/name"
    assert asked == ["hub.example"]
    assert constants.is_offline_mode()
    assert "hub.example cannot be reached" in caplog.text


def test_a_proxy_knows_the_addresses(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    resolve_model("owner/name")
    assert not asked and not constants.is_offline_mode()


def test_a_model_that_is_nowhere_is_a_users_error(asked: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"`model` \(owner/name\) must be a folder"):
        policy_config("owner/name")
    with pytest.raises(ValueError, match=r"`prm` \(owner/name\) must be a folder"):
        GenerativeLoader("owner/name", None)
