"""The rules of `precaudit check`: PA7xx."""

from __future__ import annotations

from precaudit.catalogue.rule import Rule

ANEW = "Profile again, and pass the new plan."

CHECK_RULES = (
    Rule("PA701", "a planned module is gone", "The plan names a module that the model doesn't have.", ANEW),
    Rule(
        "PA702", "a module is new", "The model has a module that the plan doesn't know: it would run unverified.", ANEW
    ),
    Rule(
        "PA703",
        "a module was renamed",
        "A module that the plan names is gone, and one like it stands in its place.",
        f"Rename it in the plan too, or: {ANEW}",
    ),
    Rule("PA704", "another model's plan", "The plan and the model have less than half of the modules in common.", ANEW),
    Rule("PA705", "a module was replaced", "A module has another type than when the plan was made.", ANEW),
    Rule(
        "PA706",
        "a container computes now",
        "A module now computes between its children, which the plan doesn't know of.",
        ANEW,
    ),
    Rule(
        "PA707",
        "a planned model did not run",
        "The plan also covers a model that this script doesn't run, so it was not checked.",
        "Check the script that runs it too.",
    ),
    Rule(
        "PA708",
        "an exception does nothing",
        "The plan has an operation in a format of its own that did not run where the plan names it.",
        f"Correct its name in the plan, or: {ANEW}",
    ),
    Rule(
        "PA709",
        "forward is called directly",
        "A module's forward is called by its name: its own operations and outputs were not checked.",
        "Call the module: model(x), not model.forward(x).",
    ),
    Rule(
        "PA710",
        "it is unclear which planned model this is",
        "By its modules it may be one of several in the plan, whose formats differ: one was checked.",
        "Call the model in the script as the plan does.",
    ),
    Rule(
        "PA711",
        "a result overflows with this data",
        "PA101 where the plan has the format: the result is too large for it.",
        "Profile with this data, or repair what feeds it.",
    ),
    Rule(
        "PA712",
        "an operand overflows with this data",
        "PA102 where the plan has the format: a product's input is too large for it.",
        "Profile with this data, or repair what feeds it.",
    ),
    Rule(
        "PA713",
        "a constant overflows in the plan",
        "PA103 where the plan has the format: a constant does not fit it.",
        "Change the constant, or profile again.",
    ),
    Rule(
        "PA714",
        "a constant vanishes in the plan",
        "PA104 where the plan has the format: a constant is zero in it.",
        "Use a larger constant, or profile again.",
    ),
    Rule(
        "PA715",
        "whole numbers alias in the plan",
        "PA105 where the plan has the format: it can't hold all whole numbers in a product.",
        "Compute them in float32, or profile again.",
    ),
    Rule(
        "PA716",
        "an operation loses its result in the plan",
        "PA106 where the plan has the format: the operation alone is off by a quarter or more.",
        "Keep the operation in float32, or profile again.",
    ),
    Rule(
        "PA717",
        "autocast refuses an operation of the plan",
        "PA107 where the plan has the format: CUDA's autocast raises at the operation.",
        "Use binary_cross_entropy_with_logits, or profile again.",
    ),
    Rule(
        "PA718",
        "the loss is not finite in float32",
        "The script's loss is nan or inf without any low precision: no plan can help.",
        "Look at the data and at the learning rate first.",
    ),
    Rule(
        "PA719",
        "no range was measured",
        "No forward pass ran with gradients enabled.",
        "Check a script that trains, or a model file.",
    ),
    Rule(
        "PA721",
        "the target lacks a format",
        "The card to deploy on does not have a format that the plan uses.",
        "Check the plan in another format, or profile again for this target.",
    ),
    Rule(
        "PA722",
        "the target lacks tf32",
        "What the plan has in tf32 would run in float32: slower, and just as well.",
        "Profile again for this target, if speed matters.",
    ),
    Rule(
        "PA731",
        "an output is too inexact",
        "The output in eval mode differs from float32's by more than the tolerance.",
        "Keep the model's last layers in a wider format, or pass --tolerance.",
    ),
    Rule(
        "PA732",
        "top-1 classes change",
        "More than a hundredth of the rows get another class, near ties apart.",
        "Keep the classifier and what feeds it in a wider format.",
    ),
    Rule(
        "PA733",
        "an output is not finite",
        "An output has nan or inf under the plan, and is finite in float32.",
        "Plan the layers that overflow in bfloat16 or float32.",
    ),
    Rule(
        "PA734",
        "the model raises under the plan",
        "A call in eval mode fails in the planned format, and not in float32.",
        "Keep the operation that fails in float32.",
    ),
    Rule(
        "PA735",
        "no output to compare",
        "What the model returns in eval mode could not be compared, or no rounding changed a bit of it.",
        "Check it from a model file, with trained weights.",
    ),
    Rule(
        "PA736",
        "an output is not finite in float32",
        "An output has nan or inf without any low precision.",
        "Repair the model or its data first.",
    ),
    Rule(
        "PA737",
        "other rows are chosen",
        "The model chooses rows by their values, such as boxes, and chooses others under the plan.",
        "Keep what computes the scores in a wider format.",
    ),
    Rule(
        "PA741",
        "zeros break the model",
        "Inputs of zeros give nan or inf, or make the model raise.",
        "Guard the model against them, with an eps or a clamp, or keep them away.",
    ),
    Rule(
        "PA742",
        "large inputs break the model",
        "Inputs many times as large give nan or inf, or make the model raise.",
        "Normalise or clamp the inputs.",
    ),
    Rule(
        "PA743",
        "denormal inputs break the model",
        "The smallest numbers as inputs give nan or inf, or make the model raise.",
        "Guard the model against them, with an eps or a clamp, or keep them away.",
    ),
    Rule(
        "PA744",
        "a batch of one breaks the model",
        "A single sample gives nan or inf, or makes the model raise under the plan.",
        "Guard the model against it, or batch more samples.",
    ),
    Rule(
        "PA745",
        "the longest input breaks the model",
        "The longest input seen gives nan or inf, or makes the model raise under the plan.",
        "Keep the operation that fails in float32, or limit the length.",
    ),
    Rule(
        "PA751",
        "gradients underflow at the plan's loss scale",
        "More than a hundredth of a module's gradient energy is below float16's range.",
        "Use the finding's loss scale, or profile with this data.",
    ),
    Rule(
        "PA752",
        "gradients overflow at the plan's loss scale",
        "Gradients with the loss scale in them are above float16's range: such steps are skipped.",
        "Use the finding's loss scale, or profile with this data.",
    ),
    Rule(
        "PA753",
        "no loss scale serves this data",
        "A module's gradients need a loss scale at which others overflow.",
        ANEW,
    ),
    Rule(
        "PA761",
        "the plan was not verified",
        "No profile has verified the plan as it is now, in the formats that it is to run in.",
        "Profile the script again, and deploy a plan that is VERIFIED.",
    ),
)
