"""Writes the rates in `results/two_routes/rates.csv` into configurations: `python tests/lab_rates.py`."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
RATES = ROOT / "results" / "two_routes" / "rates.csv"
LAB = ROOT / "configs" / "lab" / "two_routes"
FULL = ROOT / "configs" / "cifar10" / "full"

LAB_STEPS, FULL_STEPS = 1_000, 5_865
"""Steps of J of a run: of the lab, 10 epochs of 100 batches; of CIFAR-10 at full size, 15 epochs of 391 batches."""

PLACES = {
    "optimization.forward.learning_rate": [r"(?m)^(  forward: .*?learning_rate: )[^,}\n]+"],
    "optimization.backward.learning_rate": [r"(?m)^(  backward: .*?learning_rate: )[^,}\n]+"],
    "weight_decay": [r"(?m)^(weight_decay: )\S+", r"(?m)^(alignment: \{rule: kolen_pollack, decay: )[^}]+"],
}
"""Key path -> patterns of the places of its value in a file; Kolen-Pollack's decay of B is that of W."""


def chosen() -> dict[str, dict[str, float]]:
    """Returns rule -> key path -> chosen value; empty before the searches have run."""
    found: dict[str, dict[str, float]] = {}
    if RATES.exists():
        for row in csv.DictReader(RATES.read_text().splitlines()):
            found.setdefault(row["rule"], {})[row["setting"]] = float(row["value"])
    return found


def written(value: float) -> str:
    """Returns a number that YAML reads as a number, such as 1.2e-05."""
    text = f"{value:g}"
    return text if "." in text or "e" not in text else text.replace("e", ".0e")


def with_rates(text: str, settings: Mapping[str, float]) -> str:
    """Returns the text of a configuration with other values of some settings.

    Raises:
        LookupError: if the text does not contain a setting.
    """
    for name, value in settings.items():
        count = 0
        for pattern in PLACES[name]:
            text, here = re.subn(pattern, rf"\g<1>{written(value)}", text)
            count += here
        if not count:
            raise LookupError(f"{name} is not in the file")
    return text


def at_full_size(settings: Mapping[str, float]) -> dict[str, float]:
    """Returns the settings for CIFAR-10 at full size: rates as chosen, and the weight decay of the same total effect.

    Over a run, the decay shrinks weights by rate x decay x steps. There are more steps, so the decay is smaller.
    """
    return {**settings, "weight_decay": float(f"{settings['weight_decay'] * LAB_STEPS / FULL_STEPS:.3g}")}


def main() -> None:
    """Replaces the rates in the configurations of the lab and of CIFAR-10 at full size."""
    for rule, settings in chosen().items():
        for path, own in ((LAB / f"{rule}.yaml", settings), (FULL / f"{rule}.yaml", at_full_size(settings))):
            if path.exists():
                path.write_text(with_rates(path.read_text(), own))


if __name__ == "__main__":
    main()
