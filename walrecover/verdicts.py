"""Verdicts on a resume, as people read them.

Pure. A verdict is one of three events; which it is was decided by `proof`.
"""

from __future__ import annotations

from walrecover.events import ResumeDiverged, ResumeUnproven, ResumeVerified

Verdict = ResumeVerified | ResumeDiverged | ResumeUnproven


def is_good(verdict: Verdict) -> bool:
    """Whether it proves that the run is the same one."""
    return isinstance(verdict, ResumeVerified)


def said(verdict: Verdict) -> str:
    """The verdict in one line, without the run's name."""
    if isinstance(verdict, ResumeUnproven):
        return f"resume not proven: {verdict.reason}"
    if isinstance(verdict, ResumeDiverged):
        return _first_difference(verdict) + _tier(verdict)
    proofs = []
    if verdict.to_step:
        proofs.append(f"steps {verdict.from_step} to {verdict.to_step} are what they were")
    if verdict.restored is not None:
        digest = verdict.restored.hex()[:16]
        proofs.append(f"the state after step {verdict.base} is the saved one ({digest})")
    if verdict.states:
        steps = ", ".join(map(str, verdict.states[:8])) + (" …" if len(verdict.states) > 8 else "")
        proofs.append(f"so is the whole state at step {steps}")
    done = f"verified to step {verdict.to_step or verdict.base}"
    if not verdict.to_step:
        proofs.append("no step was done twice")
    return f"resume {done}: {'; '.join(proofs)}{_tier(verdict)}"


def _first_difference(one: ResumeDiverged) -> str:
    if one.attempt:
        return (
            f"resume diverged at step {one.step}: {one.what} was {one.before} in attempt "
            f"{one.attempt}, is {one.after}"
        )
    return (
        f"resume diverged at step {one.step}: {one.what} was saved as {one.before}, is {one.after}"
    )


def _tier(verdict: ResumeVerified | ResumeDiverged) -> str:
    if verdict.tier != "tolerant":
        return f" ({verdict.tier})"
    bound = f", losses within {verdict.bound:g}" if verdict.bound else ""
    return f" (tolerant{bound}: {'; '.join(verdict.why)})"
