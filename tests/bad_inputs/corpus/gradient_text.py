"""Gradient tables as text: absent, turned, of other lengths, and in other spellings."""

from __future__ import annotations

from collections.abc import Callable

from .run import Check, Run, bad, odd, same


@bad("G01", "E-FILE-MISSING", r"sub-01_dwi\.bvec", code=66)
def bvec_missing(run: Run) -> None:
    run.bvec.unlink()


@bad("G01", "E-FILE-MISSING", r"sub-01_dwi\.bval", code=66)
def bval_missing(run: Run) -> None:
    run.bval.unlink()


@odd("G02", "W-GRAD-TRANSPOSED", "14 rows of 3")
def bvec_transposed(run: Run) -> Check:
    run.save_table(bvecs=run.bvecs.T)
    return same


@odd("G02", "W-GRAD-TRANSPOSED", "one column of 14")
def bval_transposed(run: Run) -> Check:
    run.bval.write_text("\n".join(f"{b:g}" for b in run.bvals))
    return same


@bad("G03", "E-GRAD-DIRECTIONS", "2 different directions")
def three_volumes_are_read_by_rows(run: Run) -> None:
    # The vectors are unit by columns alone: read by rows they would be refused for their norms instead.
    run.data = run.data[..., 1:4]
    run.save_image()
    run.save_table(run.bvals[1:4], run.bvecs[1:4])


@bad("G03", "E-GRAD-ROWS", "4 rows of 4")
def four_columns_of_four_volumes(run: Run) -> None:
    run.data = run.data[..., :4]
    run.save_image()
    run.save_table(run.bvals[:4], run.bvecs[:4])
    run.bvec.write_text(
        "".join(f"{x} {y} {z} {b}\n" for (x, y, z), b in zip(run.bvecs[:4], run.bvals[:4], strict=True))
    )


@bad("G04", "E-GRAD-COUNT", "13 gradients, 14 volumes")
def both_files_one_short(run: Run) -> None:
    run.save_table(run.bvals[:-1], run.bvecs[:-1])


@bad("G05", "E-GRAD-LENGTH", "14 vectors, and 13 b-values")
def lengths_differ(run: Run) -> None:
    run.save_table(run.bvals[:-1])


@bad("G05", "E-GRAD-RAGGED", "row 2 has 13 numbers and the others 14")
def ragged_rows(run: Run) -> None:
    lines = run.bvec.read_text().splitlines()
    lines[1] = lines[1].rsplit(" ", 1)[0]
    run.bvec.write_text("\n".join(lines))


@bad("G05", "E-GRAD-ROWS", "4 rows of 14")
def four_rows(run: Run) -> None:
    run.bvec.write_text(run.bvec.read_text() + " ".join("0" * 14))


@bad("G05", "E-GRAD-ROWS", "2 rows of 7")
def bval_on_two_lines(run: Run) -> None:
    run.bval.write_text(" ".join(["0", "0", *["1000"] * 5]) + "\n" + " ".join(["1000"] * 7))


@bad("G05", "E-FILE-EMPTY", "0 bytes")
def bvec_empty(run: Run) -> None:
    run.bvec.write_text("")


@bad("G05", "E-GRAD-EMPTY", "no numbers")
def bvec_blank(run: Run) -> None:
    run.bvec.write_text("\n \n")


@bad("G05", "E-GRAD-TEXT", "line 1 holds 'hello'")
def bvec_is_text(run: Run) -> None:
    run.bvec.write_text("hello world\n")


def _respelt(run: Run, change: Callable[[str], str], encoding: str = "utf-8") -> Check:
    for path in (run.bval, run.bvec):
        path.write_bytes(change(path.read_text()).encode(encoding))
    return same


@odd("G19", "W-GRAD-FORMAT", "commas")
def commas(run: Run) -> Check:
    return _respelt(run, lambda text: text.replace(" ", ","))


@odd("G19", "W-GRAD-FORMAT", "commas")
def commas_and_blanks(run: Run) -> Check:
    return _respelt(run, lambda text: text.replace(" ", ", "))


@odd("G19", "W-GRAD-FORMAT", "tabs")
def tabs(run: Run) -> Check:
    return _respelt(run, lambda text: text.replace(" ", "\t"))


@odd("G19")
def several_and_trailing_blanks(run: Run) -> Check:
    return _respelt(run, lambda text: text.replace(" ", "   ").replace("\n", "  \n\n"))


@odd("G19", "W-GRAD-FORMAT", "Windows line ends")
def windows_line_ends(run: Run) -> Check:
    return _respelt(run, lambda text: text.replace("\n", "\r\n"))


@odd("G19", "W-GRAD-FORMAT", "comments")
def header_line(run: Run) -> Check:
    return _respelt(run, lambda text: "# b-values or vectors\n" + text)


@odd("G19")
def scientific_notation(run: Run) -> Check:
    run.bval.write_text(" ".join(f"{b:.3e}" for b in run.bvals))
    run.bvec.write_text("\n".join(" ".join(f"{c:+.9E}" for c in row) for row in run.bvecs.T))
    return same


@odd("G20", "W-GRAD-FORMAT", "old Macintosh line ends")
def carriage_returns_alone(run: Run) -> Check:
    return _respelt(run, lambda text: text.replace("\n", "\r"))


@odd("G20", "W-GRAD-FORMAT", "byte-order mark")
def byte_order_mark(run: Run) -> Check:
    return _respelt(run, lambda text: text, "utf-8-sig")


@bad("G20", "E-GRAD-TEXT", "semicolons")
def semicolons(run: Run) -> None:
    _respelt(run, lambda text: text.replace(" ", ";"))


@bad("G20", "E-GRAD-TEXT", "decimal commas")
def decimal_commas(run: Run) -> None:
    run.bvec.write_text(run.bvec.read_text().replace(".", ","))


@bad("G20", "E-GRAD-ENCODING", "UTF-16")
def utf_16(run: Run) -> None:
    _respelt(run, lambda text: text, "utf-16")


@bad("G20", "E-GRAD-TEXT", "no decimal number")
def hexadecimal_floats(run: Run) -> None:
    run.bvec.write_text("\n".join(" ".join(float(c).hex() for c in row) for row in run.bvecs.T))


@bad("G20", "E-GRAD-ENCODING", "no plain text")
def unicode_minus(run: Run) -> None:
    run.bvec.write_text(run.bvec.read_text().replace("-", "\N{MINUS SIGN}"), encoding="utf-8")
