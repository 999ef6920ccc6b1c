"""Every error that ternary raises on purpose; each names a condition, not a place."""


class TernaryError(Exception):
    """Base of all errors of ternary."""


class TernaryValueError(TernaryError, ValueError):
    """A value outside {-1, 0, +1} was given where only ternary values can stand."""


class PackedDataError(TernaryError, ValueError):
    """Packed bytes have the wrong size or dtype, or hold a code that no ternary value has."""


class KernelUnavailableError(TernaryError, RuntimeError):
    """A kernel was asked for by name that this machine or this build does not have, or that cannot take the problem."""


class LayerShapeError(TernaryError, ValueError):
    """Weights, scales or inputs of a packed layer do not fit one another in shape, dtype or device."""
