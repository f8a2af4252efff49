"""Some malformed files for every reader; `python -m tests.fuzz` reads 10,000."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditmoe import checkpoint
from ditmoe.checkpoint import manifest, open_file
from ditmoe.config.restore import restore
from ditmoe.training.run_log import _whole
from tests import warm

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=12,
)
FOLDER = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_no_reader_is_led_astray() -> None:
    """In a process of its own, without the tests' checks of types."""
    done = warm.command("tests.fuzz", "--inputs", "250", "--seed", "1", cwd=warm.ROOT, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@FOLDER
@given(content=PLAIN)
def test_any_manifest_is_a_checkpoint_or_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is no checkpoint of ditmoe"):
        checkpoint.load(tmp_path)


@FOLDER
@given(parts=st.dictionaries(st.sampled_from(["config", "facts", "ema"]), PLAIN), step=PLAIN)
def test_any_sealed_manifest_is_refused_in_one_line(tmp_path: Path, parts: dict, step: object) -> None:
    content = {"format": manifest.FORMAT, "step": step, "parts": parts, "files": {}}
    (tmp_path / "manifest.json").write_bytes(manifest.sealed(content))
    with pytest.raises((ValueError, OSError)):
        restore(tmp_path)


@FOLDER
@given(head=st.binary(max_size=12), header=PLAIN, tail=st.binary(max_size=64))
def test_any_safetensors_file_is_read_or_refused(
    tmp_path: Path, head: bytes, header: object, tail: bytes
) -> None:
    file, text = tmp_path / "a.safetensors", json.dumps(header).encode()
    for data in (head + tail, len(text).to_bytes(8, "little") + text + tail):
        file.write_bytes(data)
        try:
            content = open_file(file)
        except ValueError:
            continue
        assert all(isinstance(name, str) for name in content)


@given(
    st.binary()
    | st.lists(st.binary(max_size=9) | PLAIN.map(lambda v: json.dumps(v).encode())).map(b"\n".join)
)
def test_any_log_is_cut_to_whole_lines(data: bytes) -> None:
    kept = data[: _whole(data, 10**9)]
    assert data.startswith(kept)
    assert kept == b"" or kept.endswith(b"\n")
    assert _whole(kept, 10**9) == len(kept)
