"""What the tests of ``kernbench kernel run`` share."""

import json

import pytest

from kernbench.cli import main


@pytest.fixture
def kernel_run(monkeypatch, capsys, tmp_path):
    """Run the command on a file with some text; gives the exit code, the report (None without one) and what went to
    stderr."""
    monkeypatch.chdir(tmp_path)

    def call(text, *words, at="k.py"):
        (tmp_path / at).parent.mkdir(exist_ok=True)
        (tmp_path / at).write_text(text)
        monkeypatch.setattr("sys.argv", ["kernbench", "kernel", "run", at, "--json", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, json.loads(out) if out else None, " ".join(err.split())

    return call
