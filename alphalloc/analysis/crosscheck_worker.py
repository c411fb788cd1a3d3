"""The other side of ``crosscheck``, run in a process of its own: what WeightWatcher and powerlaw say about a matrix.

Reads one JSON object a line from stdin, {"weight": path, "eigs": path} of .npy files, and answers each with one
line on the descriptor that was stdout; what the libraries print goes to stderr. WeightWatcher silences all warnings,
changes the root logger and prints, which is why it gets no process that anything else happens in.
"""

import importlib
import json
import os
import sys
import warnings
from typing import Any


def main() -> None:
    """Answer every line of stdin."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    warnings.simplefilter("ignore")
    numpy, torch, weightwatcher, powerlaw = map(
        importlib.import_module, ("numpy", "torch", "weightwatcher", "powerlaw")
    )
    for line in sys.stdin:
        task = json.loads(line)
        answer = {}
        for name, ask in (("weightwatcher", ask_weightwatcher), ("powerlaw", ask_powerlaw)):
            try:
                answer[name] = ask(task, numpy, torch, weightwatcher, powerlaw)
            except Exception as exc:  # whatever they raise is an answer too
                answer[name] = {"problem": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), file=answers, flush=True)


def ask_weightwatcher(task: dict[str, str], numpy: Any, torch: Any, weightwatcher: Any, _: Any) -> dict[str, Any]:
    """alpha, xmin and D of WeightWatcher's default fit, which reads the weights and reduces them itself."""
    weight = torch.from_numpy(numpy.load(task["weight"]))
    frame = weightwatcher.WeightWatcher(model={"matrix.weight": weight}, log_level="ERROR").analyze()
    if not len(frame):
        return {"problem": "skipped the matrix"}
    row = frame.iloc[0]
    if row["status"] != "success":
        return {"problem": f"status {row['status']}"}
    return {"alpha": float(row["alpha"]), "xmin": float(row["xmin"]), "ks_distance": float(row["D"])}


def ask_powerlaw(task: dict[str, str], numpy: Any, _: Any, __: Any, powerlaw: Any) -> dict[str, Any]:
    """The same of powerlaw on our eigenvalues, its exponent freed from the default range [0, 3]."""
    eigs = numpy.load(task["eigs"])
    fit = powerlaw.Fit(eigs, parameter_ranges={"alpha": [1, None]}, verbose=False).power_law
    return {"alpha": float(fit.alpha), "xmin": float(fit.xmin), "ks_distance": float(fit.D)}


if __name__ == "__main__":
    main()
