"""What the installation says about itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import quadric as qd
from quadric import backends
from quadric.config import config


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_show_config_prints_what_config_returns(capsys):
    qd.show_config()
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].split() == ["quadric", qd.__version__]
    assert [line.split()[0] for line in lines] == list(config())
    for name in backends.available():
        assert re.search(rf"^backends .*\b{name}\b", printed, re.M)


def test_config_knows_the_backends_and_threads():
    found = config()
    assert found["backends"] == backends.available()
    assert found["missing"].keys() == {*backends.ORDER, "cuda"} - set(backends.available())
    assert bool(found["gpus"]) == ("cuda" in backends.available())
    assert found["threads"] >= 1


def test_environment_limits_the_threads():
    done = run("-c", "from quadric.config import config; print(config())", OMP_NUM_THREADS="1")
    assert "'threads': 1" in done.stdout


@pytest.mark.skipif(backends.why_missing("native") is not None, reason="no native backend")
def test_config_names_the_instruction_set():
    for level in config()["simd"]:
        done = run("-c", "import quadric; quadric.show_config()", QUADRIC_SIMD=level)
        assert re.search(rf"^simd +{level}\b", done.stdout, re.M), done.stderr
        assert re.search(rf"^environment .*QUADRIC_SIMD: {level}", done.stdout, re.M)


def test_cmake_dir():
    done = run("-m", "quadric", "--cmakedir")
    if backends.why_missing("native") is not None:
        with pytest.raises(ImportError, match="CMake"):
            qd.get_cmake_dir()
        assert done.returncode != 0
        return
    folder = Path(qd.get_cmake_dir())
    assert (folder / "quadricConfig.cmake").is_file()
    assert done.stdout.strip() == str(folder)


def test_version():
    assert re.match(r"\d+(\.\d+)*", qd.__version__)
    assert "__version__" in dir(qd)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="swep"):
        _ = qd.swep
