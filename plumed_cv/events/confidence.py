"""How likely it is that no event of a state is missing.

Only searches that end at an event below the limit of the barrier count. The confidence is one minus
the largest of three probabilities that an event is missing after m of them found n events:

- 1/k, if the last k found known events (Xu and Henkelman, J. Chem. Phys. 129, 114104 (2008));
- (n + 1) (1 - 1/(n + 1))^m, a bound of the probability that one of n + 1 events is missing if all
  are found equally often. It is larger than 1/k if there are many events;
- (1 - r/m)^m, if the missing event is found as rarely as the rarest known one, r times.

All three assume that what is missing is not found much more rarely than what is known.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Confidence:
    """How likely it is that no event is missing.

    Attributes
    ----------
    counted
        Number of searches that ended at an event below the limit.
    events
        Number of known events.
    known
        Number of these searches since the last one that found a new event.
    rarest
        How often the rarest event was found; 0 if one that is known was not found.
    """

    counted: int
    events: int
    known: int
    rarest: int

    @property
    def missing_equal(self) -> float:
        """Bound of the probability that an event is missing if all are found equally often."""
        n = self.events + 1
        return float(min(1.0, n * (1.0 - 1.0 / n) ** self.counted))

    @property
    def missing_rare(self) -> float:
        """Probability that all searches miss an event that is as rare as the rarest one."""
        return float((1.0 - self.rarest / self.counted) ** self.counted) if self.counted else 1.0

    @property
    def value(self) -> float:
        """The confidence."""
        return 1.0 - max(1.0 / max(1, self.known), self.missing_equal, self.missing_rare)

    @classmethod
    def of(cls, found: Sequence[int], given: Collection[int] = ()) -> "Confidence":
        """Return the confidence after searches that found these events, in their order.

        Parameters
        ----------
        found
            Number of the event that each search found.
        given
            Events that are known without a search.
        """
        if not found:
            return cls(0, len(given), 0, 0)
        numbers = Counter(found)
        last = max(found.index(event) for event in numbers)
        rarest = min(numbers[event] for event in {*numbers, *given})
        return cls(len(found), len({*numbers, *given}), len(found) - 1 - last, rarest)
