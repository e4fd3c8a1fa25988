"""Protocols of your own in place of HTTP, with messages beside the content."""

from __future__ import annotations

from ._custom import Codec as Codec
from ._custom import CodecEvent as CodecEvent
from ._custom import Message as Message
from ._custom import MessageChannel as MessageChannel
from ._custom import Protocol as Protocol
from ._custom import ProtocolError as ProtocolError
from ._messages import END as END
from ._messages import Data as Data
from ._messages import End as End
from ._messages import Trailers as Trailers
