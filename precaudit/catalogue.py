"""Every rule that findings are made under: its stable id, what it means and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from precaudit.comparison.metrics import METRICS

COMPARED = "compare-"
ANEW = "Profile again, and pass the new plan."


@dataclass(frozen=True)
class Rule:
    """`title` names the finding in a few words; `meaning` and `remedy` are a sentence each."""

    id: str
    title: str
    meaning: str
    remedy: str

    @property
    def verb(self) -> str:
        """The command whose findings these are."""
        return "check" if self.id.startswith("PA7") else "profile"


_PROFILE = (
    Rule(
        "PA001",
        "the plan was not verified",
        "The plan failed verification, or the trials did not decide; profile ends with 1 in any case.",
        "Do what the report's first action says.",
    ),
    Rule(
        "PA002",
        "a gate failed",
        "Beside the loss, something went wrong under the plan: evaluation, buffers, states, skipped steps.",
        "Keep what the gate names in float32.",
    ),
    Rule(
        "PA003",
        "a forward is called directly",
        "The script calls a module's forward instead of the module: it is neither audited nor planned.",
        "Call the module itself: model(x) instead of model.forward(x).",
    ),
    Rule(
        "PA101",
        "a result overflows",
        "An operation's result reaches the format's maximum, or comes within a factor of four of it.",
        "Run the operation in bfloat16 or float32.",
    ),
    Rule(
        "PA102",
        "an operand overflows",
        "A product's input reaches the format's maximum, or comes within a factor of four of it.",
        "Run the product in bfloat16 or float32.",
    ),
    Rule(
        "PA103",
        "a constant overflows",
        "A constant, such as a mask's -1e9, does not fit the half tensor that it meets.",
        "Mask with torch.finfo(x.dtype).min or -inf, or keep the operation in float32.",
    ),
    Rule(
        "PA104",
        "a constant vanishes",
        "A constant that protects, such as an eps of 1e-12 or a bound of 0.9999, is zero or one in the format.",
        "Use a larger eps or a lower bound, or keep the operation in float32.",
    ),
    Rule(
        "PA105",
        "whole numbers alias",
        "Positions, indices or counts are in a format that can't hold them all: different ones become equal.",
        "Compute them in float32.",
    ),
    Rule(
        "PA106",
        "an operation loses its result",
        "The operation, alone in the format on its real inputs, is off by a quarter of its result or more.",
        "Keep the operation in float32.",
    ),
    Rule(
        "PA107",
        "autocast refuses the operation",
        "CUDA's autocast raises at it, because its gradient overflows in half precision.",
        "Use binary_cross_entropy_with_logits, or keep the operation in float32.",
    ),
    Rule(
        "PA201",
        "gradients become too inexact",
        "With the whole model in the format, rounding changes the gradient by more than its own noise hides.",
        "Use the plan, which has the format where it does no harm.",
    ),
    Rule(
        "PA202",
        "gradients underflow without a loss scale",
        "More than a hundredth of a module's gradient energy is below float16's range.",
        "Use plan.grad_scaler().",
    ),
    Rule(
        "PA203",
        "no loss scale serves every module",
        "A module's gradients need a loss scale at which others, its own or another's, overflow.",
        "Use the plan, which moves the module out of float16.",
    ),
    Rule(
        "PA301",
        "updates of half weights are rounded away",
        "Most updates of a weight stored in half precision are too small to change it.",
        "Keep float32 master weights, and train under autocast.",
    ),
    Rule(
        "PA302",
        "optimizer states underflow",
        "States kept in float16 are zero where the gradients that they collect are not.",
        "Keep optimizer states in float32.",
    ),
    Rule(
        "PA303",
        "a running value stagnates",
        "An average, a weight or a counter kept in half precision absorbs its small changes.",
        "Keep it in float32, and cast where it is used.",
    ),
    Rule(
        "PA304",
        "gradients accumulate in half precision",
        "The gradients of several backward passes are summed in a half .grad, which absorbs small ones.",
        "Accumulate gradients in float32.",
    ),
    Rule(
        "PA305",
        "gradients of repeated rows are summed in half",
        "Rows are looked up in a half table, and the gradient of one used often absorbs small ones.",
        "Look rows up in the float32 table, and cast the result.",
    ),
    Rule(
        "PA306",
        "low precision changes whole numbers",
        "Ids, positions or counts are made in, or cast to, a format that can't hold them: they alias.",
        "Keep them in an integer or float32 tensor.",
    ),
    Rule(
        "PA307",
        "the script's own precision overflows",
        "An operation, or its backward, makes nan or inf in the script's own low precision.",
        "Keep the operation in float32, or lower the loss scale.",
    ),
    Rule(
        "PA308",
        "the audited training is lost",
        "In the audited loop a weight is nan or inf, or a gradient that no scaler looks after.",
        "Go back to a checkpoint from before, and profile the script.",
    ),
    Rule(
        "PA309",
        "the script's own casts lose values",
        "A script that trains unlike float32 casts values that become zero, or equal to each other.",
        "Keep them in float32, or scale or centre them before the cast.",
    ),
    Rule(
        "PA401",
        "a product has unaligned sizes",
        "A dimension is no multiple of 16 bytes: Tensor Cores run it below their rate, or not in float8.",
        "Pad the dimension as the finding says.",
    ),
    Rule(
        "PA402",
        "kernels of an older generation",
        "A library runs Tensor Core instructions of an older card, below this one's rate.",
        "Try a newer library, another memory format or another backend.",
    ),
    Rule(
        "PA403",
        "products in full precision",
        "Products in float32 or float64 run without Tensor Cores.",
        "Allow TF32, use autocast, or cast the operands of what autocast does not know.",
    ),
    Rule(
        "PA404",
        "low precision without Tensor Cores",
        "Products in a low format run on ordinary cores, as those with a vector do.",
        "Batch more rows into one product.",
    ),
    Rule(
        "PA501",
        "the script trains unlike float32",
        "As written, in its own low precision, the script does not train like float32.",
        "Use the plan, if it is verified, instead of the script's own casts and scaler.",
    ),
    Rule(
        "PA502",
        "scaled gradients are clipped",
        "The script clips or changes gradients that are still multiplied by the loss scale.",
        "Call scaler.unscale_(optimizer) before clipping.",
    ),
    Rule(
        "PA503",
        "the script casts by itself",
        "What the script keeps in half precision absorbs small additions; no harm was seen.",
        "Keep weights, averages and accumulators in float32.",
    ),
    Rule(
        "PA504",
        "a step on non-finite gradients",
        "The optimizer steps on gradients with nan or inf, which nothing checks.",
        "Use torch.amp.GradScaler, which skips such steps.",
    ),
    Rule(
        "PA505",
        "the loss scale runs away",
        "The script raises its own loss scale without end.",
        "Cap it: torch's stays useful up to 2^24.",
    ),
    Rule(
        "PA506",
        "a step on scaled gradients",
        "The optimizer steps on gradients that are still multiplied by the loss scale.",
        "Call scaler.step(optimizer) instead of optimizer.step().",
    ),
    Rule(
        "PA507",
        "scaled gradients enter a loss",
        "A gradient penalty is computed from gradients that are still multiplied by the loss scale.",
        "Divide them by scaler.get_scale() first.",
    ),
    Rule(
        "PA508",
        "gradients are unscaled wrongly",
        "A GradScaler divides gradients by a loss scale that they were never, or are no longer, multiplied by.",
        "Scale every loss, scaler.scale(loss).backward(), and leave unscaling to the scaler.",
    ),
    Rule(
        "PA509",
        "autocast keeps old weights",
        "An optimizer steps inside an open autocast region, which keeps using its copies of older weights.",
        "Open autocast anew in every step, around the forward pass and the loss alone.",
    ),
    Rule(
        "PA510",
        "the loss scale begins anew",
        "The script makes a new GradScaler in every step, whose scale therefore never adapts.",
        "Make one GradScaler, before the training loop.",
    ),
    Rule(
        "PA511",
        "autocast reaches an optimizer",
        "An autocast region is open around an optimizer's step, so its matrix products run in low precision.",
        "End the autocast region before the backward pass.",
    ),
    Rule(
        "PA601",
        "a trial changed the plan",
        "Training under the first plan went wrong here, and the repair is in the plan.",
        "Nothing, if you use the plan.",
    ),
    Rule(
        "PA602",
        "no plan was verified",
        "No repair made a low-precision plan train like float32.",
        "Stay in float32, or change what the other findings name.",
    ),
    Rule(
        "PA603",
        "float32 itself is not finite",
        "The loss becomes nan or inf in the float32 reference: no format is to blame.",
        "Repair the training in float32 first.",
    ),
)

_CHECK = (
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
        "What the model returns in eval mode could not be compared.",
        "Check it from a model file.",
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
        "The profile that made the plan said that training with it fails, could not tell, or tried nothing.",
        "Profile the script again, and deploy a plan that is VERIFIED.",
    ),
)

CATALOGUE: Mapping[str, Rule] = MappingProxyType({rule.id: rule for rule in (*_PROFILE, *_CHECK)})


def rule_of(name: str) -> Rule:
    """What is known of a rule; a report of a later version may have others."""
    metric = METRICS.get(name.removeprefix(COMPARED)) if name.startswith(COMPARED) else None
    if metric is not None:
        meaning = f"Between two reports: {metric.help}."
        remedy = "If the change is meant, profile again and commit the report as the new baseline."
        return Rule(name, metric.help, meaning, remedy)
    return CATALOGUE.get(name) or Rule(name, name, "A rule that this version of precaudit doesn't know.", "")
