"""Diffusion models beside their outside references, voxel by voxel, on two real scans and a simulated one.

    python benchmarks/models_agreement.py [--output benchmarks/results/models_agreement.json] [--work FOLDER] [--only dti dki csd msmt_csd]

Tensors: ``relative`` is the norm of the difference over the reference's, in every voxel of the mask. FODs: angular
correlation (Anderson, MRM 2005, doi:10.1002/mrm.20667) and angles between the largest peaks (MRtrix3's ``sh2peaks`` on both)
in white matter. Both programs get the same table, mask and response; ``same_directions``: also the 300 axes at which FODs are held
above 0, of which each program has its own (that alone makes MRtrix3 differ from itself). The real scans have one shell; models of several shells
are compared on the simulated one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import models_subjects
import nibabel
import numpy as np
import torch
from measure import meta
from models_subjects import Scan
from tracking_subjects import call

from tractode.fields import DWI, Image
from tractode.io.dwi import IngestPolicy, read_dwi
from tractode.io.nifti import read_image, write_image
from tractode.io.response import load_response
from tractode.models import MODELS
from tractode.models.csd import CSD
from tractode.models.dti import DTI

Entry = dict[str, Any]
REAL = ("toshiba60", "xa30")
# Where MRtrix3 stores xx yy zz xy xz yz, in the package's order xx xy xz yy yz zz.
TENSOR_ORDER = (0, 3, 4, 1, 5, 2)
# Our name of each of its fits: 3.0.3 does after -ols no more with -iter 1 than without.
MRTRIX_FITS: dict[str, tuple[str, ...]] = {"ols": ("-ols", "-iter", "0"), "iwls": ()}
# Exponents of MRtrix3's 15 kurtosis components; the package's are in its docstring, DIPY's in dipy.reconst.dki.
MRTRIX_KURTOSIS = ("xxxx", "yyyy", "zzzz", "xxxy", "xxxz", "xyyy", "xzzz", "yyyz", "yzzz", "xxyy", "xxzz", "yyzz", "xxyz", "xyyz", "xyzz")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", nargs="*", default=["dti", "dki", "csd", "msmt_csd"])
    parser.add_argument("--slices", type=int, default=12, help="of the simulated scan")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="agreement-"))
    result: Entry = {"meta": meta(" ".join(["python benchmarks/models_agreement.py", *sys.argv[1:]]))}
    result["meta"]["mrtrix3"] = call("dwi2fod", "-version").splitlines()[0].strip("= ")
    whole = models_subjects.simulated(work / "simulated")
    multi = models_subjects.slab_of(whole, work / "slab", "multi", arguments.slices)
    single = {name: models_subjects.real(name, work / name) for name in REAL}
    single["simulated"] = models_subjects.shell_of(multi, work / "slab", 2500)
    low = models_subjects.shell_of(multi, work / "slab", 1000)
    tasks = {
        "dti": lambda: {name: tensors(low if name == "simulated" else scan, work) for name, scan in single.items()},
        "dki": lambda: {"simulated": kurtosis(multi, work)},
        "csd": lambda: {name: deconvolution(scan, work) for name, scan in single.items()},
        "msmt_csd": lambda: {
            "simulated_3_tissues": tissues(multi, work, 3),
            "simulated_2_tissues": tissues(single["simulated"], work, 2),
        },
    }
    for name in arguments.only:
        result[name] = tasks[name]()
        print(name, json.dumps(result[name], indent=1), file=sys.stderr)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


def load(scan: Scan) -> DWI:
    """The series in the mask given, as the package reads it."""
    dwi, _ = read_dwi(scan.dwi, scan.bval, scan.bvec, "dwi", IngestPolicy(b0_threshold=50.0))
    mask, _ = read_image(scan.mask, "dwi")
    return DWI(dwi.grid, dwi.signal, dwi.gtab, mask.mask & (dwi.signal.amin(0) > 0))


def voxels(path: Path, mask: torch.Tensor) -> torch.Tensor:
    """An image's values in the mask, float64, as stored."""
    image = nibabel.load(path)
    values = torch.from_numpy(np.asanyarray(image.dataobj).astype(np.float64))
    return values[mask] if values.ndim > 3 else values[mask][:, None]


def dipy_table(dwi: DWI) -> Any:
    """DIPY's table with directions in RAS+, so that its tensors are in RAS+ too."""
    from dipy.core.gradients import gradient_table

    return gradient_table(dwi.gtab.bvals.numpy(), bvecs=dwi.gtab.bvecs.numpy(), b0_threshold=50)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> Entry:
    """The norm of the difference over that of the reference, voxel by voxel."""
    error = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-30)
    error = error[torch.isfinite(error)]
    return {
        "relative_median": _short(error.median()),
        "relative_p99": _short(error.quantile(0.99)),
        "within_1e-4": _short((error < 1e-4).double().mean()),
        "n": len(error),
    }


def tensors(scan: Scan, work: Path) -> Entry:
    """Ordinary and weighted fits against DIPY's; ordinary and iterated ones against MRtrix3's (its default is iterated)."""
    from dipy.reconst.dti import TensorModel

    dwi = load(scan)
    signal, table = dwi.voxels().double(), dipy_table(dwi)
    fitted = {method: DTI(fit_method=method).fit(signal, dwi.gtab)[:, :6] for method in ("ols", "wls", "iwls")}
    found: Entry = {}
    for method in ("ols", "wls"):
        theirs = TensorModel(table, fit_method=method.upper(), min_signal=1e-10).fit(signal.numpy())
        found[f"{method}_dipy"] = difference(fitted[method], six(theirs.quadratic_form))
    for method, options in MRTRIX_FITS.items():
        out = work / "tensor.nii"
        call("dwi2tensor", scan.dwi, out, *options, "-mask", scan.mask, *scan.mrtrix, "-force", "-quiet")
        found[f"{method}_mrtrix3"] = difference(fitted[method], voxels(out, dwi.mask)[:, TENSOR_ORDER])
    return found


def kurtosis(scan: Scan, work: Path) -> Entry:
    """The kurtosis tensor against DIPY's and MRtrix3's; mean, axial and radial kurtosis against DIPY's, and by sums over directions.

    DIPY takes eigenvalues within 2.5 % for equal, which shows in its mean and radial kurtosis: ``mk_summed`` is the mean over
    the sphere by quadrature.
    """
    from dipy.reconst.dki import DiffusionKurtosisModel

    from tractode.models import dki

    dwi = load(scan)
    signal, table = dwi.voxels().double(), dipy_table(dwi)
    models = {method: dki.DKI(fit_method=method) for method in ("ols", "wls", "iwls")}
    fitted = {method: model.fit(signal, dwi.gtab) for method, model in models.items()}
    found: Entry = {}
    chosen = torch.arange(0, len(signal), max(1, len(signal) // 4000))  # DIPY's metrics are slow
    for method in ("ols", "wls"):
        theirs = DiffusionKurtosisModel(table, fit_method=method.upper(), min_signal=1e-10).fit(signal[chosen].numpy())
        maps = models[method].to_maps(fitted[method][chosen])
        found[f"{method}_tensor_dipy"] = difference(maps["diffusivity"], six(theirs.quadratic_form))
        ours = dki.kurtosis_in(fitted[method][chosen], DIPY_KURTOSIS)
        found[f"{method}_kurtosis_dipy"] = difference(ours, torch.from_numpy(theirs.kt))
        for name in ("mk", "ak", "rk"):
            reference = torch.from_numpy(getattr(theirs, name)(-10, 10))
            usable = (maps[name][:, 0].abs() < 5) & (reference.abs() < 5)
            found[f"{method}_{name}_dipy"] = difference(maps[name][usable], reference[usable, None])
        if method == "wls":
            summed = summed_kurtosis(theirs.quadratic_form, ours)
            usable = (summed.abs() < 5) & (maps["mk"][:, 0].abs() < 5)
            found["wls_mk_summed"] = difference(maps["mk"][usable], summed[usable, None])
    for method, options in MRTRIX_FITS.items():
        out, kurt = work / "tensor.nii", work / "kurtosis.nii"
        call("dwi2tensor", scan.dwi, out, *options, "-dkt", kurt, "-mask", scan.mask, *scan.mrtrix, "-force", "-quiet")
        tensor = models[method].to_maps(fitted[method])["diffusivity"]
        found[f"{method}_tensor_mrtrix3"] = difference(tensor, voxels(out, dwi.mask)[:, TENSOR_ORDER])
        ours = dki.kurtosis_in(fitted[method], MRTRIX_KURTOSIS)
        found[f"{method}_kurtosis_mrtrix3"] = difference(ours, voxels(kurt, dwi.mask))
    return found


def summed_kurtosis(tensor: np.ndarray, components: torch.Tensor) -> torch.Tensor:
    """The mean of ``MD²/D(n)² W(n)`` over the sphere by 48 × 96 Gauss points, from components in DIPY's order."""
    axes, weights = gauss_points(48)
    letters = {"x": axes[:, 0], "y": axes[:, 1], "z": axes[:, 2]}
    columns = []
    for name in DIPY_KURTOSIS:
        times = math.factorial(4) / math.prod(math.factorial(name.count(letter)) for letter in "xyz")
        columns.append(times * torch.stack([letters[letter] for letter in name]).prod(0))
    diffusivity = torch.einsum("ni,vij,nj->vn", axes, torch.from_numpy(tensor), axes)
    mean = torch.from_numpy(tensor).diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    return ((mean / diffusivity) ** 2 * (components @ torch.stack(columns))) @ weights


def gauss_points(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors and weights (sum 1): Gauss–Legendre in the height, even in the angle."""
    height, weight = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(n))
    angle = torch.arange(2 * n, dtype=torch.float64) * math.pi / n
    radius = (1 - height**2).sqrt()
    axes = torch.stack(
        [radius[:, None] * angle.cos(), radius[:, None] * angle.sin(), height[:, None].expand(-1, 2 * n)], -1
    )
    return axes.reshape(-1, 3), (weight / 2).repeat_interleave(2 * n) / (2 * n)


def six(matrix: np.ndarray) -> torch.Tensor:
    """Symmetric matrices as xx xy xz yy yz zz."""
    return torch.stack(
        [torch.from_numpy(matrix)[:, i, j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))], -1
    )


DIPY_KURTOSIS = ("xxxx", "yyyy", "zzzz", "xxxy", "xxxz", "xyyy", "yyyz", "xzzz", "yzzz", "xxyy", "xxzz", "yyzz", "xxyz", "xyyz", "xyzz")  # fmt: skip


def deconvolution(scan: Scan, work: Path) -> Entry:
    """CSD with the response that MRtrix3 finds, against ``dwi2fod csd`` and DIPY's."""
    dwi = load(scan)
    white, _ = read_image(scan.white, "dwi")
    inside = white.mask[dwi.mask]
    text, theirs = work / "response.txt", work / "peer_fod.nii"
    b = max(round(b) for b, _ in dwi.gtab.shells())
    call("dwi2response", "fa", scan.dwi, text, "-mask", scan.mask, *scan.mrtrix, "-scratch", work, "-force", "-quiet")
    call("dwi2fod", "csd", scan.dwi, text, theirs, "-mask", scan.mask, "-lmax", 8, *scan.mrtrix, "-force", "-quiet")
    same = work / "peer_fod_same.nii"
    call("dwi2fod", "csd", scan.dwi, text, same, "-mask", scan.mask, "-lmax", 8, "-directions", axes_file(work), *scan.mrtrix, "-force", "-quiet")  # fmt: skip
    response = load_response(text, "wm").single_shell(float(b))
    fods = CSD(response).fit(dwi.voxels().double(), dwi.gtab)
    peer = voxels(theirs, dwi.mask)
    ours_image = work / "our_fod.nii"
    write_image(ours_image, dwi.unravel(fods.float()))
    found = {"mrtrix3": correlation(fods[inside], peer[inside]) | peaks_apart(ours_image, theirs, scan, work)}
    found["mrtrix3_same_directions"] = correlation(fods[inside], voxels(same, dwi.mask)[inside])
    for name, tau in (("dipy", 0.1), ("dipy_tau_0", 0.0)):
        dipy = dipy_fods(dwi, response, inside, tau)
        found[name] = correlation(fods[inside][: len(dipy)], dipy)
        found[f"{name}_with_mrtrix3"] = correlation(peer[inside][: len(dipy)], dipy)
    return found


def axes_file(work: Path) -> Path:
    """The 300 axes at which our fits are held above 0, as azimuth and inclination, for ``dwi2fod -directions``."""
    from tractode.ops import sphere

    axes = sphere.directions(300, hemisphere=True).double()
    path = work / "axes.txt"
    np.savetxt(path, torch.stack([torch.atan2(axes[:, 1], axes[:, 0]), axes[:, 2].clamp(-1, 1).acos()], -1).numpy())
    return path


def dipy_fods(dwi: DWI, response: Any, inside: torch.Tensor, tau: float, at_most: int = 3000) -> torch.Tensor:
    """DIPY's CSD with the same response, in the package's basis; RAS+.

    By default (``tau`` 0.1) DIPY presses all amplitudes below a tenth of the mean towards 0, and not only those below 0.
    """
    from dipy.reconst.csdeconv import AxSymShResponse, ConstrainedSphericalDeconvModel

    shell = CSD.shell(dwi.gtab)
    chosen = torch.cat([dwi.gtab.is_b0.nonzero().ravel()[:1], shell]).sort().values
    table = dipy_table(DWI(dwi.grid, dwi.signal[chosen], dwi.gtab[chosen], dwi.mask))
    axial = AxSymShResponse(1.0, response.coefficients[:5].numpy())
    model = ConstrainedSphericalDeconvModel(table, axial, sh_order_max=8, tau=tau)
    fit = model.fit(dwi.voxels()[inside][:at_most][:, chosen].double().numpy())
    return in_our_basis(torch.from_numpy(fit.shm_coeff))


def in_our_basis(coefficients: torch.Tensor) -> torch.Tensor:
    """Coefficients of DIPY's default basis (descoteaux07, legacy) in the package's, by values on many directions."""
    from dipy.core.sphere import Sphere
    from dipy.reconst.shm import sh_to_sf_matrix

    from tractode.ops import sphere
    from tractode.ops import spherical_harmonics as sh

    axes = sphere.directions(400)
    matrix = sh_to_sf_matrix(Sphere(xyz=axes.numpy()), sh_order_max=8, basis_type="descoteaux07", legacy=True, return_inv=False)  # fmt: skip
    values = coefficients @ torch.from_numpy(matrix)
    return values @ torch.linalg.pinv(sh.basis(axes.double(), 8)).mT


def correlation(ours: torch.Tensor, theirs: torch.Tensor) -> Entry:
    """Angular correlation of FODs: that of their coefficients, degree 0 left out."""
    a, b = ours[:, 1:], theirs[:, 1:]
    values = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-30)
    values = values[torch.isfinite(values)]
    return {
        "angular_correlation_median": round(float(values.median()), 7),
        "angular_correlation_p01": round(float(values.quantile(0.01)), 7),
        "angular_correlation_mean": round(float(values.mean()), 7),
        "amplitude_relative_p99": difference(ours, theirs)["relative_p99"],
        "n": len(values),
    }


def peaks_apart(ours: Path, theirs: Path, scan: Scan, work: Path) -> Entry:
    """Angle between the largest peaks of both images in white matter, found by one program."""
    directions = []
    inside = read_image(scan.white, "dwi")[0].mask
    for name, image in (("a", ours), ("b", theirs)):
        out = work / f"peaks_{name}.nii"
        call("sh2peaks", image, out, "-num", 1, "-mask", scan.white, "-force", "-quiet")
        directions.append(torch.nn.functional.normalize(voxels(out, inside), dim=-1))
    cosine = (directions[0] * directions[1]).sum(-1).abs().clamp(max=1)
    angle = torch.rad2deg(cosine[torch.isfinite(cosine)].acos())
    return {"peak_deg_median": round(float(angle.median()), 4), "peak_deg_p95": round(float(angle.quantile(0.95)), 4)}


def tissues(scan: Scan, work: Path, n: int) -> Entry:
    """Multi-tissue CSD with the responses that MRtrix3 finds, against ``dwi2fod msmt_csd``."""
    dwi = load(scan)
    white, _ = read_image(scan.white, "dwi")
    inside = white.mask[dwi.mask]
    names = ("wm", "gm", "csf") if n == 3 else ("wm", "csf")
    text = {name: work / f"{n}_{name}.txt" for name in ("wm", "gm", "csf")}
    call("dwi2response", "dhollander", scan.dwi, *text.values(), "-mask", scan.mask, *scan.mrtrix, "-scratch", work, "-force", "-quiet")  # fmt: skip
    out = {name: work / f"{n}_{name}.nii" for name in names}
    pairs = [item for name in names for item in (text[name], out[name])]
    call("dwi2fod", "msmt_csd", scan.dwi, *pairs, "-mask", scan.mask, *scan.mrtrix, "-force", "-quiet")
    responses = tuple(load_response(text[name], name) for name in names)
    model = MODELS["msmt_csd"](responses)
    params = model.fit(dwi.voxels().double(), dwi.gtab)
    maps = model.to_maps(params)
    peer = {name: voxels(path, dwi.mask) for name, path in out.items()}
    total = sum(peer[name][:, :1] for name in names).clamp_min(1e-12)
    mine = sum(maps[name][:, :1] for name in names).clamp_min(1e-12)
    found = {"wm": correlation(maps["wm"][inside], peer["wm"][inside])}
    ours_image = work / "our_wm.nii"
    write_image(ours_image, Image(dwi.grid, dwi.unravel(maps["wm"].float()).values))
    found["wm"] |= peaks_apart(ours_image, out["wm"], scan, work)
    same = [item for name in names for item in (text[name], work / f"{n}_{name}_same.nii")]
    call("dwi2fod", "msmt_csd", scan.dwi, *same, "-mask", scan.mask, "-directions", axes_file(work), *scan.mrtrix, "-force", "-quiet")  # fmt: skip
    white_same = voxels(work / f"{n}_wm_same.nii", dwi.mask)
    found["wm_same_directions"] = correlation(maps["wm"][inside], white_same[inside])
    found["wm_mrtrix3_with_either_directions"] = correlation(white_same[inside], peer["wm"][inside])
    for name in names:
        error = (maps[name][:, :1] / mine - peer[name][:, :1] / total).abs().ravel()
        found[f"fraction_{name}"] = {
            "difference_mean": _short(error.mean()), "difference_p99": _short(error.quantile(0.99)),
            "within_0.01": _short((error < 0.01).double().mean()), "n": len(error),
        }  # fmt: skip
    return found


def _short(value: torch.Tensor) -> float:
    return float(f"{float(value):.3g}")


if __name__ == "__main__":
    raise SystemExit(main())
