"""Every error that ternary raises on purpose; each names a condition, not a place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ternary._language.diagnostics import Diagnostic, SourceText

__all__ = [
    "ChatTemplateError",
    "CompileError",
    "ContextLengthError",
    "DivergedError",
    "ExportError",
    "FixedWeightError",
    "Fp16OverflowError",
    "ImportFormatError",
    "KernelUnavailableError",
    "LayerShapeError",
    "ManifestError",
    "MissingExtraError",
    "ModelClosedError",
    "ModelFileError",
    "ModelTooLargeError",
    "NoBatchesError",
    "NonFiniteActivationError",
    "NonFiniteWeightError",
    "NothingToFuseError",
    "NothingToPackError",
    "PackedDataError",
    "ServerBusyError",
    "ServerStartError",
    "StaleCoreError",
    "TernaryError",
    "TernaryValueError",
    "UnknownModelError",
    "UnknownQuantizerError",
    "UnsupportedGroupError",
    "VanishingGradientError",
    "WeightsNotLoadedError",
]


class TernaryError(Exception):
    """Base of all errors of ternary.

    Example:
        >>> import ternary
        >>> try:
        ...     ternary.zoo.load("resnet81")
        ... except ternary.TernaryError as error:
        ...     print(type(error).__name__)
        UnknownModelError
    """


class CompileError(TernaryError, ValueError):
    """A source has errors; `diagnostics` holds all of them, in source order, and `str()` shows them with carets.

    Correct the places with a caret. `ternary check FILE` shows the same in the shell.

    Example:
        >>> import ternary
        >>> try:
        ...     ternary.compile("model M { a = Linear(8, 4) }")
        ... except ternary.CompileError as error:
        ...     print(error.diagnostics[0].message)
        'M' has no forward

    Args:
        source: The text with the errors, and its name.
        diagnostics: All errors, in source order.
    """

    def __init__(self, source: SourceText, diagnostics: tuple[Diagnostic, ...]):
        self.source = source
        self.diagnostics = diagnostics
        count = len(diagnostics)
        heading = f"{source.name}: {count} error{'s' if count != 1 else ''}"
        super().__init__("\n\n".join([heading, *(d.render(source) for d in diagnostics)]))

    def __reduce__(self) -> tuple[type[CompileError], tuple[SourceText, tuple[Diagnostic, ...]]]:
        return type(self), (self.source, self.diagnostics)


class UnknownModelError(TernaryError, LookupError):
    """The source or the zoo defines no model of this name.

    `ternary.zoo.names()` lists the zoo. For a source with several models, name one of them.
    """


class UnknownQuantizerError(TernaryError, ValueError):
    """No quantizer, granularity or precision has this name.

    Use a name from the message.
    """


class NonFiniteWeightError(TernaryError, ValueError):
    """A weight that should become -1, 0 or +1 is NaN or infinite.

    Train with a lower learning rate or clip gradients, and start again from the last finite weights.
    """


class NonFiniteActivationError(TernaryError, ValueError):
    """An input or an activation is NaN or infinite.

    Check the input for NaN and infinity, then the layer that the message names.
    """


class NoBatchesError(TernaryError, ValueError):
    """There is no batch to train, measure or calibrate with: the data is empty, or an iterator that was read before.

    Pass a list, or make the iterator anew for each use; `fit` calls its function once per epoch.
    """


class WeightsNotLoadedError(TernaryError, ValueError):
    """A weight has no values yet: it is on the meta device, or its layer is lazy and was never called.

    Load the weights first, or call the model once with an input.
    """


class StaleCoreError(TernaryError, ImportError):
    """The compiled core of ternary was built from other sources than the Python files beside it.

    Install pentad-ternary again. In a checkout this happens when the sources have changed since the last installation.
    """


class UnsupportedGroupError(TernaryError, ValueError):
    """Scales per group of inputs are asked of a layer or a format that has none.

    Only linear layers have them. Take per='channel', or the format that the message names.
    """


class TernaryValueError(TernaryError, ValueError):
    """A value outside {-1, 0, +1} was given where only ternary values are allowed.

    Quantize the weights first, or pass only -1, 0 and +1.
    """


class PackedDataError(TernaryError, ValueError):
    """Packed bytes have the wrong size or dtype, or hold a code that no ternary value has.

    Pack the weights again. If the bytes come from a file, the file is damaged.
    """


class DivergedError(TernaryError, ArithmeticError):
    """Training cannot go on: the loss or a gradient is not finite, or the gradient norm has exploded.

    Lower the learning rate, clip gradients, or warm up for longer.
    """


class FixedWeightError(TernaryError, RuntimeError):
    """A gradient reached a weight that holds exactly its ternary values and cannot be trained as it is.

    Train a copy: `ternary.to_trainable(model)`.
    """


class VanishingGradientError(TernaryError, ArithmeticError):
    """Training cannot make progress: a layer's gradient has stayed zero for many steps.

    Look for a saturated or detached layer, or raise the learning rate.
    """


class Fp16OverflowError(TernaryError, OverflowError):
    """A parameter does not fit into 16-bit floating point (largest finite value 65504).

    Keep that layer in float32, or scale its weights down.
    """


class ModelTooLargeError(TernaryError, MemoryError):
    """A language model and its caches take more memory than this process may use.

    Raise the limit (of the container, or `ulimit -v`), or open the model with a smaller context, with `cache_bits=8`,
    or with fewer parallel requests.
    """


class ModelFileError(TernaryError, ValueError):
    """A model file is damaged, of an unknown version, or does not fit the model.

    Write the file again, or load it with the version of ternary that wrote it.
    """


class MissingExtraError(TernaryError, ImportError):
    """An optional library is needed that is not installed; the message names the extra to install.

    Install it with the line in the message.
    """


class KernelUnavailableError(TernaryError, RuntimeError):
    """This machine or this build does not have the named kernel, or the kernel cannot solve the problem.

    Run `ternary doctor`, and leave the kernel's name out to use the fastest that works here.
    """


class LayerShapeError(TernaryError, ValueError):
    """Weights, scales or inputs of a packed layer do not fit one another in shape, dtype or device.

    Make the shapes, dtypes and devices in the message agree.
    """


class NothingToFuseError(TernaryError, ValueError):
    """A model has no chain of thin convolutions to run as one layer.

    Call `ternary.pack` first; `ternary.runtime.fuse` works on 1 x 1 and depthwise convolutions.
    """


class NothingToPackError(TernaryError, ValueError):
    """A model without ternary layers was given where their packed form is wanted.

    Quantize the model first (`ternary.quantize`), or compile a source with `ternary` layers.
    """


class ExportError(TernaryError, ValueError):
    """A model cannot be written in a format that has no representation for one of its layers, sizes or scales.

    Choose another format: the table in the README says what each one carries.
    """


class ImportFormatError(TernaryError, ValueError):
    """A foreign file is damaged, or holds weights that are not exactly ternary.

    Check the download. Weights that are not exactly ternary need `ternary.quantize`.
    """


class ManifestError(TernaryError, ValueError):
    """Exported files are missing, or differ from their manifest.

    Export again, or copy the folder again.
    """


class ContextLengthError(TernaryError, ValueError):
    """A prompt does not fit the context that a language model was opened with.

    Shorten the prompt, or open the model with a larger context.
    """


class ChatTemplateError(TernaryError, ValueError):
    """Messages cannot become a prompt: the model has no tokenizer or chat template, or the template fails.

    Pass the prompt as text, or convert the model together with its tokenizer and template.
    """


class ModelClosedError(TernaryError, RuntimeError):
    """A language model is used after it was closed.

    Load it again, or close it later: `with ternary.llm.load(path) as model:` closes it at the end of the block.
    """


class ServerBusyError(TernaryError, RuntimeError):
    """A server's queue of requests is full, or the server is closing.

    Try again later, or start the server with a longer queue.
    """


class ServerStartError(TernaryError, RuntimeError):
    """The processes of a server did not start.

    Their error output says why, such as a damaged model; allow more time on a busy machine.
    """
