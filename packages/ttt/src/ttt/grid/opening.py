"""The stages before the net, search and trees, and what the net is to see; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ttt.grid.answers import Grid
from ttt.grid.ballot import Ballot, Opening, spare_grids
from ttt.grid.columns import telling
from ttt.grid.deck import Deck
from ttt.grid.images import Group, groups_of
from ttt.grid.search import Found, candidates, search
from ttt.grid.work import Work

ENOUGH = 0.8
"""With a search answer surer than this for every test the learners are not asked."""


def opening(
    inputs: Sequence[Grid],
    outputs: Sequence[Grid],
    seed: int,
    steps: int | None,
    stages: Sequence[str],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Opening]:
    """Search, ask the trees where the search is not sure, and prepare for the net.

    Args:
        inputs: All inputs, training first.
        outputs: The training outputs.
        seed: Of all randomness.
        steps: Work units to spend, None for no limit.
        stages: Which of "search", "trees", "net" take part.
        stop: Asked between pieces of work; true ends the work.

    Yields:
        All that is known, whenever there is more.
    """
    work = Work(stop, steps)
    tests = len(inputs) - len(outputs)
    ballot, spare, found = Ballot(tests), spare_grids(inputs, outputs, []), Found()
    for found in search(inputs, outputs, seed, work) if "search" in stages else _sizes_only(inputs, outputs, work):
        spare = spare_grids(inputs, outputs, [g.sizes for g in found.groups])
        if "search" in stages:
            ballot = Ballot(tests).with_stage(candidates(found, tests))
        yield Opening("search", ballot, spare, work.done)
    if not found.groups or all(max((c.confidence for c in b.values()), default=0.0) > ENOUGH for b in ballot.best):
        return
    if "trees" in stages and not work.over:
        from ttt.grid import trees  # here, because most tasks end before and scikit-learn takes a second to load

        before = ballot
        for forecast in trees.trees(found.groups[0], inputs, outputs, seed, work, turned=False):
            ballot = before.with_stage(trees.candidates(forecast))
            yield Opening("trees", ballot, spare, work.done)
    if "net" in stages and not work.over:
        shown, *more = inputs_for_net(inputs, outputs, found.groups[0])
        deck = Deck(shown, outputs, list(zip(*more, strict=True)) or None)
        yield Opening("net", ballot, spare, work.done, deck)


def inputs_for_net(inputs: Sequence[Grid], outputs: Sequence[Grid], group: Group) -> list[Sequence[Grid]]:
    """What the net sees per input, all of the output's size: the input, or else the views that say most."""
    if all(a.shape == b.shape for a, b in zip(inputs, outputs, strict=False)):
        return [inputs]
    return [image.grids for image in telling(group, outputs, most=4)]


def _sizes_only(inputs: Sequence[Grid], outputs: Sequence[Grid], work: Work) -> Iterator[Found]:
    """The learners need the views even where no program is wanted."""
    for groups in groups_of(inputs, outputs, work):
        yield Found([], groups)
