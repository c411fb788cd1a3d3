"""The floor of every room: a room imports only from floors below its own. The README shows the same numbers."""

FLOORS = {
    "errors": 0,
    "documents": 1,
    "checkpoint": 2,
    "spectra": 2,
    "allocation": 2,
    "fits": 3,
    "moe": 3,
    "alphas": 4,
    "peft": 4,
    "backends": 4,
    "analysis": 5,
    "export": 5,
    "training": 6,
    "report": 5,
    "__init__": 6,
    "client": 6,
    "cli": 7,
    "__main__": 8,
}
