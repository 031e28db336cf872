"""What a report says that measured nothing, or whose audit was cut short: it decides nothing, whatever it holds."""

from __future__ import annotations

from dataclasses import dataclass

from precaudit.model import Report
from precaudit.words import UNDER_TORCHRUN, plural, prose


@dataclass(frozen=True)
class Ending:
    """How an audit ended before its time, and what its reader should do first."""

    how: str
    advice: str


CUT_SHORT = {
    "killed": Ending(
        "the run was killed",
        "See in script.log what ended the run, and profile again; with a smaller batch, if memory was short.",
    ),
    "failed": Ending("the script failed", "Mend the script (script.log has what it said), and profile again."),
    "unable": Ending(
        "precaudit could not go on", "The script is not to blame: do as the reason says, and profile again."
    ),
    "unlaunched": Ending(
        "the script failed without its launcher",
        f"Profile again, as the one process of a launcher: {UNDER_TORCHRUN}",
    ),
    "unequipped": Ending(
        "a module is missing",
        "Install it where precaudit is, or precaudit where the script's modules are (one of your own is found "
        "beside the script and on PYTHONPATH), and profile again.",
    ),
    "misused": Ending(
        "the script refused its arguments",
        "Give the script's own arguments after its name (script.log has what it said), and profile again.",
    ),
    "unanswered": Ending(
        "the script asked for input",
        "No run is given any: let the script take it as an argument instead, and profile again.",
    ),
    "without_gpu": Ending(
        "the script found no GPU",
        'Let the script choose its device ("cuda" if torch.cuda.is_available() else "cpu"), or go where torch finds a '
        "GPU, and profile again.",
    ),
    "unroomed": Ending(
        "memory ran out",
        "Profile again with a smaller batch, or more memory: an audit needs some beside the training's own.",
    ),
    "interrupted": Ending("the run was interrupted", "Profile again and let the run come to its end."),
}
TRAINS = "Profile a script that trains: precaudit follows what calls .backward()."
IN_A_LOOP = "Put the audit around training steps: with precaudit.audit(model, optimizer=optimizer): ..."


def cut_short(report: Report) -> Ending | None:
    return CUT_SHORT.get(str(report.job.get("stopped")))


def is_empty(report: Report) -> bool:
    """Whether all there is to tell is why there is nothing."""
    return not (report.layers or report.findings or report.plan.modules or report.verification.trials)


def needs_mending(report: Report) -> bool:
    """Whether something has to be mended before the same command is given again: nothing after a mere interruption."""
    return cut_short(report) not in (None, CUT_SHORT["interrupted"])


def lacks_launcher(report: Report) -> bool:
    return cut_short(report) is CUT_SHORT["unlaunched"]


def title(report: Report) -> str | None:
    """The headline; None where the audit came to its end and measured something."""
    ending = cut_short(report)
    if ending:
        what = "CUT SHORT" if report.layers else "NOTHING MEASURED"
        rest = "; what was measured until then is below" if report.layers else ""
        return f"{what}: {ending.how} {_when(report)}{rest}"
    if _measured(report):
        return None
    why = report.verification.reason or report.job.get("stopped") or "no layer was seen"
    return f"NOTHING MEASURED: {prose(why)}"


def details(report: Report) -> tuple[str, ...]:
    """What ended the audit, where the headline doesn't say it already."""
    why = report.verification.reason
    return (f"Why: {prose(why)}",) if why and cut_short(report) else ()


def badge(report: Report) -> str | None:
    if cut_short(report) and report.layers:
        return "Cut short"
    return None if _measured(report) else "Nothing measured"


def advice(report: Report) -> str | None:
    """What to do first; None where the audit came to its end and measured something."""
    ending = cut_short(report)
    if ending:
        return ending.advice
    if _measured(report):
        return None
    return IN_A_LOOP if report.job.get("kind") == "audit" else TRAINS


def no_plan(report: Report) -> str:
    """Why there is no plan, where there is none."""
    if cut_short(report):
        return "No plan: the audit did not come to its end."
    return f"No {'step' if report.layers else 'module'} was seen, so there is nothing to plan."


def no_findings(report: Report) -> str:
    """What it means that there is none."""
    if not report.layers:
        return "nothing was measured"
    return "no rule found anything wrong" + (" in what was measured" if cut_short(report) else "")


def _measured(report: Report) -> bool:
    """Whether there is something to judge: an audit in somebody's own loop may see a forward pass and no step."""
    steps = report.job.get("audited_steps", 1) if report.job.get("kind") == "audit" else 1
    return report.verification.verdict != "not_run" or (bool(report.layers) and steps != 0)


def _when(report: Report) -> str:
    steps = report.job.get("steps")
    if steps and isinstance(steps, int):
        return f"after {plural(steps, 'step')}"
    return "in its first step" if report.layers else "before its first step"
