import pytest

from kernbench.bench import BenchError, load
from kernbench.bench.runner import parameters


def write(tmp_path, text, name="b.py"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_missing_file_names_what_is_there(tmp_path):
    write(tmp_path, "def bench(ctx): ...", "other.py")
    with pytest.raises(BenchError, match=r"no such bench file; .* has other\.py"):
        load(tmp_path / "nope.py")


def test_file_without_bench(tmp_path):
    with pytest.raises(BenchError, match="no function bench"):
        load(write(tmp_path, "x = 1"))


def test_parameters_take_the_type_of_their_default(tmp_path):
    module = load(
        write(tmp_path, "def bench(ctx, n: int = 1, scale: float = 2.0, on: bool = False, name: str = 'a'): ...")
    )
    assert parameters(module, {"n": "7", "scale": "0.5", "on": "yes"}) == {
        "n": 7,
        "scale": 0.5,
        "on": True,
        "name": "a",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [({"m": "1"}, "unknown parameter 'm': this bench has n"), ({"n": "many"}, "expected int, like n=1")],
)
def test_bad_parameters(tmp_path, given, message):
    module = load(write(tmp_path, "def bench(ctx, n: int = 1): ..."))
    with pytest.raises(BenchError, match=message):
        parameters(module, given)
