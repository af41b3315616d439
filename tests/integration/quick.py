"""What several stories of a fleet share: quick settings, slow prompts, and waiting for what members say."""

from __future__ import annotations

from tests.integration.fleet import Fleet, Member, until

#: Short leases, so that a test sees them run out; pictures that cost nothing.
QUICK = {
    "STREAMAPP_ENGINE": "fake",
    "STREAMAPP_LEASE": "4",
    "STREAMAPP_LEASE_RENEWAL": "1",
    "STREAMAPP_SESSION_TIMEOUT": "6",
    "STREAMAPP_HEARTBEAT_INTERVAL": "1",
    "STREAMAPP_RECONCILE_INTERVAL": "3",
}
#: A prompt that the fake engine takes a tenth of a second a step for.
SLOW = "fake:slow"


async def said(member: Member, action: str) -> bool:
    """Whether a member logged an action."""
    return action in member.log.read_text(errors="replace")


async def logged(member: Member, action: str, within: float = 20) -> None:
    """Wait until a member says something."""
    await until(lambda: said(member, action), within=within, what=f"{member.name} says {action}", log=member.log)


async def state(fleet: Fleet, web: Member, ids: list[str], wanted: str, within: float = 30) -> None:
    """Wait until all tasks are in one state."""

    async def reached() -> bool:
        return {(await fleet.task(web, task_id))["status"] for task_id in ids} == {wanted}

    await until(reached, within=within, what=f"{len(ids)} tasks are {wanted}", log=web.log)
