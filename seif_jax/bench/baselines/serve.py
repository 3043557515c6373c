"""python serve.py PEER.py SPEC.json: what the peers' scripts have in common. Imports no peer.

PEER.py defines `run(spec, say, wait)`. It loads and warms up, says `ready={package: version}`,
and then for every `wait()` that is True does the work once and says `secs`, `tokens` and `phases`
(seconds by name, {} where it knows none). What a peer prints goes to standard error.

The spec's keys:
  model       a Hugging Face folder            what        rollout, judge or step
  prompts     token ids of each prompt         texts       the same as text
  group       samples per prompt               new_tokens  maximum per sample
  lengths     new tokens of each sample; all are `new_tokens` unless WITH_LENGTHS has the peer
  dtype       float32, bfloat16 or autocast    threads     to be used
  batch_size  judge: prompts in a forward pass
  kl_coef, learning_rate                       folder      for whatever the peer writes
"""

import json
import os
import resource
import runpy
import sys
from pathlib import Path


def main() -> None:
    script, spec = sys.argv[1:]
    here = Path(__file__).resolve().parent
    # The peers' scripts are named as what they import.
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**message: object) -> None:
        if "secs" in message:
            message["peak_bytes"] = peak_bytes()
        print(json.dumps(message), file=lines, flush=True)

    def wait() -> bool:
        return bool(sys.stdin.readline())

    runpy.run_path(script)["run"](json.loads(Path(spec).read_text("utf-8")), say, wait)


def peak_bytes() -> int:
    """The peak memory of this process on the host, in bytes; peers start no other processes. Linux
    reports it in /proc: ru_maxrss would include the peak of the parent process."""
    status = Path("/proc/self/status")
    if status.is_file():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


if __name__ == "__main__":
    main()
