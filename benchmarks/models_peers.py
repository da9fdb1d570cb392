"""DIPY and MRtrix3 on the voxels of `models_voxels`: the peers of `models_truth.py`. Signals are ``(v, n)``, b-vectors RAS+."""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from tractode.fields import GradientTable
from tractode.io.response import save_response
from tractode.models.tissue_response import TissueResponse
from tractode.ops import sphere
from tractode.ops import spherical_harmonics as sh

ORDER = 8


def tissue_responses(bvals: tuple[float, ...]) -> dict[str, TissueResponse]:
    """Responses of the tissues of `tractode.simulate.signal`, by formula: what every method is given."""
    from tractode.simulate import signal as physics

    tissue = physics.TissueModel()
    rows = torch.tensor((0.0, *bvals), dtype=torch.float64)
    degree = torch.arange(0, ORDER + 1, 2, dtype=torch.float64)
    # A fibre along z has zonal coefficients √((2l + 1) / 4π) times the Funk–Hecke factors.
    zonal = ((2 * degree + 1) / (4 * math.pi)).sqrt()
    white = torch.stack([physics.fibre_response(float(b), tissue, ORDER) * zonal for b in rows]) * tissue.s0_white
    flat = math.sqrt(4 * math.pi)
    grey = (tissue.s0_grey * flat * (-rows * tissue.grey).exp())[:, None]
    csf = (tissue.s0_csf * flat * (-rows * tissue.csf).exp())[:, None]
    return {name: TissueResponse(name, rows, c) for name, c in (("wm", white), ("gm", grey), ("csf", csf))}


@contextmanager
def mrtrix(signal: Tensor, gtab: GradientTable) -> Iterator[tuple[Path, list[str]]]:
    """A folder with ``dwi.nii`` (the voxels along its first axis), and the option that names its gradients."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder / "dwi.nii", signal)
        np.savetxt(folder / "grad.txt", torch.cat([gtab.bvecs, gtab.bvals[:, None]], 1).numpy())
        yield folder, ["-grad", "grad.txt", "-quiet", "-nthreads", "0"]


def save(path: Path, rows: Tensor) -> None:
    nib.save(nib.Nifti1Image(rows[:, None, None].numpy().astype(np.float32), np.eye(4)), path)


def load(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(nib.load(path).dataobj, dtype=np.float64))[:, 0, 0].reshape(
        nib.load(path).shape[0], -1
    )


def run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def mrtrix_tensor(signal: Tensor, gtab: GradientTable) -> dict[str, Tensor]:
    with mrtrix(signal, gtab) as (folder, options):
        run(folder, "dwi2tensor", "dwi.nii", "dt.nii", *options)
        run(
            folder,
            "tensor2metric",
            "dt.nii",
            "-fa",
            "fa.nii",
            "-adc",
            "md.nii",
            "-ad",
            "ad.nii",
            "-rd",
            "rd.nii",
            "-quiet",
        )
        return {name: load(folder / f"{name}.nii") for name in ("fa", "md", "ad", "rd")}


def mrtrix_csd(signal: Tensor, gtab: GradientTable, responses: Mapping[str, TissueResponse]) -> Tensor:
    """SH coefficients of the FODs."""
    with mrtrix(signal, gtab) as (folder, options):
        np.savetxt(folder / "wm.txt", responses["wm"].coefficients[-1:].numpy())
        run(folder, "dwi2fod", "csd", "dwi.nii", "wm.txt", "fod.nii", "-lmax", str(ORDER), *options)
        return load(folder / "fod.nii")


def mrtrix_msmt(signal: Tensor, gtab: GradientTable, responses: Mapping[str, TissueResponse]) -> dict[str, Tensor]:
    with mrtrix(signal, gtab) as (folder, options):
        arguments = []
        for name, response in responses.items():
            save_response(response, folder / f"{name}.txt")
            arguments += [f"{name}.txt", f"{name}.nii"]
        run(folder, "dwi2fod", "msmt_csd", "dwi.nii", *arguments, *options)
        found = {name: load(folder / f"{name}.nii") for name in responses}
    total = sum(part[:, :1] for part in found.values()).clamp(min=1e-12)
    return found | {f"{name}vf": found[name][:, :1] / total for name in responses}


def dipy_table(gtab: GradientTable):
    from dipy.core.gradients import gradient_table

    return gradient_table(gtab.bvals.numpy(), bvecs=gtab.bvecs.numpy(), b0_threshold=50)


def columns(**maps: np.ndarray) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(values, dtype=np.float64))[:, None] for name, values in maps.items()}


def dipy_tensor(signal: Tensor, gtab: GradientTable) -> dict[str, Tensor]:
    from dipy.reconst.dti import TensorModel

    fit = TensorModel(dipy_table(gtab), fit_method="WLS").fit(signal.numpy())
    return columns(fa=fit.fa, md=fit.md, ad=fit.ad, rd=fit.rd)


def dipy_kurtosis(signal: Tensor, gtab: GradientTable) -> dict[str, Tensor]:
    from dipy.reconst.dki import DiffusionKurtosisModel

    fit = DiffusionKurtosisModel(dipy_table(gtab), fit_method="WLS").fit(signal.numpy())
    return columns(
        fa=fit.fa, md=fit.md, mk=fit.mk(min_kurtosis=-3 / 7, max_kurtosis=10), ak=fit.ak(min_kurtosis=-3 / 7, max_kurtosis=10),
        rk=fit.rk(min_kurtosis=-3 / 7, max_kurtosis=10), kfa=fit.kfa,
    )  # fmt: skip


def dipy_free_water(signal: Tensor, gtab: GradientTable) -> dict[str, Tensor]:
    from dipy.reconst.fwdti import FreeWaterTensorModel

    fit = FreeWaterTensorModel(dipy_table(gtab), fit_method="NLS").fit(signal.numpy())
    return columns(fwf=fit.f, fa=fit.fa, md=fit.md)


def dipy_mean_signal_kurtosis(signal: Tensor, gtab: GradientTable) -> dict[str, Tensor]:
    from dipy.reconst.msdki import MeanDiffusionKurtosisModel

    fit = MeanDiffusionKurtosisModel(dipy_table(gtab)).fit(signal.numpy())
    return columns(msd=fit.msd, msk=fit.msk)


def dipy_distribution(
    name: str, signal: Tensor, gtab: GradientTable, responses: Mapping[str, TissueResponse]
) -> Tensor:
    """SH coefficients (ours, order 8) of DIPY's distributions, from their values on 724 directions."""
    from dipy.core.sphere import Sphere
    from dipy.reconst.csdeconv import AxSymShResponse, ConstrainedSphericalDeconvModel
    from dipy.reconst.gqi import GeneralizedQSamplingModel
    from dipy.reconst.shm import CsaOdfModel, QballModel

    table = dipy_table(gtab)
    if name == "csd":
        model = ConstrainedSphericalDeconvModel(
            table, AxSymShResponse(1.0, responses["wm"].coefficients[-1].numpy()), sh_order_max=ORDER
        )
    elif name == "csa":
        model = CsaOdfModel(table, ORDER)
    elif name == "qball":
        model = QballModel(table, ORDER)
    else:
        model = GeneralizedQSamplingModel(table, method="gqi2" if name == "gqi2" else "standard", sampling_length=1.25)
    axes = sphere.directions(724)
    values = model.fit(signal.numpy()).odf(Sphere(xyz=axes.numpy()))
    inverse = torch.linalg.pinv(sh.basis(axes, ORDER))
    return torch.from_numpy(np.asarray(values, dtype=np.float64)) @ inverse.mT
