"""The Ray pool gives the bytes that local workers give."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ttt_test_backends import Misbehaving, Wanderer

import ttt

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[object]:
    """One local cluster for this file."""
    ray = pytest.importorskip("ray", reason='needs the extra "ray"')
    if ray.is_initialized():
        yield ray
        return
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_ray_gives_the_same_bytes(ray_cluster: object, sample_arc_tasks: list[ttt.Task]) -> None:
    """With a budget in work units, a Ray cluster and one local worker answer alike, and failures are contained."""
    texts = []
    for pool in ("ray", "local"):
        run = ttt.run(sample_arc_tasks, backend=Wanderer(), budget="30 steps", workers=2, pool=pool)  # type: ignore[arg-type]
        for _ in run:
            pass
        assert {r.status for r in run.results.values()} == {"stopped"}
        texts.append(run.submission())
    assert texts[0] == texts[1]
    run = ttt.run(sample_arc_tasks[:1], backend=Misbehaving("raises"), budget=30, pool="ray")
    for _ in run:
        pass
    assert run.results["identity"].error is not None
    assert run.results["identity"].answered
