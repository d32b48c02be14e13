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
        where = f"diverged at step {verdict.step}: {verdict.what}"
        values = f"was {verdict.before}, is {verdict.after}"
        of = f" in attempt {verdict.attempt}" if verdict.attempt else ""
        return f"resume {where} {values.replace(', is', of + ', is')}{_tier(verdict)}"
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


def _tier(verdict: ResumeVerified | ResumeDiverged) -> str:
    if verdict.tier != "tolerant":
        return f" ({verdict.tier})"
    bound = f", losses within {verdict.bound:g}" if verdict.bound else ""
    return f" (tolerant{bound}: {'; '.join(verdict.why)})"
