"""What the parties of a run share."""

from __future__ import annotations

from ._network import MemoryAcceptor, Network
from ._observed import Observed, OriginSide
from ._scenario import Request, Scenario
from ._secure import AnyEnd


class Stage:
    """A scenario while it runs.

    Attributes:
      scenario: What happens.
      observed: What it shows.
      network: All links.
      acceptor: Where clients connect.
      origins: The origin's side of each connection to it, in order.
      clients: The clients' ends, in the order of connections.
      by_number: All requests.
    """

    def __init__(self, scenario: Scenario, observed: Observed) -> None:
        self.scenario = scenario
        self.observed = observed
        self.network = Network(scenario.fail_operation)
        scheme = "https" if scenario.secure else "http"
        self.acceptor = MemoryAcceptor(self.network, f"{scheme}://proxy.test")
        self.origins: list[OriginSide] = []
        self.clients: list[AnyEnd] = []
        self.by_number: dict[int, Request] = {
            number: request for number, _, request in scenario.requests()
        }

    def problem(self, text: str) -> None:
        """Write down what is wrong."""
        self.observed.problems.append(text)
