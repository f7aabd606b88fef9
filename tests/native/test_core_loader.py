"""Which compiled core is taken."""

import pytest

from kernbench import _native

needs_core = pytest.mark.skipif(_native.library() is None, reason="the compiled core was not built")


@needs_core
def test_a_core_built_from_these_sources_is_taken():
    assert _native._fits(_native.library(), _native._sources())


@needs_core
def test_a_core_built_from_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(_native, "_sources", lambda: "0" * 64)
    with pytest.warns(_native.NoCompiledCoreWarning, match=r"built from other sources.*pip install -e"):
        assert _native.library.__wrapped__() is None


@needs_core
def test_without_sources_beside_it_any_core_fits(monkeypatch, tmp_path):
    core = _native.library()
    monkeypatch.setattr(_native, "__file__", str(tmp_path / "__init__.py"))
    assert _native._sources() == ""
    assert _native._fits(core, "")


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("KERNBENCH_NATIVE", "0")
    assert _native.library.__wrapped__() is None
