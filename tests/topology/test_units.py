from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.topology import units
from kernbench.topology.units import BANDWIDTH, BYTES, DURATION, FREQUENCY, format_quantity, parse


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("819 GB/s", BANDWIDTH, 819e9),
        ("2 TB/s", BANDWIDTH, 2e12),
        ("1 GiB/s", BANDWIDTH, 2.0**30),
        ("32 Gbit/s", BANDWIDTH, 4e9),
        ("6.4e9 B/s", BANDWIDTH, 6.4e9),
        ("64 GiB", BYTES, 64 * 2**30),
        ("1.5 MiB", BYTES, 3 * 2**19),
        ("1.5 MB", BYTES, 1_500_000),
        ("256B", BYTES, 256),
        ("90 ns", DURATION, 90_000),
        ("1.5 us", DURATION, 1_500_000),
        ("0.1 µs", DURATION, 100_000),
        ("0 ps", DURATION, 0),
        ("1 s", DURATION, 10**12),
        ("1 GHz", FREQUENCY, 1e9),
        ("1_000 kHz", FREQUENCY, 1e6),
    ],
)
def test_values(text, dimension, value):
    parsed = parse(text, dimension)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "dimension", "message"),
    [
        (819, BANDWIDTH, "found `819` without a unit, expected a bandwidth such as `819 GB/s`"),
        ("819", BANDWIDTH, "found `819` without a unit, expected a bandwidth such as `819 GB/s`"),
        ("fast", BANDWIDTH, "found `fast`, expected a bandwidth such as `819 GB/s`"),
        (None, BYTES, "found nothing, expected a size such as `64 GiB`"),
        (True, BYTES, "found `True`, expected a size such as `64 GiB`"),
        ("90 ns", BANDWIDTH, "found `90 ns`, which is a duration, expected a bandwidth such as `819 GB/s`"),
        ("1 GB", BANDWIDTH, "found `1 GB`, which is a size, expected a bandwidth such as `819 GB/s`"),
        ("1 ghz", FREQUENCY, "found `1 ghz` (did you mean `GHz`?), expected a frequency such as `1 GHz`"),
        ("3 parsec", DURATION, "found `3 parsec` with the unknown unit `parsec`, expected a duration such as `90 ns`"),
        ("-3 ns", DURATION, "found `-3 ns`, which is negative, expected a duration such as `90 ns`"),
        ("1e400 B/s", BANDWIDTH, "found `1e400 B/s`, which is too large"),
        ("0.5 ps", DURATION, "which is no whole number of picoseconds"),
        ("0.3 B", BYTES, "which is no whole number of bytes"),
        ("8 Gb/s", BANDWIDTH, "`Gb` could be bits or bytes (write `GB` or `Gbit`)"),
        ("8 KB", BYTES, "`KB` could be 1000 or 1024 bytes (write `kB` or `KiB`)"),
    ],
)
def test_what_is_refused_and_how(text, dimension, message):
    with pytest.raises(ValueError) as error:
        parse(text, dimension)
    assert message in str(error.value)


_VALUES = {
    BYTES: st.integers(0, 2**62),
    DURATION: st.integers(0, 2**62),
    BANDWIDTH: st.floats(0, 1e18, allow_subnormal=False),
    FREQUENCY: st.floats(0, 1e13, allow_subnormal=False),
}


@settings(deadline=None)
@given(st.sampled_from(units.DIMENSIONS).flatmap(lambda d: st.tuples(st.just(d), _VALUES[d])))
def test_exact_text_reads_back_as_the_same_value(case):
    dimension, value = case
    assert parse(format_quantity(value, dimension), dimension) == value


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from([(d, u) for d in units.DIMENSIONS for u in d.units]))
def test_a_unit_multiplies_exactly(whole, thousandths, case):
    dimension, unit = case
    scale = {"k": 3, "M": 6, "G": 9, "T": 12, "P": 15}
    binary = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50}
    factor = Fraction({"ps": 1, "ns": 10**3, "us": 10**6, "µs": 10**6, "ms": 10**9, "s": 10**12}.get(unit, 1))
    if dimension is not DURATION:
        prefix = unit.removesuffix("/s").removesuffix("Hz").removesuffix("bit").removesuffix("B")
        factor = Fraction(2 ** binary[prefix] if prefix in binary else 10 ** scale.get(prefix, 0))
        factor /= 8 if "bit" in unit else 1
    exact = Fraction(whole * 1000 + thousandths, 1000) * factor
    text = f"{whole}.{thousandths:03d} {unit}"
    if dimension.whole and exact.denominator != 1:
        with pytest.raises(ValueError, match="no whole number"):
            parse(text, dimension)
    else:
        assert parse(text, dimension) == (int(exact) if dimension.whole else float(exact))


@pytest.mark.parametrize(
    ("value", "dimension", "digits", "text"),
    [
        (24 * 2**30, BYTES, None, "24 GiB"),
        (3 * 2**19, BYTES, None, "1.5 MiB"),
        (1000, BYTES, None, "1 kB"),
        (0, BYTES, None, "0 B"),
        (819e9, BANDWIDTH, None, "819 GB/s"),
        (3.276e12, BANDWIDTH, 4, "3.276 TB/s"),
        (1e12 / 3, BANDWIDTH, 3, "333 GB/s"),
        (999_999.0, FREQUENCY, 3, "1000 kHz"),
        (1_500, DURATION, None, "1.5 ns"),
    ],
)
def test_text(value, dimension, digits, text):
    assert format_quantity(value, dimension, digits) == text
