"""Whether the Hugging Face hub can be reached."""

import logging
import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

logger = logging.getLogger(__name__)


@cache
def go_offline_without_hub() -> None:
    """Has this process read cached files only, where the hub's name has no address.

    Every file that is missing would else be asked for six times, in 23 seconds. Where
    there is a proxy, that one knows the addresses, and nothing is changed.
    """
    if constants.HF_HUB_OFFLINE or getproxies():
        return
    host = urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        constants.HF_HUB_OFFLINE = True
        logger.warning(
            "%s cannot be reached (%s): only what is cached is read from the hub.",
            host,
            error,
        )
