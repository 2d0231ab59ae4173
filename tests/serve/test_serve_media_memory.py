"""Memory of media: in order, never more than one request's beyond the limit, and never a wait for each other."""

from __future__ import annotations

import asyncio
import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.media_memory import MediaMemory, Share


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def taking(share: Share, *needs: int) -> list[asyncio.Task[None]]:
    return [asyncio.ensure_future(share.take(need)) for need in needs]


async def test_the_first_takes_all_it_needs_and_others_wait_in_order() -> None:
    memory = MediaMemory(100)
    with memory.share() as first, memory.share() as second, memory.share() as third:
        (one,) = taking(first, 90)
        await settled()
        two, three = *taking(second, 20), *taking(third, 5)
        (more,) = taking(first, 30)
        await settled()
        assert one.done() and more.done(), "the first never waits"
        assert not two.done() and not three.done(), "nor is the second overtaken by what would fit"
        assert first.taken == 120


async def test_what_a_request_leaves_is_handed_on() -> None:
    memory = MediaMemory(100)
    with memory.share() as second:
        with memory.share() as first:
            await first.take(100)
            waiting = taking(second, 60, 30)
            await settled()
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)
        assert second.taken == 90


async def test_who_gives_up_waiting_holds_nothing_and_nobody() -> None:
    memory = MediaMemory(100)
    with memory.share() as first, memory.share() as last:
        await first.take(80)
        with memory.share() as given_up:
            (task,) = taking(given_up, 50)
            waiting = taking(last, 20)
            await settled()
            assert not waiting[0].done()
            task.cancel()
        await asyncio.gather(*waiting)
        assert (first.taken, given_up.taken, last.taken) == (80, 0, 20)


async def test_what_is_granted_in_the_moment_of_giving_up_is_given_back() -> None:
    memory = MediaMemory(100)
    with memory.share() as first:
        (task,) = taking(first, 60)
        await asyncio.sleep(0)  # granted, but not awake yet
        task.cancel()
        await settled()
    with memory.share() as next_one, memory.share() as other:
        await asyncio.gather(next_one.take(50), other.take(50))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=4), min_size=1, max_size=8), st.randoms())
def test_every_request_ends_and_the_limit_is_passed_by_one_requests_media_at_most(needs, random) -> None:
    async def main() -> None:
        memory, most = MediaMemory(100), max(map(sum, needs))

        async def request(media: list[int]) -> None:
            with memory.share() as share:
                tasks = [asyncio.create_task(share.take(need)) for need in media]
                for task in tasks:
                    await task
                    assert 100 - memory._free <= 100 + most
                    for _ in range(random.randint(0, 3)):
                        await asyncio.sleep(0)
                assert share.taken == sum(media)

        async with asyncio.timeout(10):
            await asyncio.gather(*map(request, needs))
        assert memory._free == 100
        assert not memory._shares

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(main())
