"""Bad and odd dwi runs, made by code: one function per row of the table of inputs that users were hurt by.

Each function spoils a good run in place. `ROWS` says what must follow: the exit code, the stable ID and words of the
message; or, for what must be accepted, the ID of the note, and a check of the result that the function returns.
"""

from . import files, geometry, gradient_text, gradient_values, voxels
from .run import ROWS, Row, Run, good_run

__all__ = ["ROWS", "Row", "Run", "files", "geometry", "good_run", "gradient_text", "gradient_values", "voxels"]
