"""The card of the bundle codec: what it is, what it learned from, what was measured, where it fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tractode.training.cards import licence_words, tables_of

_MODELS = ("error_mm", "error_p95_mm", "turning_angle_deg", "bits_per_streamline", "perplexity", "n")
_NAMING = ("balanced_accuracy", "seconds_per_100k", "n")


def codec_card(training: Mapping[str, Any], metrics: Mapping[str, Any] | None = None) -> str:
    """From the table ``training`` beside the weights, and the benchmark's results (``benchmarks/results/codec.json``) if there are any."""
    curve = "\n".join(f"| {int(step):,} | {loss:.4f} |" for step, loss in training["curve"])
    measured = (
        "\n\n".join(
            tables_of({group: metrics[group]}, columns)
            for group, columns in (("models", _MODELS), ("naming", _NAMING))
            if group in metrics
        )
        if metrics
        else "Not measured yet (`tractode-train card FOLDER --metrics FILE` fills this in)."
    )
    return f"""# Bundle codec

A streamline of the space MNI152NLin2009aSym as 16 codewords of 10 bits ({training["bits_per_streamline"]:g} bits; up to 24 for smaller errors), a classifier that names it by
its codes, and the distribution that new lines of a bundle are drawn from; {training["n_parameters"]:,} numbers (theory: `docs/theory/codec.md`,
`docs/theory/naming.md`; published idea: Lizarraga et al. 2023, github.com/drewrl3v/diff-vq-vae).

**Use.** `tractode … --encode-bundles`, `tractode-codec`, or `BundleCodec.from_weights(*read_weights(folder))`. For research on tractograms of whole adult brains that were
registered to the template; not for anything about a person's health, and not for surgery.

**Licence and data.** {licence_words(training)}

**Training.** Lines of the bundles of `{training["atlas"]}` and the simulator's courses (bent, shifted, widened, misaligned, cut, mirrored) and made-up lines of no bundle, drawn anew at each
of {training["steps"]:,} steps in {training["minutes"]:.3g} minutes on {training["device"]}, seed {training["seed"]}, torch {training["torch"]}; every third line of each bundle of
the atlas was left out. The namer also saw what SD_STREAM follows in {training["n_subjects"]} simulated participants.

```
{training["command"]}
```

| up to step | mean squared error (mm²) |
|---|---|
{curve}

## Measured

{measured}

## Where it fails

- It names the bundles of its atlas only; neighbours that share a course (corticospinal tract and corticopontine tracts, parts of the thalamic radiation) are
  often taken for one another, and half of a bundle for none.
- Lines of tumours, of infants' and of animals' brains, and of badly registered scans were not seen. Names depend on the registration to the template.
- A probability of a name is calibrated on simulated participants; on a scanner's tractogram it is a ranking first.
- Wiggles shorter than 1/15 of a line are not coded; the compressed file keeps what its bound asks for.
- Synthesised lines lie where the atlas's bundles lie: they are of no person.
"""
