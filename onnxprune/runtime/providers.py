"""Execution providers: their names, the text `NAME[,key=value…]`, and the package that has each. Light to import."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.errors import OptionError

SUFFIX = "ExecutionProvider"
CPU_PROVIDER = f"CPU{SUFFIX}"
CUDA_PROVIDER = f"CUDA{SUFFIX}"
OPENVINO_PROVIDER = f"OpenVINO{SUFFIX}"
TENSORRT_PROVIDER = f"Tensorrt{SUFFIX}"
PROVIDERS = {
    "CPU": (CPU_PROVIDER, "onnxruntime"),
    "OpenVINO": (OPENVINO_PROVIDER, "onnxruntime-openvino"),
    "CUDA": (CUDA_PROVIDER, "onnxruntime-gpu"),
    "TensorRT": (TENSORRT_PROVIDER, "onnxruntime-gpu"),
    "DirectML": (f"Dml{SUFFIX}", "onnxruntime-directml"),
    "CoreML": (f"CoreML{SUFFIX}", "onnxruntime (on macOS)"),
    "QNN": (f"QNN{SUFFIX}", "onnxruntime-qnn"),
}
"""By the name that users know: onnxruntime's name, and the package that has it; other providers go by onnxruntime's name."""
SET_BY = {(OPENVINO_PROVIDER, "num_of_threads"): "--threads"}
"""Options of providers that an option of onnxprune sets."""
_KNOWN = {name.lower(): full for short, (full, _) in PROVIDERS.items() for name in (short, full.removesuffix(SUFFIX))}
EXAMPLE = "for instance --provider OpenVINO,device_type=CPU"


@dataclass(frozen=True)
class Provider:
    """An execution provider and its options.

    Attributes:
        name: as onnxruntime calls it, with `ExecutionProvider`.
        options: keys and values, as onnxruntime's documentation of the provider lists them.

    >>> str(Provider("OpenVINOExecutionProvider", (("device_type", "CPU"),)))
    'OpenVINOExecutionProvider,device_type=CPU'
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return ",".join((self.name, *(f"{key}={value}" for key, value in self.options)))


def parse_provider(text: str) -> Provider:
    """Parse `NAME[,key=value…]`; upper and lower case are alike in known names, and `ExecutionProvider` may be left out.

    A part without `=` belongs to the value before it: `OpenVINO,device_type=AUTO:GPU,CPU` has one option.

    Raises:
        OptionError: the text has no name, a key twice, or an option that onnxprune sets.

    >>> str(parse_provider("tensorrt")), parse_provider("OpenVINO,device_type=AUTO:GPU,CPU").options
    ('TensorrtExecutionProvider', (('device_type', 'AUTO:GPU,CPU'),))
    """
    given, *parts = (part.strip() for part in text.split(","))
    short = given[: -len(SUFFIX)] if given.lower().endswith(SUFFIX.lower()) else given
    if not short or "=" in short:
        raise OptionError(f"--provider {text!r} has no name of a provider", hint=EXAMPLE)
    name = _KNOWN.get(short.lower(), f"{short}{SUFFIX}")
    options: dict[str, str] = {}
    last = ""
    for part in parts:
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals and part and last:
            options[last] += f",{part}"
            continue
        if not equals or not key or key in options:
            why = f"{key} is given twice" if key in options else f"{part!r} is not of the form key=value"
            raise OptionError(f"--provider {text!r} cannot be read", why=why, hint=EXAMPLE)
        options[key], last = value, key
    if name == CPU_PROVIDER and options:
        raise OptionError(
            f"--provider {text!r}: the CPU provider has no options", hint="give --threads, or leave them out"
        )
    for key in options:
        if (name, key) in SET_BY:
            raise OptionError(f"--provider {text!r} sets {key}", hint=f"give {SET_BY[name, key]} instead")
    return Provider(name, tuple(options.items()))


def normal_provider(text: str) -> str:
    """Return a text for a provider with the name that onnxruntime has for it.

    >>> normal_provider("directml,device_id=1")
    'DmlExecutionProvider,device_id=1'
    """
    return str(parse_provider(text))


def short_name(text: str) -> str:
    """Return what users call a provider, with its options.

    >>> short_name("TensorrtExecutionProvider"), short_name("OpenVINOExecutionProvider,device_type=CPU")
    ('TensorRT', 'OpenVINO,device_type=CPU')
    """
    found = parse_provider(text)
    short = {full: short for short, (full, _) in PROVIDERS.items()}.get(found.name, found.name.removesuffix(SUFFIX))
    return str(Provider(short, found.options))


def package_of(name: str) -> str | None:
    """Return the package that has a provider, by onnxruntime's name of it; None: not known."""
    return dict(PROVIDERS.values()).get(name)
