"""pandas: frames, series, indexes and scalars, column by column, without a detour over another format."""

from __future__ import annotations

import sys
from typing import Any

from .declared import LIVE, refuse
from .errors import UnsupportedTypeError, WireError
from .kinds_standard import wanted, zone_of, zone_parts
from .libraries import library

_TAGS = ("DataFrame", "Series", "Index", "Array", "Timestamp", "Timedelta", "NaT", "NA")


def _pandas() -> Any:
    return library("pandas", "a value of pandas")


def _zone_parts(zone: Any) -> Any:
    """Like `standard.zone_parts`, and for a zone of pytz, which older versions of pandas use, its name."""
    name = getattr(zone, "zone", None)
    if type(zone).__module__.partition(".")[0] == "pytz" and name is not None:
        return ["pytz", name]
    return zone_parts(zone)


def _zone_of(parts: Any) -> Any:
    if type(parts) is not list or parts[0] != "pytz":
        return zone_of(parts)
    zone = zone_of(["zone", parts[1]])  # checks the name; pandas takes both for the same
    pytz = sys.modules.get("pytz")
    return zone if pytz is None else pytz.timezone(parts[1])


# One-dimensional arrays


def _array_parts(pd: Any, array: Any) -> list[Any]:
    """Return the form and the content of one column's array."""
    import numpy as np

    plain = getattr(pd.arrays, "NumpyExtensionArray", None) or pd.arrays.PandasArray
    array = array.to_numpy() if isinstance(array, plain) else array
    dtype = array.dtype
    if isinstance(dtype, np.dtype):
        values = np.asarray(array)
        return ["objects", list(values)] if dtype.hasobject else ["numpy", values]
    if isinstance(dtype, pd.CategoricalDtype):
        return ["categories", np.asarray(array.codes), _index_parts(pd, dtype.categories), bool(dtype.ordered)]
    if isinstance(dtype, pd.DatetimeTZDtype):
        return ["zoned", np.asarray(array.tz_convert(None)), _zone_parts(dtype.tz)]
    if isinstance(dtype, pd.PeriodDtype):
        return ["periods", array.asi8, array.freqstr]
    if isinstance(dtype, pd.IntervalDtype):
        return ["intervals", _index_parts(pd, array.left), _index_parts(pd, array.right), dtype.closed]
    if isinstance(dtype, pd.StringDtype):
        missing = np.asarray(array.isna())
        texts = [None if lost else str(text) for text, lost in zip(array.astype(object), missing, strict=True)]
        return ["strings", texts, dtype.storage, getattr(dtype, "na_value", pd.NA) is pd.NA]
    if isinstance(array, pd.arrays.BooleanArray | pd.arrays.IntegerArray | pd.arrays.FloatingArray):
        missing = np.asarray(array.isna())
        return ["nullable", array.to_numpy(dtype.numpy_dtype, na_value=dtype.numpy_dtype.type(0)), missing]
    if isinstance(dtype, pd.ArrowDtype):
        return ["arrow", array.__arrow_array__()]
    raise UnsupportedTypeError(f"a column of dtype {dtype} does not travel; convert it with .astype")


def _array_of(pd: Any, parts: Any) -> Any:
    import numpy as np

    wanted(type(parts) is list and len(parts) >= 2, "a column")
    form, content, *rest = parts
    if form == "numpy":
        wanted(isinstance(content, np.ndarray) and content.ndim == 1, "a column")
        return content
    if form == "objects":
        wanted(type(content) is list, "a column")
        if LIVE:
            refuse(content, "a column")
        made = np.empty(len(content), object)
        made[:] = content
        return made
    if form == "categories":
        dtype = pd.CategoricalDtype(_index_of(pd, rest[0]), bool(rest[1]))
        # A copy: pandas checks the codes once, and the sender may still write to its memory.
        return pd.Categorical.from_codes(np.array(content), dtype=dtype)
    if form == "zoned":
        return pd.DatetimeIndex(content).tz_localize("UTC").tz_convert(_zone_of(rest[0])).array
    if form == "periods":
        wanted(type(rest[0]) is str and len(rest[0]) < 40, "a column of periods")
        return pd.PeriodIndex.from_ordinals(content, freq=rest[0]).array
    if form == "intervals":
        left, right = _index_of(pd, content), _index_of(pd, rest[0])
        return pd.arrays.IntervalArray.from_arrays(left, right, closed=rest[1])
    if form == "strings":
        storage, is_na = rest
        wanted(type(content) is list and storage in ("python", "pyarrow"), "a column of texts")
        wanted(all(text is None or type(text) is str for text in content), "a column of texts")
        kind = _text_dtype(pd, storage, is_na)
        return pd.array([pd.NA if text is None else text for text in content], dtype=kind)
    if form == "nullable":
        names = {"b": pd.arrays.BooleanArray, "i": pd.arrays.IntegerArray, "u": pd.arrays.IntegerArray}
        return names.get(content.dtype.kind, pd.arrays.FloatingArray)(np.array(content), np.array(rest[0]))
    wanted(form == "arrow", "a column")
    return pd.arrays.ArrowExtensionArray(content)


def _text_dtype(pd: Any, storage: str, is_na: bool) -> Any:
    if is_na:
        return pd.StringDtype(storage)
    try:
        return pd.StringDtype(storage, na_value=float("nan"))
    except TypeError:
        raise UnsupportedTypeError(
            f"a column or index of texts of dtype str came, which pandas {pd.__version__} does not have; send it as "
            "objects: frame.astype({name: object}), or frame.set_axis(frame.columns.astype(object), axis=1)"
        ) from None


# Indexes


def _index_parts(pd: Any, index: Any) -> list[Any]:
    if isinstance(index, pd.MultiIndex):
        levels = [_index_parts(pd, level) for level in index.levels]
        return ["multi", levels, [list(map(int, codes)) for codes in index.codes], list(index.names)]
    if isinstance(index, pd.RangeIndex):
        return ["range", [index.start, index.stop, index.step], index.name]
    freq = getattr(index, "freqstr", None) if isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex) else None
    return ["plain", _array_parts(pd, index.array), index.name, freq]


def _index_of(pd: Any, parts: Any) -> Any:
    wanted(type(parts) is list and len(parts) >= 3, "an index")
    form, content, *rest = parts
    if form == "multi":
        codes, names = rest
        return pd.MultiIndex([_index_of(pd, level) for level in content], codes, names=names)
    if form == "range":
        return pd.RangeIndex(*content, name=rest[0])
    name, freq = rest
    array = _array_of(pd, content)
    made = pd.Index(array, name=name, dtype=array.dtype, copy=False)
    if freq is not None:
        wanted(type(freq) is str and len(freq) < 40, "an index")
        made.freq = freq
    return made


# The values themselves


def describe(value: Any, kind: type) -> tuple[str, Any] | None:
    """Return tag and parts; None for what does not travel."""
    pd = _pandas()
    if kind is pd.DataFrame:
        columns = [_array_parts(pd, value.iloc[:, at].array) for at in range(value.shape[1])]
        parts = [_index_parts(pd, value.index), _index_parts(pd, value.columns), columns]
        return "pandas.DataFrame", [*parts, dict(value.attrs), value.flags.allows_duplicate_labels]
    if kind is pd.Series:
        parts = [_index_parts(pd, value.index), _array_parts(pd, value.array), value.name]
        return "pandas.Series", [*parts, dict(value.attrs), value.flags.allows_duplicate_labels]
    if value is pd.NaT or value is pd.NA:
        return ("pandas.NaT" if value is pd.NaT else "pandas.NA"), None
    if kind is pd.Timestamp:
        moment = (value if value.tz is None else value.tz_convert(None)).to_datetime64()
        return "pandas.Timestamp", [moment, value.fold, _zone_parts(value.tz)]
    if kind is pd.Timedelta:
        return "pandas.Timedelta", value.to_timedelta64()
    if isinstance(value, pd.Index):
        return "pandas.Index", _index_parts(pd, value)
    if isinstance(value, pd.api.extensions.ExtensionArray):
        return "pandas.Array", _array_parts(pd, value)
    return None


def build(tag: str, parts: Any) -> Any:
    """Return the value for a tag and its parts."""
    name = tag.partition(".")[2]
    if name not in _TAGS:
        raise WireError(f"there is no type {tag!r:.40} in the protocol")
    pd = _pandas()
    if name in ("NaT", "NA"):
        return getattr(pd, name)
    if name == "Index":
        return _index_of(pd, parts)
    if name == "Array":
        return pd.array(_array_of(pd, parts), copy=False)
    if name == "Timedelta":
        return pd.Timedelta(parts)
    if name == "Timestamp":
        moment, fold, zone = parts
        made = pd.Timestamp(moment)
        return made.replace(fold=fold) if zone is None else made.tz_localize("UTC").tz_convert(_zone_of(zone))
    if name == "Series":
        index, array, label, attrs, duplicates = parts
        made = pd.Series(_array_of(pd, array), index=_index_of(pd, index), name=label, copy=False)
    else:
        made, attrs, duplicates = _frame_of(pd, parts)
    wanted(type(attrs) is dict and type(duplicates) is bool, "a frame")
    made.attrs = attrs
    return made if duplicates else made.set_flags(allows_duplicate_labels=False)


def _frame_of(pd: Any, parts: Any) -> tuple[Any, Any, Any]:
    index_parts, label_parts, arrays, attrs, duplicates = parts
    wanted(type(arrays) is list, "a frame")
    index, labels = _index_of(pd, index_parts), _index_of(pd, label_parts)
    columns = {at: pd.Series(_array_of(pd, array), index=index, copy=False) for at, array in enumerate(arrays)}
    made = pd.DataFrame(columns, index=index, copy=False)
    made.columns = labels
    return made, attrs, duplicates
