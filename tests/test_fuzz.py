"""Valid files with random changes: loading them raises only EasyDeLErrors, soon, and without much memory.

Each format gets five seconds; FUZZ_SECONDS in `make fuzz` gives it longer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("FUZZ_SECONDS", "5"))
FORMATS = ("safetensors", "index", "torch", "legacy", "gguf", "config", "quantized")
MEMORY = 4 << 30  # bytes over what the interpreter, JAX and torch have reserved

# Runs in a process of its own, so that a limit on memory ends it alone.
FUZZ = """
import json, resource, shutil, signal, sys, time, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
from bad_inputs import valid
from easydel import AutoEasyDeLModelForCausalLM, EasyDeLError, auto, loading

kind, directory, seconds, memory = sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
valid.write_safetensors(directory)
AutoEasyDeLModelForCausalLM.from_pretrained(directory)
if kind == "index":
    valid.write_sharded(directory)
if kind in ("torch", "legacy"):
    valid.write_torch(directory, zipped=kind == "torch")
if kind == "gguf":
    valid.write_gguf(directory)
names = {"safetensors": valid.WEIGHTS, "index": valid.WEIGHTS + ".index.json", "torch": valid.PICKLE,
         "legacy": valid.PICKLE, "gguf": valid.GGUF, "config": "config.json"}
if kind == "quantized":  # checkpoints of quantization tools: their headers, and what their configs say of them
    shutil.copytree(Path(sys.argv[1]) / "formats", directory, dirs_exist_ok=True)
    files = [file for file in directory.glob("*/*") if file.name in (valid.WEIGHTS, "config.json")]
else:
    files = [directory / names[kind]]
originals = [file.read_bytes() for file in files]
for place in {file.parent for file in files}:
    AutoEasyDeLModelForCausalLM.from_pretrained(place)


def without_weights(model, source, options, check_others):
    loading.prepare(model, source, options)


auto.load_weights = without_weights
used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
warnings.simplefilter("ignore")
results = {"loads": 0, "refused": 0}
ended = time.monotonic() + seconds
longest = 0.0
numbers = [b"-1", b"1e999", b"NaN", b"9" * 30, b"\\x00" * 8, b"\\xff" * 8]
texts = [b"", b"[]", b"{}", b"null", b'"', b"/", b"..", b"[" * 3000]
added = st.one_of(st.binary(max_size=12), st.sampled_from(numbers + texts))
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), added), min_size=1, max_size=4)
forever = settings(
    max_examples=10**6,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

@seed(0)
@forever
@given(edits, st.sampled_from([200, 2000, 10**9]), st.floats(0, 1), st.integers(0, len(files) - 1))
def change(edits, reach, cut, chosen):
    global longest
    if time.monotonic() > ended:
        raise KeyboardInterrupt
    file, original = files[chosen], originals[chosen]
    raw = original if cut < 0.9 else original[: int(len(original) * (cut - 0.9) * 10)]
    for place, removed, added in edits:
        at = int(place * min(len(raw), reach))
        if reach == 2000 and kind in ("torch", "legacy"):
            at = max(len(raw) - at, 0)
        raw = raw[:at] + added + raw[at + removed:]
    file.write_bytes(raw)
    started = time.process_time()
    signal.alarm(60)
    try:
        AutoEasyDeLModelForCausalLM.from_pretrained(file.parent)
        results["loads"] += 1
    except EasyDeLError as error:
        str(error)
        results["refused"] += 1
    signal.alarm(0)
    file.write_bytes(original)
    longest = max(longest, time.process_time() - started)

try:
    change()
except KeyboardInterrupt:
    pass
print(json.dumps(results | {"longest": longest}))
"""


@pytest.mark.parametrize("kind", FORMATS)
def test_changed_files_load_or_are_refused_with_an_easydel_error(kind: str, tmp_path: Path):
    arguments = [str(Path(__file__).parent), kind, str(tmp_path), str(SECONDS), str(MEMORY)]
    ended = subprocess.run(
        [sys.executable, "-c", FUZZ, *arguments], capture_output=True, text=True, timeout=SECONDS + 240
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["refused"] > 20, found
    assert found["longest"] < 10, found
